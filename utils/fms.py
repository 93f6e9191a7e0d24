"""FMS, the feature monosemanticity score (paper, section 3): how well, and how solely, one latent stands for a concept.

    local@p = 2 (accs_0 - accs_p)                       what is lost when the p best latents are removed
    global  = 1 - (1/n) sum_{i=1..n} (accs_cum_i - accs_0)   what more latents would add
    FMS@p   = accs_0 (local@p + global) / 2

accs_0 is the accuracy of the best single latent (the root of a Gini tree), accs_p that of the best one left, accs_cum_i
that of the tree cut i levels below the root's split, n its depth - 1. No tree is fitted anew for the removals: one pass
over all latents ranks them. Three modes differ in how accuracies are taken:

    paper     fitted and scored on the same samples, the sum as printed above; global = 1 where the root separates
    released  as the authors' notebook: the mean also takes the row without any split, and the samples of a leaf above
              the cut count as correct; values above 1 are possible
    heldout   fitted on one half, scored on the other, averaged over both swaps and several seeds
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from utils.columns import Columns
from utils.errors import UserError
from utils.latent_blocks import LatentBlocks
from utils.scored import Scored, interval
from utils.trees import Labels, Stumps, Tree, grow_tree

MODES = ("paper", "released", "heldout")
N_REMOVED = 9
HELDOUT_SEEDS = 3
FEW_POSITIVES = 10  # with fewer, an interval says more than the score


@dataclass(frozen=True)
class FMS:
    """The score of one concept and its parts.

    Attributes:
        mode: one of `MODES`.
        n_samples: samples, `n_positives` of them with the concept.
        accs: accuracy of the best latent left after 0, 1, ... `N_REMOVED` removals; accs[0] is accs_0.
        accs_by_depth: accuracy of the tree cut to 0, 1, ... splits (held-out: the mean over the halves, a tree that
            ends earlier staying as it is).
        global_: the global term.
        roots: the latents in the order of their removal (held-out: over all samples); those of one value are none.
        scored: what `interval` draws from.
        halves: in held-out mode, the scores whose mean this is; else empty.
    """

    mode: str
    n_samples: int
    n_positives: int
    accs: list[float]
    accs_by_depth: list[float]
    global_: float
    roots: list[int]
    scored: tuple[Scored, ...]
    halves: tuple["FMS", ...] = ()

    @property
    def accs_cum(self) -> list[float]:
        """accs_cum_1, accs_cum_2, ...: with 2, 3, ... splits."""
        return self.accs_by_depth[2:]

    def local(self, p: int) -> float:
        """Return local@p, for p from 1 to `N_REMOVED`."""
        return 2 * (self.accs[0] - self.accs[p])

    def at(self, p: int) -> float:
        """Return FMS@p; in held-out mode the mean of the halves' FMS@p."""
        if self.halves:
            return float(np.mean([half.at(p) for half in self.halves]))
        return self.accs[0] * (self.local(p) + self.global_) / 2

    def interval(self, p: int, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Return a bootstrap interval of FMS@p over the samples that were scored, see `utils.scored.interval`."""
        return interval(self.scored, self.n_samples, p, level, seed)


def fms(
    latents_BN: Any,
    labels_B: ArrayLike | Tensor,
    mode: str = "paper",
    seed: int = 0,
    *,
    n_seeds: int = HELDOUT_SEEDS,
    balanced: bool = False,
) -> FMS:
    """Score one concept.

    Args:
        latents_BN: the latents of B samples (means over a text, or single tokens): NumPy or PyTorch, dense or sparse
            (SciPy's or PyTorch's), on the CPU or a GPU. They are read in blocks of latents; dense ones are never copied
            whole. Beside them 2 to 4 bytes per nonzero value are taken (twice that with more than 65,536 samples).
        labels_B: 1 where a sample has the concept, else 0.
        mode: `paper`, `released` or `heldout`.
        seed: of the halves in `heldout` mode.
        n_seeds: how often `heldout` halves the samples anew.
        balanced: let both classes count the same, in the splits and in the accuracies.

    Raises:
        UserError: an unknown mode, NaN or inf among the latents, shapes that differ, labels other than 0 and 1, or
            samples of one class only.
    """
    return fms_of_concepts(latents_BN, _column(labels_B)[:, None], mode, seed, n_seeds=n_seeds, balanced=balanced)[0]


def fms_of_concepts(
    latents_BN: Any,
    labels_BC: ArrayLike | Tensor,
    mode: str = "paper",
    seed: int = 0,
    *,
    n_seeds: int = HELDOUT_SEEDS,
    balanced: bool = False,
) -> list[FMS]:
    """Score several concepts on the same samples, whose latents are sorted only once; see `fms`.

    Args:
        latents_BN: as in `fms`, and so are the other arguments.
        labels_BC: a column of 0 and 1 for each concept.
        mode: of all concepts.
        seed: of the halves.
        n_seeds: how often they are drawn.
        balanced: let both classes of each concept count the same.
    """
    if mode not in MODES:
        raise UserError(f"unknown mode {mode!r}: choose one of {', '.join(MODES)}")
    latents, labels_BC = LatentBlocks.of(latents_BN), _column(labels_BC)
    if labels_BC.ndim != 2 or len(labels_BC) != latents.n_samples:
        shape = (latents.n_samples, latents.n_latents)
        raise UserError(f"latents {shape} and labels {labels_BC.shape} do not fit: [B, N] and [B] are needed")
    if latents.n_latents == 0:
        raise UserError("there are no latents to score")
    if not np.isin(labels_BC, (0, 1)).all():
        raise UserError("labels must be 0 or 1")
    if n_seeds < 1:
        raise UserError(f"n_seeds: must be at least 1, not {n_seeds}")
    for labels_B in labels_BC.T:
        if reason := why_not(labels_B, mode):
            raise UserError(reason)
    columns = Columns.of(latents)
    scores = []
    for labels_B in labels_BC.T:
        values_B = np.ascontiguousarray(labels_B).astype(bool).astype(np.int8)
        labels = Labels.balanced(values_B) if balanced else Labels(values_B)
        if mode == "heldout":
            scores.append(_heldout(columns, labels, seed, n_seeds))
        else:
            scores.append(_same_samples(columns, labels, mode))
    return scores


def why_not(labels_B: NDArray, mode: str) -> str | None:
    """Return why samples with these labels cannot be scored in a mode; None where they can."""
    n_positives = int(np.count_nonzero(labels_B))
    n_negatives = len(labels_B) - n_positives
    if min(n_positives, n_negatives) == 0:
        return "no positive sample" if n_positives == 0 else "no negative sample"
    if mode == "heldout" and min(n_positives, n_negatives) < 2:
        return "heldout needs two samples of each class"
    return None


def shuffled(
    latents_BN: Any,
    labels_B: ArrayLike | Tensor,
    mode: str = "paper",
    seed: int = 0,
    *,
    n_seeds: int = 1,
    balanced: bool = False,
) -> list[FMS]:
    """Score the same samples with their labels permuted, `n_seeds` times: what chance alone would give. See `fms`."""
    labels_B = _column(labels_B)
    permuted = [np.random.default_rng([seed, 1, repeat]).permutation(labels_B) for repeat in range(n_seeds)]
    return fms_of_concepts(latents_BN, np.stack(permuted, axis=1), mode, seed, balanced=balanced)


def _column(labels: ArrayLike | Tensor) -> NDArray:
    return labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)


def _same_samples(columns: Columns, labels: Labels, mode: str) -> FMS:
    stumps = Stumps.of(columns, labels)
    tree = grow_tree(columns, labels, stumps)
    rows_B = np.arange(len(labels.values_B))
    return _score(columns.latents, labels, rows_B, stumps, tree, tree.leaf_of_B, mode)


def _heldout(columns: Columns, labels: Labels, seed: int, n_seeds: int) -> FMS:
    halves = []
    for repeat in range(n_seeds):
        first_B = _half(labels.values_B, np.random.default_rng([seed, 2, repeat]))
        for fitted_B in (first_B, ~first_B):
            fitted, others = np.flatnonzero(fitted_B), np.flatnonzero(~fitted_B)
            columns_fit, labels_fit = columns.only(fitted), labels.only(fitted)
            stumps = Stumps.of(columns_fit, labels_fit)
            tree = grow_tree(columns_fit, labels_fit, stumps)
            latents = columns.latents.only(others)
            leaf_of_B = tree.leaves(latents)
            halves.append(_score(latents, labels.only(others), others, stumps, tree, leaf_of_B, "heldout"))
    deepest = max(len(half.accs_by_depth) for half in halves)
    by_depth = [half.accs_by_depth + half.accs_by_depth[-1:] * (deepest - len(half.accs_by_depth)) for half in halves]
    return FMS(
        "heldout",
        len(labels.values_B),
        int(labels.values_B.sum()),
        np.mean([half.accs for half in halves], axis=0).tolist(),
        np.mean(by_depth, axis=0).tolist(),
        float(np.mean([half.global_ for half in halves])),
        _splitting(Stumps.of(columns, labels)),
        tuple(scored for half in halves for scored in half.scored),
        tuple(halves),
    )


def _half(labels_B: NDArray[np.int8], random: np.random.Generator) -> NDArray[np.bool_]:
    """Choose half of the samples of each class."""
    chosen_B = np.zeros(len(labels_B), bool)
    for value in (0, 1):
        members = random.permutation(np.flatnonzero(labels_B == value))
        chosen_B[members[: len(members) // 2]] = True
    return chosen_B


def _splitting(stumps: Stumps) -> list[int]:
    """Return the best latents in the order of their removal, of those that have more than one value."""
    return [latent for latent in stumps.best(N_REMOVED + 1) if stumps.left_N[latent] > 0]


def _score(
    latents: LatentBlocks,
    labels: Labels,
    rows_B: NDArray[np.int64],
    stumps: Stumps,
    tree: Tree,
    leaf_of_B: NDArray[np.int64],
    mode: str,
) -> FMS:
    """Classify samples by fitted stumps and a fitted tree, and put the accuracies together."""
    roots = _splitting(stumps)
    everything_B = np.arange(len(rows_B))
    correct_PB = np.empty((N_REMOVED + 1, len(rows_B)), bool)
    correct_PB[:] = labels.values_B == (2 * stumps.positive > stumps.total)  # where no latent is left
    for p, latent in enumerate(roots):
        values_B = latents.values(everything_B, np.full(len(rows_B), latent))
        correct_PB[p] = stumps.predict(latent, values_B) == labels.values_B
    by_depth, deep_cuts_B = tree.score(leaf_of_B, labels, generous=mode == "released")
    n_cuts = max(tree.depth - 1, 0)
    accs_global = by_depth[2:]
    if mode == "released":
        accs_global = [by_depth[0], *accs_global]
        deep_cuts_B = deep_cuts_B + (labels.values_B == (2 * tree.nodes[0].positive > tree.nodes[0].total))
        n_cuts += 1
    scored = Scored(rows_B, labels.weight_B, correct_PB, deep_cuts_B, n_cuts)
    accs = scored.accs()
    global_ = 1 - float(np.mean([acc - accs[0] for acc in accs_global])) if accs_global else 1.0
    n_positives = int(labels.values_B.sum())
    return FMS(mode, len(rows_B), n_positives, accs, by_depth, global_, roots, (scored,))
