"""Compiled loops over the k latents a token keeps: on a CPU, far less work than products with all latents.

Each function shares its rows among as many threads as PyTorch uses; the results do not depend on their number.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from utils.threads import equal_parts, in_threads

_FASTMATH = {"reassoc", "contract"}  # sums in any order; NaN and inf stay what they are
# What a core works on at a time: so many sums, so many columns of them, and about so many rows for each.
_TILE, _COLUMNS, _PICKS = 256, 576, 32
_RADIX = 2048  # buckets of the 11 highest bits of a float32, then of the next 11, then of the last 10


def top_k_rows(pre_BN: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """Return the places of the k largest values of each row, ascending, [B, k]; of equals, the first.

    NaN counts as larger than every number, as in PyTorch, and -0 as smaller than 0.
    """
    indices_BK = np.empty((len(pre_BN), k), np.int32)
    in_threads(_top_k, equal_parts(len(pre_BN)), pre_BN, pre_BN.view(np.uint32), indices_BK)
    return indices_BK


def weighted_rows(values_BK: NDArray, indices_BK: NDArray[np.int32], rows_ND: NDArray) -> NDArray:
    """Return sum_k values[b, k] rows[indices[b, k]], [B, D]; the indices of a row ascend."""
    n_tokens, k = indices_BK.shape
    starts_B = np.arange(0, n_tokens * k + 1, k)
    return _sums(starts_B, indices_BK.ravel(), values_BK.ravel(), rows_ND, equal_parts(n_tokens))


def chosen_dots(x_BD: NDArray, indices_BK: NDArray[np.int32], rows_ND: NDArray) -> NDArray:
    """Return x[b] . rows[indices[b, k]], [B, k]; the indices of a row ascend."""
    out_BK = np.empty(indices_BK.shape, rows_ND.dtype)
    width = _width(len(rows_ND), indices_BK.shape[1])
    in_threads(_dots, equal_parts(len(x_BD)), _in_blocks(x_BD), indices_BK, _in_blocks(rows_ND), out_BK, width)
    return out_BK


def transposed_product(
    values_BK: NDArray, indices_BK: NDArray[np.int32], x_BD: NDArray, n_rows: int
) -> tuple[NDArray, NDArray]:
    """Return sum over the tokens b that chose row n of values x[b], [N, D], and of the values alone, [N]."""
    starts_N, tokens, values, sum_N = _by_row(values_BK, indices_BK, n_rows)
    # Rows that many tokens chose take longer.
    ends = np.searchsorted(starts_N, np.linspace(0, starts_N[-1], len(equal_parts(1)))[1:-1])
    return _sums(starts_N, tokens, values, x_BD, [0, *ends.tolist(), n_rows]), sum_N


def _sums(starts: NDArray, picks: NDArray, values: NDArray, rows_ND: NDArray, parts: list[int]) -> NDArray:
    """Return, for each i, the sum over e from starts[i] to starts[i + 1] of values[e] rows[picks[e]]."""
    out_ID = np.empty((len(starts) - 1, rows_ND.shape[1]), rows_ND.dtype)
    width = _width(len(rows_ND), len(picks) / max(len(out_ID), 1))
    in_threads(_weighted_sums, parts, starts, picks, values, _in_blocks(rows_ND), _in_blocks(out_ID), width)
    return out_ID


def _in_blocks(array_ND: NDArray) -> NDArray:
    """View rows as blocks of columns, [N, blocks, columns]: as many as a core's cache holds of some hundred rows."""
    n_columns = array_ND.shape[1]
    size = max((size for size in range(64, _COLUMNS + 1) if n_columns % size == 0), default=n_columns)
    return array_ND.reshape(len(array_ND), n_columns // size, size)


def _width(n_rows: int, picks: float) -> int:
    """Return how many rows are gone through together, such that each of the others has picked some of them."""
    return max(1, min(n_rows, int(_PICKS * n_rows / max(picks, 1))))


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
def _weighted_sums(starts, picks, values, rows_NCS, out_ICS, width, first, last):  # type: ignore # pragma: no cover
    """Sum some rows, in blocks: of the sums, of the columns, and of the rows, so that all stay in a core's cache."""
    n_rows, n_blocks, size = rows_NCS.shape
    at = np.empty(_TILE, np.int64)
    for tile in range(first, last, _TILE):
        tile_end = min(tile + _TILE, last)
        for c in range(n_blocks):
            out_ICS[tile:tile_end, c] = 0
            at[: tile_end - tile] = starts[tile:tile_end]
            for rows_end in range(width, n_rows + width, width):
                for i in range(tile, tile_end):
                    out, e, end = out_ICS[i, c], at[i - tile], starts[i + 1]
                    while e + 4 <= end and picks[e + 3] < rows_end:  # four at once, as `out` is read for each otherwise
                        v0, v1, v2, v3 = values[e], values[e + 1], values[e + 2], values[e + 3]
                        row0, row1 = rows_NCS[picks[e], c], rows_NCS[picks[e + 1], c]
                        row2, row3 = rows_NCS[picks[e + 2], c], rows_NCS[picks[e + 3], c]
                        for d in range(size):
                            out[d] += v0 * row0[d] + v1 * row1[d] + v2 * row2[d] + v3 * row3[d]
                        e += 4
                    while e < end and picks[e] < rows_end:
                        value, row = values[e], rows_NCS[picks[e], c]
                        for d in range(size):
                            out[d] += value * row[d]
                        e += 1
                    at[i - tile] = e


@njit(nogil=True, fastmath=_FASTMATH, cache=True)
def _dots(x_BCS, indices_BK, rows_NCS, out_BK, width, first, last):  # type: ignore # pragma: no cover - compiled
    """Multiply tokens with the rows they chose, in the same blocks."""
    n_rows, n_blocks, size = rows_NCS.shape
    k = indices_BK.shape[1]
    at = np.empty(_TILE, np.int64)
    zero = x_BCS.dtype.type(0)
    for tile in range(first, last, _TILE):
        tile_end = min(tile + _TILE, last)
        out_BK[tile:tile_end] = 0
        for c in range(n_blocks):
            at[:] = 0
            for rows_end in range(width, n_rows + width, width):
                for b in range(tile, tile_end):
                    x, index, out, i = x_BCS[b, c], indices_BK[b], out_BK[b], at[b - tile]
                    while i + 4 <= k and index[i + 3] < rows_end:
                        row0, row1 = rows_NCS[index[i], c], rows_NCS[index[i + 1], c]
                        row2, row3 = rows_NCS[index[i + 2], c], rows_NCS[index[i + 3], c]
                        dot0 = dot1 = dot2 = dot3 = zero
                        for d in range(size):
                            dot0 += x[d] * row0[d]
                            dot1 += x[d] * row1[d]
                            dot2 += x[d] * row2[d]
                            dot3 += x[d] * row3[d]
                        out[i] += dot0
                        out[i + 1] += dot1
                        out[i + 2] += dot2
                        out[i + 3] += dot3
                        i += 4
                    while i < k and index[i] < rows_end:
                        row = rows_NCS[index[i], c]
                        dot = zero
                        for d in range(size):
                            dot += x[d] * row[d]
                        out[i] += dot
                        i += 1
                    at[b - tile] = i


@njit(nogil=True, cache=True)
def _by_row(values_BK, indices_BK, n_rows):  # type: ignore # pragma: no cover - compiled
    """Sort the entries by row: those of row n are starts[n] to starts[n + 1]; also sum their values."""
    n_tokens, k = indices_BK.shape
    starts_N, sum_N = np.zeros(n_rows + 1, np.int64), np.zeros(n_rows, values_BK.dtype)
    for b in range(n_tokens):
        for i in range(k):
            starts_N[indices_BK[b, i] + 1] += 1
    for n in range(n_rows):
        starts_N[n + 1] += starts_N[n]
    filled_N = starts_N[:-1].copy()
    tokens, values = np.empty(n_tokens * k, np.int32), np.empty(n_tokens * k, values_BK.dtype)
    for b in range(n_tokens):
        for i in range(k):
            n, value = indices_BK[b, i], values_BK[b, i]
            tokens[filled_N[n]] = b
            values[filled_N[n]] = value
            filled_N[n] += 1
            sum_N[n] += value
    return starts_N, tokens, values, sum_N
