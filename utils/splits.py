"""The search for the best Gini split of every latent at every node of a tree's level, compiled.

A latent's values are walked through once in their order, for all nodes together; the samples where it is zero are never
touched but counted, so that the work grows with the nonzero values. The latents are shared among threads.
"""

import numpy as np
from numba import njit

# As in scikit-learn: neighbouring values this close are one, and no threshold comes between them.
SAME_VALUE = np.float32(1e-7)
# Two splits may be equally good and yet differ in the last bits of their scores. Scores this close (relative) are
# compared as fractions of whole numbers, which int64 holds up to so many samples; beyond, they count as equal.
CLOSE = 1e-12
EXACT_SAMPLES = 14_000


@njit(nogil=True, cache=True, inline="always")
def _impurity(left, left_positives, n, positives):  # type: ignore[no-untyped-def]
    """Half the Gini impurity of both sides, weighted by their size: sum of positives * negatives / size."""
    right, right_positives = n - left, positives - left_positives
    return left_positives * (left - left_positives) / left + right_positives * (right - right_positives) / right


@njit(nogil=True, cache=True)
def _better(left, left_positives, best_left, best_left_positives, n, positives):  # type: ignore[no-untyped-def]
    """Tell whether a split is purer than the best so far; equally pure ones are not."""
    if best_left == 0:
        return True
    new = _impurity(left, left_positives, n, positives)
    old = _impurity(best_left, best_left_positives, n, positives)
    if abs(new - old) > CLOSE * max(new, old):
        return new < old
    if n > EXACT_SAMPLES:
        return False
    right, best_right = n - left, n - best_left
    right_positives, best_right_positives = positives - left_positives, positives - best_left_positives
    new_top = left_positives * (left - left_positives) * right + right_positives * (right - right_positives) * left
    old_top = (
        best_left_positives * (best_left - best_left_positives) * best_right
        + best_right_positives * (best_right - best_right_positives) * best_left
    )
    return new_top * (best_left * best_right) < old_top * (left * right)


@njit(nogil=True, cache=True)
def _pass_value(node, value, n, positives, node_n, node_positives, state, best, thresholds):  # type: ignore[no-untyped-def]
    """Let n samples of one value go to the left side of a node, after trying a split just below them.

    state: (left, left_positives) and the last value of each node; best: (left, left_positives) of its best split.
    """
    counts, last = state
    left, left_positives = counts[node, 0], counts[node, 1]
    if (
        left > 0
        and value > last[node] + SAME_VALUE
        and _better(left, left_positives, best[node, 0], best[node, 1], node_n[node], node_positives[node])
    ):
        best[node, 0], best[node, 1] = left, left_positives
        below, above = np.float64(last[node]), np.float64(value)
        middle = below / 2 + above / 2
        thresholds[node] = middle if middle < above else below
    counts[node, 0] += n
    counts[node, 1] += positives
    last[node] = value


@njit(nogil=True, cache=True)
def splits_of_latent(  # type: ignore[no-untyped-def]
    samples, values_B, labels_B, node_of_B, node_n, node_positives, explicit, touched, state, best, thresholds
):
    """Find one latent's best split at every node.

    Args:
        samples: those where it is not 0, in the order of its values.
        values_B: its values at all samples.
        labels_B: 0 or 1.
        node_of_B: each sample's node on this level, -1 where it is done with.
        node_n: samples of each node.
        node_positives: the positive ones among them.
        explicit: work space [nodes, 2]; all 0 before and after.
        touched: work space [nodes].
        state: work space, ([nodes, 2], [nodes]).
        best: (left, left_positives) of the best split of each touched node; left is 0 where it has none.
        thresholds: its threshold.

    Returns:
        The number of nodes with a nonzero value; `touched` begins with them.
    """
    counts, _ = state
    n_touched = 0
    for e in range(len(samples)):
        node = node_of_B[samples[e]]
        if node >= 0:
            if explicit[node, 0] == 0:
                touched[n_touched] = node
                n_touched += 1
                counts[node, 0] = counts[node, 1] = best[node, 0] = best[node, 1] = 0
            explicit[node, 0] += 1
            explicit[node, 1] += labels_B[samples[e]]
    n_negative = 0
    while n_negative < len(samples) and values_B[samples[n_negative]] < 0:
        n_negative += 1
    for e in range(n_negative):
        node = node_of_B[samples[e]]
        if node >= 0:
            _pass_value(
                node, values_B[samples[e]], 1, labels_B[samples[e]], node_n, node_positives, state, best, thresholds
            )
    for t in range(n_touched):
        node = touched[t]
        zeros, zero_positives = node_n[node] - explicit[node, 0], node_positives[node] - explicit[node, 1]
        if zeros > 0:
            _pass_value(node, np.float32(0), zeros, zero_positives, node_n, node_positives, state, best, thresholds)
        explicit[node, 0] = explicit[node, 1] = 0
    for e in range(n_negative, len(samples)):
        node = node_of_B[samples[e]]
        if node >= 0:
            _pass_value(
                node, values_B[samples[e]], 1, labels_B[samples[e]], node_n, node_positives, state, best, thresholds
            )
    return n_touched


