"""The order of the values of every latent, found once and read by all trees of FMS."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from utils.errors import UserError
from utils.latent_blocks import BLOCK, LatentBlocks
from utils.threads import equal_parts, in_threads

_DIGIT = 2048  # of the radix sort: the lowest 11 bits of a float32, then the next 11, then the highest 10


@dataclass(frozen=True)
class Columns:
    """N latents of B samples, and for each latent the samples where it is not 0, in the order of its values.

    Beside the latents themselves this takes 2 bytes per nonzero value (4 with more than 65,536 samples).

    Attributes:
        latents: where they are read from.
        starts: entries starts[n] to starts[n + 1] belong to latent n, [N + 1].
        samples: the sample of each entry; the latent's values ascend.
    """

    latents: LatentBlocks
    starts: NDArray[np.int64]
    samples: NDArray[np.unsignedinteger]

    @property
    def n_latents(self) -> int:
        """N."""
        return self.latents.n_latents

    @classmethod
    def of(cls, latents: LatentBlocks) -> "Columns":
        """Sort the nonzero values of every latent.

        Raises:
            UserError: NaN or inf among them.
        """
        counts = np.zeros(latents.n_latents, np.int64)
        if not all(by_blocks(latents, _count, counts)):
            raise UserError("the latents hold NaN or inf")
        starts = np.concatenate([[0], np.cumsum(counts)])
        samples = np.empty(starts[-1], np.uint16 if latents.n_samples <= 2**16 else np.uint32)
        by_blocks(latents, _sort, starts, samples)
        return cls(latents, starts, samples)

    def only(self, rows_B: NDArray[np.int64]) -> "Columns":
        """Return the columns of some samples, which must ascend; their order is taken over."""
        place = np.full(self.latents.n_samples, -1)
        place[rows_B] = np.arange(len(rows_B))
        counts = np.zeros(self.n_latents, np.int64)
        parts = equal_parts(self.n_latents)
        in_threads(_count_kept, parts, self.starts, self.samples, place, counts)
        starts = np.concatenate([[0], np.cumsum(counts)])
        samples = np.empty(starts[-1], self.samples.dtype)
        in_threads(_keep, parts, self.starts, self.samples, place, starts, samples)
        return Columns(self.latents.only(rows_B), starts, samples)


def by_blocks(latents: LatentBlocks, kernel: Callable[..., Any], *arrays: Any) -> list[Any]:
    """Call a compiled kernel on every block, `kernel(latents_NB, *arrays, first)`; the blocks are shared among threads.

    Returns:
        What each call returned, in the order of the latents.
    """

    def part(start: int, end: int) -> list[Any]:
        blocks = range(start, end, BLOCK)
        return [kernel(latents.block(first, min(first + BLOCK, end)), *arrays, first) for first in blocks]

    return [result for results in in_threads(part, equal_parts(latents.n_latents)) for result in results]


@njit(nogil=True, cache=True)
def _count(latents_NB, counts, first):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Count the nonzero values; tell whether all values are finite."""
    finite = True
    for n in range(len(latents_NB)):
        count = 0
        for b in range(latents_NB.shape[1]):
            count += int(latents_NB[n, b] != 0)
            finite &= bool(np.isfinite(latents_NB[n, b]))
        counts[first + n] = count
    return finite


@njit(nogil=True, cache=True)
def _sort(latents_NB, starts, samples, first):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Radix sort by the bits of the values, three digits from the lowest."""
    n_samples = latents_NB.shape[1]
    bits_NB = latents_NB.view(np.uint32)
    keys, other_keys = np.empty(n_samples, np.uint32), np.empty(n_samples, np.uint32)
    order, other_order = np.empty(n_samples, samples.dtype), np.empty(n_samples, samples.dtype)
    places = np.empty(_DIGIT, np.int64)
    for n in range(len(latents_NB)):
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
        samples[starts[first + n] : starts[first + n + 1]] = order[:filled]


@njit(nogil=True, cache=True)
def _count_kept(starts, samples, place, counts, first, end):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    for n in range(first, end):
        for e in range(starts[n], starts[n + 1]):
            counts[n] += int(place[samples[e]] >= 0)


@njit(nogil=True, cache=True)
def _keep(starts, samples, place, new_starts, new_samples, first, end):  # type: ignore[no-untyped-def] # pragma: no cover
    for n in range(first, end):
        filled = new_starts[n]
        for e in range(starts[n], starts[n + 1]):
            if place[samples[e]] >= 0:
                new_samples[filled] = place[samples[e]]
                filled += 1
