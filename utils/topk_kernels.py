"""Compiled loops over the k latents a token keeps: on a CPU, far less work than products with all latents.

Each function shares its rows among as many threads as PyTorch uses; the results do not depend on their number.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

_FASTMATH = {"reassoc", "contract"}  # sums in any order; NaN and inf stay what they are
_RADIX = 2048  # buckets of the 11 highest bits of a float32, then of the next 11, then of the last 10


def top_k_rows(pre_BN: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """Return the places of the k largest values of each row, ascending, [B, k]; of equals, the first.

    NaN counts as larger than every number, as in PyTorch, and -0 as smaller than 0.
    """
    indices_BK = np.empty((len(pre_BN), k), np.int32)
    _in_threads(_top_k, _equal_parts(len(pre_BN)), pre_BN, pre_BN.view(np.uint32), indices_BK)
    return indices_BK


def weighted_rows(values_BK: NDArray, indices_BK: NDArray[np.int32], rows_ND: NDArray) -> NDArray:
    """Return sum_k values[b, k] rows[indices[b, k]], [B, D]."""
    out_BD = np.empty((len(values_BK), rows_ND.shape[1]), rows_ND.dtype)
    _in_threads(_weighted_rows, _equal_parts(len(values_BK)), values_BK, indices_BK, rows_ND, out_BD)
    return out_BD


def chosen_dots(x_BD: NDArray, indices_BK: NDArray[np.int32], rows_ND: NDArray) -> NDArray:
    """Return x[b] . rows[indices[b, k]], [B, k]."""
    out_BK = np.empty(indices_BK.shape, rows_ND.dtype)
    _in_threads(_chosen_dots, _equal_parts(len(x_BD)), x_BD, indices_BK, rows_ND, out_BK)
    return out_BK


def transposed_product(
    values_BK: NDArray, indices_BK: NDArray[np.int32], x_BD: NDArray, n_rows: int
) -> tuple[NDArray, NDArray]:
    """Return sum over the tokens b that chose row n of values x[b], [N, D], and of the values alone, [N]."""
    starts_N, tokens, places = _by_row(indices_BK, n_rows)
    out_ND = np.empty((n_rows, x_BD.shape[1]), x_BD.dtype)
    sum_N = np.empty(n_rows, x_BD.dtype)
    threads = torch.get_num_threads()
    ends = np.searchsorted(starts_N, np.linspace(0, starts_N[-1], threads + 1)[1:-1])
    parts = np.concatenate([[0], ends, [n_rows]]).tolist()  # rows that many tokens chose take longer
    _in_threads(_transposed_product, parts, starts_N, tokens, places, values_BK.ravel(), x_BD, out_ND, sum_N)
    return out_ND, sum_N


def _equal_parts(n: int) -> list[int]:
    return np.linspace(0, n, torch.get_num_threads() + 1).astype(int).tolist()


def _in_threads(kernel: Callable[..., None], parts: list[int], *arrays: Any) -> None:
    """Call a kernel, which holds no lock, on parts[i] to parts[i + 1] in thread i."""
    ranges = [(start, end) for start, end in pairwise(parts) if start < end]
    if len(ranges) > 1:
        list(_threads(os.getpid(), len(ranges)).map(lambda ends: kernel(*arrays, *ends), ranges))
    else:
        for start, end in ranges:
            kernel(*arrays, start, end)


@cache
def _threads(_process: int, n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n)  # of this process: a fork has no threads


@njit(nogil=True, cache=True)
def _top_k(pre_BN, bits_BN, indices_BK, start, end):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Radix selection: find the k-th largest key by its highest bits first, then take the keys that reach it."""
    n_latents, k = pre_BN.shape[1], indices_BK.shape[1]
    keys = np.empty(n_latents, np.uint32)
    candidates = np.empty(n_latents, np.uint32)
    counts = np.empty(_RADIX, np.int32)
    for b in range(start, end):
        for n in range(n_latents):  # keys order as the floats do
            bits = bits_BN[b, n]
            flip = np.uint32(0x80000000) | (np.uint32(0) - (bits >> np.uint32(31)))
            nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            keys[n] = np.uint32(0xFFFFFFFF) if nan else bits ^ flip
        counts[:] = 0
        for n in range(n_latents):
            counts[keys[n] >> np.uint32(21)] += 1
        prefix, missing = _bucket(counts, k)
        n_candidates = _keep(keys, n_latents, np.uint32(21), prefix, candidates)
        for shift, mask in ((np.uint32(10), np.uint32(0x7FF)), (np.uint32(0), np.uint32(0x3FF))):
            counts[:] = 0
            for i in range(n_candidates):
                counts[(candidates[i] >> shift) & mask] += 1
            bucket, missing = _bucket(counts, missing)
            prefix = prefix * (mask + np.uint32(1)) + bucket
            n_candidates = _keep(candidates, n_candidates, shift, prefix, candidates)
        # `prefix` is the k-th largest key now; `missing` of the `n_candidates` keys equal to it are taken.
        place = indices_BK[b]
        filled = n = 0
        while missing < n_candidates and filled < k:
            place[filled] = n
            equal = int(keys[n] == prefix)
            taken = equal if missing > 0 else 0
            missing -= taken
            n_candidates -= equal
            filled += int(keys[n] > prefix) + taken
            n += 1
        while filled < k:  # from here on all of them, without asking how many
            place[filled] = n
            filled += int(keys[n] >= prefix)
            n += 1


