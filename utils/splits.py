"""The search for the best Gini split of every latent at every node of a tree's level, compiled.

A latent's values are walked through once in their order, for all nodes together: the negative ones upwards, the
positive ones downwards. The samples where it is zero are what is left between, so that the work grows with the nonzero
values.
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
def _impurity(left, left_positive, total, positive):  # type: ignore[no-untyped-def]
    """Half the Gini impurity of both sides, weighted by their size: sum of positive * negative / size."""
    # In floats, as products of weighted counts may leave int64.
    a, a_positive = np.float64(left), np.float64(left_positive)
    b, b_positive = np.float64(total - left), np.float64(positive - left_positive)
    return (a_positive * (a - a_positive) * b + b_positive * (b - b_positive) * a) / (a * b)


@njit(nogil=True, cache=True)
def _order(score, left, left_positive, other_score, other_left, other_left_positive, total, positive):  # type: ignore[no-untyped-def]
    """Tell whether a split is purer (-1), less pure (1), or as pure as another (0); `left` of no split is 0."""
    if other_left == 0:
        return -1
    if abs(score - other_score) > CLOSE * max(score, other_score):
        return -1 if score < other_score else 1
    if total > EXACT_SAMPLES:
        return 0
    right, other_right = total - left, total - other_left
    right_positive, other_right_positive = positive - left_positive, positive - other_left_positive
    top = left_positive * (left - left_positive) * right + right_positive * (right - right_positive) * left
    other_top = (
        other_left_positive * (other_left - other_left_positive) * other_right
        + other_right_positive * (other_right - other_right_positive) * other_left
    )
    a, b = top * (other_left * other_right), other_top * (left * right)
    return -1 if a < b else 1 if a > b else 0


@njit(nogil=True, cache=True, inline="always")
def _try(node, left, left_positive, below, above, totals, positives, best, scores, thresholds):  # type: ignore[no-untyped-def]
    """Take a split between two neighbouring values where it is better than a node's best; the lower one of equals."""
    if above > below + SAME_VALUE:
        score = _impurity(left, left_positive, totals[node], positives[node])
        # Nearly all are clearly worse.
        if best[node, 0] == 0 or score <= scores[node] * (1 + 2 * CLOSE):
            order = _order(
                score, left, left_positive, scores[node], best[node, 0], best[node, 1], totals[node], positives[node]
            )
            if order < 0 or (order == 0 and np.float64(below) < thresholds[node]):
                middle = np.float64(below) / 2 + np.float64(above) / 2
                best[node, 0], best[node, 1], scores[node] = left, left_positive, score
                thresholds[node] = middle if middle < np.float64(above) else np.float64(below)


