"""Latents of many samples, column by column, without their zeros: what the trees of FMS read."""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray


@dataclass(frozen=True)
class Columns:
    """The nonzero values of N latents over B samples.

    Attributes:
        n_samples: B.
        starts: entries starts[n] to starts[n + 1] belong to latent n, [N + 1].
        samples: the sample of each entry.
        values: its value; ascending within a latent.
    """

    n_samples: int
    starts: NDArray[np.int64]
    samples: NDArray[np.int32]
    values: NDArray[np.float32]

    @property
    def n_latents(self) -> int:
        """N."""
        return len(self.starts) - 1

    @classmethod
    def of(cls, latents_BN: NDArray) -> "Columns":
        """Sort the nonzero values of every latent."""
        latents_BN = np.ascontiguousarray(latents_BN, dtype=np.float32)
        starts = np.concatenate([[0], np.cumsum(np.count_nonzero(latents_BN, axis=0))])
        return cls(len(latents_BN), starts, *_sorted_entries(latents_BN, starts))


@njit(nogil=True, cache=True)
def _sorted_entries(latents_BN, starts):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    samples = np.empty(starts[-1], np.int32)
    values = np.empty(starts[-1], np.float32)
    filled = starts[:-1].copy()
    for b in range(latents_BN.shape[0]):
        for n in range(latents_BN.shape[1]):
            value = latents_BN[b, n]
            if value != 0:
                samples[filled[n]] = b
                values[filled[n]] = value
                filled[n] += 1
    for n in range(latents_BN.shape[1]):
        here = slice(starts[n], starts[n + 1])
        order = np.argsort(values[here])
        samples[here] = samples[here][order]
        values[here] = values[here][order]
    return samples, values
