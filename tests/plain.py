"""Plain, slow re-statements of what the library does, for tests to hold it against."""

from fractions import Fraction

import numpy as np


def stump_score(values_B, labels_B, weight_B):
    """The purity of one latent's best split, sum over sides of (p^2 + n^2) / size, and its sides; the lowest of equals.

    In whole numbers: where splits are equally good, scikit-learn lets the rounding of its scores decide.
    """
    best: tuple = (-np.inf, None)
    for value in np.unique(values_B)[:-1]:
        sides = (np.flatnonzero(values_B <= value), np.flatnonzero(values_B > value))
        counts = [(int(weight_B[side][labels_B[side]].sum()), int(weight_B[side].sum())) for side in sides]
        score = sum(Fraction(p**2 + (n - p) ** 2, n) for p, n in counts)
        if score > best[0]:
            best = score, sides
    return best


def plain_accuracy_by_depth(values_BN, labels_B, weight_B):
    """Grow by searching the best split of every latent at every node; the lowest latent wins a tie."""
    labels_B = labels_B.astype(bool)
    levels = [[np.arange(len(labels_B))]]
    leaves: list = []
    accuracy = []
    while levels[-1]:
        counts = [(weight_B[s][labels_B[s]].sum(), weight_B[s][~labels_B[s]].sum()) for s in levels[-1] + leaves]
        accuracy.append(float(sum(map(max, counts)) / weight_B.sum()))
        below = []
        for samples in levels[-1]:
            if labels_B[samples].all() or not labels_B[samples].any():
                leaves.append(samples)
                continue
            weights = weight_B[samples]
            found = [stump_score(values_BN[samples, n], labels_B[samples], weights) for n in range(values_BN.shape[1])]
            best, sides = max(found, key=lambda score_and_sides: score_and_sides[0])
            if best == -np.inf:
                leaves.append(samples)
            else:
                below += [samples[side] for side in sides]
        levels.append(below)
    return accuracy


def plain_fms(latents_BN, labels_B, p, mode="paper", balanced=False):
    """FMS@p as printed, with every latent's stump fitted anew after each removal (`paper` or `released` mode)."""
    left_BN = latents_BN.copy()
    labels_B = labels_B.astype(bool)
    n_of_class = np.bincount(labels_B, minlength=2)
    weight_B = n_of_class[1 - labels_B.astype(int)] if balanced else np.ones(len(labels_B), int)
    accs = []
    for _ in range(p + 1):
        found = [stump_score(left_BN[:, n], labels_B, weight_B) for n in range(left_BN.shape[1])]
        root, (_, sides) = max(enumerate(found), key=lambda latent_and_score: latent_and_score[1][0])
        right = [
            max(weight_B[side][labels_B[side]].sum(), weight_B[side][~labels_B[side]].sum())
            for side in sides or [np.arange(len(labels_B))]
        ]
        accs.append(sum(right) / weight_B.sum())
        left_BN[:, root] = 0
    accuracy = plain_accuracy_by_depth(latents_BN, labels_B, weight_B)
    rows = [accuracy[0], *accuracy[2:]] if mode == "released" else accuracy[2:]
    global_ = 1 - np.mean([row - accs[0] for row in rows]) if rows else 1.0
    return accs[0] * (2 * (accs[0] - accs[p]) + global_) / 2


def plain_auroc(values_B, labels_B):
    """The share of pairs of a positive and a negative that are in order, ties counting half."""
    values_B, labels_B = np.asarray(values_B), np.asarray(labels_B)
    pairs = [(p > n) + (p == n) / 2 for p in values_B[labels_B] for n in values_B[~labels_B]]
    return np.mean(pairs)


def plain_spearman(a_B, b_B):
    """The correlation of the ranks, equal values having their mean rank."""

    def ranks(values_B):
        values_B = np.asarray(values_B, float)
        return [(values_B < v).sum() + ((values_B == v).sum() + 1) / 2 for v in values_B]

    return np.corrcoef(ranks(a_B), ranks(b_B))[0, 1]
