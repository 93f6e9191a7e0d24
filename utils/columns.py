"""Latents of many samples, column by column, and the order of their values: what the trees of FMS read."""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from utils.threads import equal_parts, in_threads

_DIGIT = 2048  # of the radix sort: the lowest 11 bits of a float32, then the next 11, then the highest 10


@dataclass(frozen=True)
class Columns:
    """N latents of B samples, and for each latent the samples where it is not 0, in the order of its values.

    Beside the latents themselves this takes 2 bytes per nonzero value (4 with more than 65,536 samples).

    Attributes:
        latents_NB: contiguous; of a column-major latents_BN, a view.
        starts: entries starts[n] to starts[n + 1] belong to latent n, [N + 1].
        samples: the sample of each entry; the latent's values ascend.
    """

    latents_NB: NDArray[np.float32]
    starts: NDArray[np.int64]
    samples: NDArray[np.unsignedinteger]

    @property
    def n_samples(self) -> int:
        """B."""
        return self.latents_NB.shape[1]

    @property
    def n_latents(self) -> int:
        """N."""
        return len(self.latents_NB)

    @classmethod
    def of(cls, latents_BN: NDArray) -> "Columns":
        """Sort the nonzero values of every latent; a copy is made of what is not float32 and column-major."""
        latents_NB = np.ascontiguousarray(latents_BN.T, dtype=np.float32)
        n_latents, n_samples = latents_NB.shape
        counts = np.zeros(n_latents, np.int64)
        in_threads(_count, equal_parts(n_latents), latents_NB, counts)
        starts = np.concatenate([[0], np.cumsum(counts)])
        samples = np.empty(starts[-1], np.uint16 if n_samples <= 2**16 else np.uint32)
        in_threads(_sort, equal_parts(n_latents), latents_NB, latents_NB.view(np.uint32), starts, samples)
        return cls(latents_NB, starts, samples)


@njit(nogil=True, cache=True)
def _count(latents_NB, counts, start, end):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    for n in range(start, end):
        count = 0
        for b in range(latents_NB.shape[1]):
            count += int(latents_NB[n, b] != 0)
        counts[n] = count


@njit(nogil=True, cache=True)
def _sort(latents_NB, bits_NB, starts, samples, start, end):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Radix sort by the bits of the values, three digits from the lowest."""
    n_samples = latents_NB.shape[1]
    keys, other_keys = np.empty(n_samples, np.uint32), np.empty(n_samples, np.uint32)
    order, other_order = np.empty(n_samples, samples.dtype), np.empty(n_samples, samples.dtype)
    places = np.empty(_DIGIT, np.int64)
    for n in range(start, end):
        filled = 0
        for b in range(n_samples):
            if latents_NB[n, b] != 0:
                bits = bits_NB[n, b]
                # Keys order as the floats do.
                keys[filled] = bits ^ (np.uint32(0x80000000) | (np.uint32(0) - (bits >> np.uint32(31))))
                order[filled] = b
                filled += 1
        for shift in (np.uint32(0), np.uint32(11), np.uint32(22)):
            places[:] = 0
            for e in range(filled):
                places[(keys[e] >> shift) & np.uint32(_DIGIT - 1)] += 1
            place = 0
            for digit in range(_DIGIT):
                count = places[digit]
                places[digit] = place
                place += count
            for e in range(filled):
                digit = (keys[e] >> shift) & np.uint32(_DIGIT - 1)
                other_keys[places[digit]] = keys[e]
                other_order[places[digit]] = order[e]
                places[digit] += 1
            keys, other_keys = other_keys, keys
            order, other_order = other_order, order
        samples[starts[n] : starts[n + 1]] = order[:filled]