@njit(nogil=True, cache=True)
def splits_of_level(  # type: ignore[no-untyped-def] # noqa: PLR0912 - one loop, compiled
    latents_NB, starts, samples, code_B, weights, totals, positives, of_latents, first
):
    """Find the best of some latents for every node of a level.

    Args:
        latents_NB: some latents, of which the first is number `first`.
        starts: see `utils.columns.Columns`.
        samples: likewise.
        code_B: twice the node of each sample on this level, plus its label; -1 where it is done with.
        weights: what a negative and a positive sample count, whole numbers.
        totals: what the samples of each node count.
        positives: what the positive ones among them count.
        of_latents: ([N, 2], [N]) for the splits of every latent at node 0, or empty ones.
        first: see above.

    Returns:
        For each node the latent, -1 where none tells its samples apart; what is on the left side of the split, and the
        positive part of that, [nodes, 2]; the threshold.
    """
    n_nodes = len(totals)
    lower, upper = np.zeros((n_nodes, 2), np.int64), np.zeros((n_nodes, 2), np.int64)  # (all, positive) below, above 0
    last_lower, last_upper = np.zeros(n_nodes, np.float32), np.zeros(n_nodes, np.float32)
    best, scores, thresholds = np.zeros((n_nodes, 2), np.int64), np.zeros(n_nodes), np.zeros(n_nodes)
    touched = np.zeros(n_nodes, np.int64)
    chosen, chosen_sides = np.full(n_nodes, -1, np.int64), np.zeros((n_nodes, 2), np.int64)
    chosen_scores, chosen_thresholds = np.zeros(n_nodes), np.zeros(n_nodes)
    zero = np.float32(0)
    for n in range(len(latents_NB)):
        values_B = latents_NB[n]
        start, end = starts[first + n], starts[first + n + 1]
        n_touched = 0
        while start < end and values_B[samples[start]] < 0:
            code, value = code_B[samples[start]], values_B[samples[start]]
            start += 1
            if code >= 0:
                node, label = code >> 1, code & 1
                if lower[node, 0] > 0:
                    _try(
                        node, lower[node, 0], lower[node, 1], last_lower[node], value,
                        totals, positives, best, scores, thresholds,
                    )  # fmt: skip
                else:
                    touched[n_touched] = node
                    n_touched += 1
                lower[node, 0] += weights[label]
                lower[node, 1] += label * weights[1]
                last_lower[node] = value
        for e in range(end - 1, start - 1, -1):
            code = code_B[samples[e]]
            if code >= 0:
                node, label, value = code >> 1, code & 1, values_B[samples[e]]
                if upper[node, 0] > 0:
                    _try(
                        node, totals[node] - upper[node, 0], positives[node] - upper[node, 1], value, last_upper[node],
                        totals, positives, best, scores, thresholds,
                    )  # fmt: skip
                elif lower[node, 0] == 0:
                    touched[n_touched] = node
                    n_touched += 1
                upper[node, 0] += weights[label]
                upper[node, 1] += label * weights[1]
                last_upper[node] = value
        for t in range(n_touched):
            node = touched[t]
            has_zeros = lower[node, 0] + upper[node, 0] < totals[node]
            if lower[node, 0] > 0 and (has_zeros or upper[node, 0] > 0):
                _try(
                    node, lower[node, 0], lower[node, 1], last_lower[node], zero if has_zeros else last_upper[node],
                    totals, positives, best, scores, thresholds,
                )  # fmt: skip
            if has_zeros and upper[node, 0] > 0:
                _try(
                    node, totals[node] - upper[node, 0], positives[node] - upper[node, 1], zero, last_upper[node],
                    totals, positives, best, scores, thresholds,
                )  # fmt: skip
            if node == 0 and len(of_latents[1]) > 0:
                of_latents[0][first + n] = best[0]
                of_latents[1][first + n] = thresholds[0]
            if best[node, 0] > 0 and (
                _order(
                    scores[node], best[node, 0], best[node, 1], chosen_scores[node], chosen_sides[node, 0],
                    chosen_sides[node, 1], totals[node], positives[node],
                ) < 0
            ):  # fmt: skip
                chosen[node], chosen_sides[node] = first + n, best[node]
                chosen_scores[node], chosen_thresholds[node] = scores[node], thresholds[node]
            lower[node] = upper[node] = best[node] = 0
    return chosen, chosen_sides, chosen_thresholds


@njit(nogil=True, cache=True)
def keep_better(found, other, totals, positives):  # type: ignore[no-untyped-def]
    """Put the splits of later latents in the place of those found, for the nodes where they are better."""
    chosen, sides, thresholds = found
    other_chosen, other_sides, other_thresholds = other
    for node in range(len(chosen)):
        if other_chosen[node] < 0:
            continue
        order = -1
        if chosen[node] >= 0:
            new = _impurity(other_sides[node, 0], other_sides[node, 1], totals[node], positives[node])
            old = _impurity(sides[node, 0], sides[node, 1], totals[node], positives[node])
            order = _order(
                new, other_sides[node, 0], other_sides[node, 1], old, sides[node, 0], sides[node, 1],
                totals[node], positives[node],
            )  # fmt: skip
        if order < 0:
            chosen[node], sides[node], thresholds[node] = other_chosen[node], other_sides[node], other_thresholds[node]


@njit(nogil=True, cache=True)
def score_cuts(leaf_of_B, parents, depths, predicts, labels_B, weights, depth, generous):  # type: ignore[no-untyped-def]
    """Classify samples by a tree cut to 0, 1, ... `depth` splits.

    Args:
        leaf_of_B: the leaf each sample ends in.
        parents: of each node.
        depths: of each node.
        predicts: the class of each node.
        labels_B: 0 or 1.
        weights: what a negative and a positive sample count.
        depth: of the tree.
        generous: take a sample for correct at every cut below its leaf.

    Returns:
        What the samples classified correctly at each cut weigh; and at how many cuts of two splits or more each one is.
    """
    correct_by_cut, deep_cuts_B = np.zeros(depth + 1, np.int64), np.zeros(len(leaf_of_B), np.int64)
    for b in range(len(leaf_of_B)):
        node = leaf_of_B[b]
        for cut in range(depth, -1, -1):
            below_leaf = depths[node] < cut
            if predicts[node] == labels_B[b] or (below_leaf and generous):
                correct_by_cut[cut] += weights[labels_B[b]]
                deep_cuts_B[b] += int(cut >= 2)
            if not below_leaf:
                node = parents[node]
    return correct_by_cut, deep_cuts_B
