"""A random order of n numbers that needs no memory: any part of it is computed on its own.

A Feistel network over the pairs (left, right) of a rectangle of at least n cells is a one-to-one map whatever its round
function; cells beyond n are sent through it again until they land inside ("cycle walking").
"""

import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 12  # with 6, neighbours of small n stay neighbours too often


class IndexShuffle:
    """A one-to-one map of 0..n-1 onto itself that seed, epoch and n alone decide.

    Args:
        n: how many numbers.
        seed: a whole number of at least 0.
        epoch: another one; every epoch has its own order.
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        self.n = n
        self._width = max(1, math.isqrt(max(n - 1, 0)) + 1)  # of a rectangle that holds n cells or a few more
        self._height = max(1, -(-n // self._width))
        self._keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)

    def __call__(self, positions_B: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the numbers at the given positions of the order, each from 0 to n - 1."""
        numbers_B = self._once(np.asarray(positions_B, dtype=np.uint64))
        while (outside := np.flatnonzero(numbers_B >= self.n)).size:
            numbers_B[outside] = self._once(numbers_B[outside])
        return numbers_B.astype(np.int64)

    def _once(self, cells_B: NDArray[np.uint64]) -> NDArray[np.uint64]:
        width, height = np.uint64(self._width), np.uint64(self._height)
        left_B, right_B = cells_B // width, cells_B % width
        for first, second in zip(self._keys[::2], self._keys[1::2], strict=True):
            left_B = (left_B + _mix(right_B + first) % height) % height
            right_B = (right_B + _mix(left_B + second) % width) % width
        return left_B * width + right_B


def _mix(values_B: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter 64-bit numbers (the finalizer of SplitMix64, Steele et al. 2014); overflow wraps, as it must."""
    values_B = (values_B ^ (values_B >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values_B = (values_B ^ (values_B >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values_B ^ (values_B >> np.uint64(31))
