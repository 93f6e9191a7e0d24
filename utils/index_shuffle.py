"""A random order of n numbers that needs no memory: any part of it is computed on its own.

A Feistel network over the pairs (left, right) of a rectangle of at least n cells is a one-to-one map whatever its round
function; cells beyond n are sent through it again until they land inside ("cycle walking").
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

_ROUNDS = 12  # with 6, neighbours of small n stay neighbours too often


class IndexShuffle:
    """A one-to-one map of 0..n-1 onto itself that seed, epoch and n alone decide.

    Args:
        n: how many numbers, at most 2^60.
        seed: a whole number of at least 0.
        epoch: another one; every epoch has its own order.
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        self.n = n
        self._width = math.isqrt(max(n - 1, 0)) + 1  # of a rectangle that holds n cells or a few more
        self._height = max(1, -(-n // self._width))
        self._keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)

    def __call__(self, positions_B: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the numbers at the given positions of the order, each from 0 to n - 1."""
        n, width, height = (np.uint64(size) for size in (self.n, self._width, self._height))
        return _permuted(np.asarray(positions_B, np.uint64), n, width, height, self._keys)


@njit(nogil=True, cache=True)
def _permuted(positions_B, n, width, height, keys):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    numbers_B = np.empty(len(positions_B), np.int64)
    for b, position in enumerate(positions_B):
        cell = position
        while True:
            left, right = cell // width, cell % width
            for r in range(0, len(keys), 2):
                left = _shifted(left, right, keys[r], height)
                right = _shifted(right, left, keys[r + 1], width)
            cell = left * width + right
            if cell < n:
                break
        numbers_B[b] = cell
    return numbers_B


@njit(nogil=True, cache=True)
def _shifted(half, other, key, size):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Add a number below `size` that looks random and that `other` and the key decide, modulo `size`."""
    # The finalizer of SplitMix64 (Steele et al. 2014); overflow wraps, as it must.
    mixed = other + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    shift = ((mixed >> np.uint64(32)) * size) >> np.uint64(32)  # size is below 2^31
    half += shift
    return half - size if half >= size else half
