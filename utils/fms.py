"""FMS, the feature monosemanticity score (paper, section 3): how well, and how solely, one latent stands for a concept.

    local@p = 2 (accs_0 - accs_p)                       what is lost when the p best latents are removed
    global  = 1 - (1/n) sum_{i=1..n} (accs_cum_i - accs_0)   what more latents would add
    FMS@p   = accs_0 (local@p + global) / 2

accs_0 is the accuracy of the best single latent (the root of a Gini tree), accs_p that of the best one left, accs_cum_i
that of the tree cut i levels below the root's split, n its depth - 1. Three modes differ in how accuracies are taken:

    paper     fitted and scored on the same samples, the sum as printed above; global = 1 where the root separates
    released  as the authors' notebook: the mean also takes the row without any split, and the samples of a leaf above
              the cut count as correct; values above 1 are possible
    heldout   fitted on one half, scored on the other, averaged over both swaps and several seeds
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.columns import Columns
from utils.errors import UserError
from utils.trees import Labels, Stumps, grow_tree

MODES = ("paper", "released", "heldout")
N_REMOVED = 9
HELDOUT_SEEDS = 3


@dataclass(frozen=True)
class FMS:
    """The score of one concept and its parts.

    Attributes:
        mode: one of `MODES`.
        n_samples: samples, `n_positives` of them with the concept.
        accs: accuracy of the best latent left after 0, 1, ... `N_REMOVED` removals; accs[0] is accs_0.
        accs_cum: accuracy of the tree cut 1, 2, ... n levels below the root's split (held-out: see the halves).
        global_: the global term.
        roots: the latents in the order of their removal (held-out: over all samples).
        halves: in held-out mode, the scores whose mean this is; else empty.
    """

    mode: str
    n_samples: int
    n_positives: int
    accs: list[float]
    accs_cum: list[float]
    global_: float
    roots: list[int]
    halves: tuple["FMS", ...] = ()

    def local(self, p: int) -> float:
        """Return local@p, for p from 1 to `N_REMOVED`."""
        return 2 * (self.accs[0] - self.accs[p])

    def at(self, p: int) -> float:
        """Return FMS@p; in held-out mode the mean of the halves' FMS@p."""
        if self.halves:
            return float(np.mean([half.at(p) for half in self.halves]))
        return self.accs[0] * (self.local(p) + self.global_) / 2


def fms(latents_BN: NDArray, labels_B: NDArray, mode: str = "paper", seed: int = 0) -> FMS:
    """Score one concept.

    Args:
        latents_BN: the latents of B samples (means over a text, or single tokens).
        labels_B: 1 where a sample has the concept, else 0.
        mode: `paper`, `released` or `heldout`.
        seed: of the halves in `heldout` mode.

    Raises:
        UserError: an unknown mode, NaN or inf among the latents, shapes that differ, or samples of one class only.
    """
    if mode not in MODES:
        raise UserError(f"unknown mode {mode!r}: choose one of {', '.join(MODES)}")
    if latents_BN.ndim != 2 or labels_B.shape != latents_BN.shape[:1]:
        raise UserError(f"latents {latents_BN.shape} and labels {labels_B.shape} do not fit: [B, N] and [B] are needed")
    if not np.isfinite(latents_BN).all():
        raise UserError("the latents hold NaN or inf")
    labels_B = labels_B.astype(bool).astype(np.int8)
    if reason := why_not(labels_B, mode):
        raise UserError(reason)
    latents_BN = np.ascontiguousarray(latents_BN, dtype=np.float32)
    return _heldout(latents_BN, labels_B, seed) if mode == "heldout" else _same_samples(latents_BN, labels_B, mode)


def why_not(labels_B: NDArray, mode: str) -> str | None:
    """Return why samples with these labels cannot be scored in a mode; None where they can."""
    n_positives = int(np.count_nonzero(labels_B))
    n_negatives = len(labels_B) - n_positives
    if min(n_positives, n_negatives) == 0:
        return "no positive sample" if n_positives == 0 else "no negative sample"
    if mode == "heldout" and min(n_positives, n_negatives) < 2:
        return "heldout needs two samples of each class"
    return None


def shuffled(latents_BN: NDArray, labels_B: NDArray, mode: str = "paper", seed: int = 0) -> FMS:
    """Score the same samples with their labels permuted: what chance alone would give."""
    return fms(latents_BN, np.random.default_rng([seed, 1]).permutation(labels_B), mode, seed)


def _same_samples(latents_BN: NDArray[np.float32], labels_B: Labels, mode: str) -> FMS:
    columns = Columns.of(latents_BN)
    stumps = Stumps.of(columns, labels_B)
    roots = stumps.best(N_REMOVED + 1)
    accs = [stumps.correct(latent) / stumps.n_samples for latent in roots]
    accs += [stumps.majority / stumps.n_samples] * (N_REMOVED + 1 - len(roots))  # none is left
    tree = grow_tree(columns, labels_B)
    correct = tree.correct_by_depth_released() if mode == "released" else tree.correct_by_depth()
    accuracy = [count / stumps.n_samples for count in correct]
    accs_cum = accuracy[2:]
    rows = [accuracy[0], *accs_cum] if mode == "released" else accs_cum
    return FMS(mode, stumps.n_samples, stumps.n_positives, accs, accs_cum, _global(rows, accs[0]), roots)


def _global(rows: list[float], accs_0: float) -> float:
    return 1 - float(np.mean([row - accs_0 for row in rows])) if rows else 1.0


def _heldout(latents_BN: NDArray[np.float32], labels_B: Labels, seed: int) -> FMS:
    halves = []
    for repeat in range(HELDOUT_SEEDS):
        first_B = _half(labels_B, np.random.default_rng([seed, 2, repeat]))
        halves += [_fit_and_score(latents_BN, labels_B, fitted_B) for fitted_B in (first_B, ~first_B)]
    accs = np.mean([half.accs for half in halves], axis=0).tolist()
    global_ = float(np.mean([half.global_ for half in halves]))
    stumps = Stumps.of(Columns.of(latents_BN), labels_B)
    roots = stumps.best(N_REMOVED + 1)
    return FMS("heldout", stumps.n_samples, stumps.n_positives, accs, [], global_, roots, tuple(halves))


def _half(labels_B: Labels, random: np.random.Generator) -> NDArray[np.bool_]:
    """Choose half of the samples of each class."""
    chosen_B = np.zeros(len(labels_B), bool)
    for value in (0, 1):
        members = random.permutation(np.flatnonzero(labels_B == value))
        chosen_B[members[: len(members) // 2]] = True
    return chosen_B


def _fit_and_score(latents_BN: NDArray[np.float32], labels_B: Labels, fitted_B: NDArray[np.bool_]) -> FMS:
    columns, labels_fit = Columns.of(latents_BN[fitted_B]), labels_B[fitted_B]
    latents_score, labels_score = latents_BN[~fitted_B], labels_B[~fitted_B]
    n_score = len(labels_score)
    stumps = Stumps.of(columns, labels_fit)
    roots = stumps.best(N_REMOVED + 1)
    correct = grow_tree(columns, labels_fit).correct_on(latents_score, labels_score)
    accuracy = [count / n_score for count in correct]
    accs = [float((stumps.predict(n, latents_score[:, n]) == labels_score).mean()) for n in roots]
    accs += [accuracy[0]] * (N_REMOVED + 1 - len(roots))
    accs_cum = accuracy[2:]
    return FMS("heldout", n_score, int(labels_score.sum()), accs, accs_cum, _global(accs_cum, accs[0]), roots)