@njit(nogil=True, cache=True)
def _bucket(counts, missing):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Return the bucket of the key that `missing` keys reach, and how many of its bucket are still missing."""
    bucket = len(counts) - 1
    while counts[bucket] < missing:
        missing -= counts[bucket]
        bucket -= 1
    return np.uint32(bucket), missing


@njit(nogil=True, cache=True)
def _keep(keys, n_keys, shift, prefix, kept):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Move the keys that begin with `prefix` to the front of `kept`; return their number."""
    n_kept = 0
    for i in range(n_keys):
        key = keys[i]
        kept[n_kept] = key
        n_kept += int((key >> shift) == prefix)
    return n_kept


@njit(nogil=True, fastmath=_FASTMATH, cache=True)
def _weighted_rows(values_BK, indices_BK, rows_ND, out_BD, start, end):  # type: ignore[no-untyped-def] # pragma: no cover
    n_inputs, k = rows_ND.shape[1], values_BK.shape[1]
    for b in range(start, end):
        out = out_BD[b]
        out[:] = 0
        for first in range(0, k - 3, 4):  # four at once, as `out` is read and written for each otherwise
            v0, v1, v2, v3 = values_BK[b, first : first + 4]
            row0, row1 = rows_ND[indices_BK[b, first]], rows_ND[indices_BK[b, first + 1]]
            row2, row3 = rows_ND[indices_BK[b, first + 2]], rows_ND[indices_BK[b, first + 3]]
            for d in range(n_inputs):
                out[d] += v0 * row0[d] + v1 * row1[d] + v2 * row2[d] + v3 * row3[d]
        for last in range(k - k % 4, k):
            value, row = values_BK[b, last], rows_ND[indices_BK[b, last]]
            for d in range(n_inputs):
                out[d] += value * row[d]


@njit(nogil=True, fastmath=_FASTMATH, cache=True)
def _chosen_dots(x_BD, indices_BK, rows_ND, out_BK, start, end):  # type: ignore[no-untyped-def] # pragma: no cover
    n_inputs, k = rows_ND.shape[1], indices_BK.shape[1]
    zero = x_BD.dtype.type(0)
    for b in range(start, end):
        x = x_BD[b]
        for first in range(0, k - 3, 4):  # four at once, as `x` is read for each otherwise
            row0, row1 = rows_ND[indices_BK[b, first]], rows_ND[indices_BK[b, first + 1]]
            row2, row3 = rows_ND[indices_BK[b, first + 2]], rows_ND[indices_BK[b, first + 3]]
            dot0 = dot1 = dot2 = dot3 = zero
            for d in range(n_inputs):
                dot0 += x[d] * row0[d]
                dot1 += x[d] * row1[d]
                dot2 += x[d] * row2[d]
                dot3 += x[d] * row3[d]
            out_BK[b, first], out_BK[b, first + 1], out_BK[b, first + 2], out_BK[b, first + 3] = dot0, dot1, dot2, dot3
        for last in range(k - k % 4, k):
            row = rows_ND[indices_BK[b, last]]
            dot = zero
            for d in range(n_inputs):
                dot += x[d] * row[d]
            out_BK[b, last] = dot


@njit(nogil=True, cache=True)
def _by_row(indices_BK, n_rows):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Sort the entries by row: those of row n are starts[n] to starts[n + 1]; their tokens, and places in [B, k]."""
    n_tokens, k = indices_BK.shape
    starts_N = np.zeros(n_rows + 1, np.int64)
    for b in range(n_tokens):
        for i in range(k):
            starts_N[indices_BK[b, i] + 1] += 1
    for n in range(n_rows):
        starts_N[n + 1] += starts_N[n]
    filled_N = starts_N[:-1].copy()
    tokens = np.empty(n_tokens * k, np.int32)
    places = np.empty(n_tokens * k, np.int64)
    for b in range(n_tokens):
        for i in range(k):
            entry = filled_N[indices_BK[b, i]]
            filled_N[indices_BK[b, i]] = entry + 1
            tokens[entry] = b
            places[entry] = b * k + i
    return starts_N, tokens, places


@njit(nogil=True, fastmath=_FASTMATH, cache=True)
def _transposed_product(starts_N, tokens, places, values, x_BD, out_ND, sum_N, start, end):  # type: ignore[no-untyped-def] # pragma: no cover
    n_inputs = x_BD.shape[1]
    zero = x_BD.dtype.type(0)
    for n in range(start, end):
        out = out_ND[n]
        out[:] = 0
        total = zero
        entry, after = starts_N[n], starts_N[n + 1]
        while entry + 4 <= after:
            v0, v1 = values[places[entry]], values[places[entry + 1]]
            v2, v3 = values[places[entry + 2]], values[places[entry + 3]]
            x0, x1, x2, x3 = (
                x_BD[tokens[entry]],
                x_BD[tokens[entry + 1]],
                x_BD[tokens[entry + 2]],
                x_BD[tokens[entry + 3]],
            )
            for d in range(n_inputs):
                out[d] += v0 * x0[d] + v1 * x1[d] + v2 * x2[d] + v3 * x3[d]
            total += v0 + v1 + v2 + v3
            entry += 4
        while entry < after:
            value, x = values[places[entry]], x_BD[tokens[entry]]
            for d in range(n_inputs):
                out[d] += value * x[d]
            total += value
            entry += 1
        sum_N[n] = total