@njit(nogil=True, cache=True)
def stumps(latents_NB, starts, samples, labels_B, sides_N2, thresholds_N, first, end):  # type: ignore[no-untyped-def]
    """Find the best split of some latents over all samples: (left, left_positives) and thresholds."""
    node_of_B = np.zeros(len(labels_B), np.int64)
    node_n = np.array([len(labels_B)], np.int64)
    node_positives = np.array([labels_B.sum()], np.int64)
    explicit, touched = np.zeros((1, 2), np.int64), np.zeros(1, np.int64)
    state = (np.zeros((1, 2), np.int64), np.zeros(1, np.float32))
    best, threshold = np.zeros((1, 2), np.int64), np.zeros(1, np.float64)
    for n in range(first, end):
        here = slice(starts[n], starts[n + 1])
        if splits_of_latent(
            samples[here], latents_NB[n], labels_B, node_of_B, node_n, node_positives,
            explicit, touched, state, best, threshold,
        ):  # fmt: skip
            sides_N2[n] = best[0]
            thresholds_N[n] = threshold[0]


@njit(nogil=True, cache=True)
def splits_of_level(  # type: ignore[no-untyped-def]
    latents_NB, starts, samples, labels_B, node_of_B, node_n, node_positives, first, end
):
    """Find the best of some latents for every node of a level.

    Returns:
        The latents, -1 where nothing tells a node's samples apart; (left, left_positives); thresholds.
    """
    n_nodes = len(node_n)
    explicit, touched = np.zeros((n_nodes, 2), np.int64), np.zeros(n_nodes, np.int64)
    state = (np.zeros((n_nodes, 2), np.int64), np.zeros(n_nodes, np.float32))
    best, threshold = np.zeros((n_nodes, 2), np.int64), np.zeros(n_nodes, np.float64)
    chosen, chosen_sides = np.full(n_nodes, -1, np.int64), np.zeros((n_nodes, 2), np.int64)
    chosen_threshold = np.zeros(n_nodes, np.float64)
    for n in range(first, end):
        here = slice(starts[n], starts[n + 1])
        n_touched = splits_of_latent(
            samples[here], latents_NB[n], labels_B, node_of_B, node_n, node_positives,
            explicit, touched, state, best, threshold,
        )  # fmt: skip
        for t in range(n_touched):
            node = touched[t]
            if best[node, 0] > 0 and _better(
                best[node, 0], best[node, 1], chosen_sides[node, 0], chosen_sides[node, 1],
                node_n[node], node_positives[node],
            ):  # fmt: skip
                chosen[node] = n
                chosen_sides[node] = best[node]
                chosen_threshold[node] = threshold[node]
    return chosen, chosen_sides, chosen_threshold


@njit(nogil=True, cache=True)
def best_of_parts(parts_chosen, parts_sides, parts_threshold, node_n, node_positives):  # type: ignore[no-untyped-def]
    """Choose for every node between the best latents of several parts; the earlier part wins a tie."""
    chosen, sides, threshold = parts_chosen[0].copy(), parts_sides[0].copy(), parts_threshold[0].copy()
    for part in range(1, len(parts_chosen)):
        for node in range(len(chosen)):
            if parts_chosen[part, node] >= 0 and _better(
                parts_sides[part, node, 0], parts_sides[part, node, 1], sides[node, 0], sides[node, 1],
                node_n[node], node_positives[node],
            ):  # fmt: skip
                chosen[node] = parts_chosen[part, node]
                sides[node] = parts_sides[part, node]
                threshold[node] = parts_threshold[part, node]
    return chosen, threshold


@njit(nogil=True, cache=True)
def sides_of_samples(latents_NB, node_of_B, chosen, thresholds):  # type: ignore[no-untyped-def]
    """Tell for each sample whether it goes left at its node; False where its node has no split."""
    goes_left_B = np.zeros(len(node_of_B), np.bool_)
    for b in range(len(node_of_B)):
        node = node_of_B[b]
        if node >= 0 and chosen[node] >= 0:
            goes_left_B[b] = np.float64(latents_NB[chosen[node], b]) <= thresholds[node]
    return goes_left_B
