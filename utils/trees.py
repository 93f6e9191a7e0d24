"""Exact Gini decision trees over latents, as FMS needs them: every tie is decided, every accuracy is counted.

The splits are those of scikit-learn's `DecisionTreeClassifier` (its impurity, its thresholds between values, its rule
that neighbouring values within 1e-7 are one), except that scikit-learn lets chance decide between latents that split
equally well, while here the latent with the lowest index wins. Samples count as much as their class weighs; weights are
whole numbers, so that nothing is rounded.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import gcd

import numpy as np
from numpy.typing import NDArray

from utils.columns import Columns, by_blocks
from utils.latent_blocks import LatentBlocks
from utils.splits import CLOSE, keep_better, score_cuts, splits_of_level

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Labels:
    """The labels of samples, and what a sample of each class counts.

    Attributes:
        values_B: 0 or 1.
        weights: of a negative and of a positive sample, whole numbers.
    """

    values_B: NDArray[np.int8]
    weights: tuple[int, int] = (1, 1)

    @classmethod
    def balanced(cls, values_B: NDArray[np.int8]) -> "Labels":
        """Let both classes count the same, as `class_weight="balanced"` does."""
        n_positives = int(values_B.sum())
        n_negatives = len(values_B) - n_positives
        common = max(gcd(n_positives, n_negatives), 1)
        return cls(values_B, (n_positives // common, n_negatives // common))

    def only(self, rows_B: NDArray[np.int64]) -> "Labels":
        """Return the labels of some samples; the weights stay."""
        return Labels(self.values_B[rows_B], self.weights)

    @property
    def weight_B(self) -> NDArray[np.int64]:
        """What each sample counts."""
        return np.array(self.weights)[self.values_B]

    @property
    def total(self) -> int:
        """What all samples count."""
        return int(self.weight_B.sum())

    @property
    def positive(self) -> int:
        """What the positive samples count."""
        return int(self.values_B.sum()) * self.weights[1]


@dataclass(frozen=True)
class Stumps:
    """The best split of every latent on its own.

    Attributes:
        total: what the samples they were fitted on count, `positive` of it the positive ones.
        left_N: what the samples on the left side count, 0 where a latent has but one value.
        left_positive_N: what the positive ones among them count.
        threshold_N: a sample goes left where its value is at most this.
    """

    total: int
    positive: int
    left_N: NDArray[np.int64]
    left_positive_N: NDArray[np.int64]
    threshold_N: NDArray[np.float64]

    @classmethod
    def of(cls, columns: Columns, labels: Labels) -> "Stumps":
        """Find the best Gini split of each latent."""
        sides_N2, threshold_N = np.zeros((columns.n_latents, 2), np.int64), np.zeros(columns.n_latents)
        root = Node(0, labels.total, labels.positive)
        _best_splits(columns, labels.values_B.astype(np.int32), labels, [root], (sides_N2, threshold_N))
        return cls(labels.total, labels.positive, sides_N2[:, 0], sides_N2[:, 1], threshold_N)

    def best(self, n_latents: int) -> list[int]:
        """Return the best latents in their order, the lower index first among equals; those that split nothing last."""
        left, left_positive = self.left_N.astype(np.float64), self.left_positive_N.astype(np.float64)
        right, right_positive = self.total - left, self.positive - left_positive
        with np.errstate(divide="ignore", invalid="ignore"):
            impurity_N = left_positive * (left - left_positive) / left
            impurity_N += right_positive * (right - right_positive) / right
        impurity_N[self.left_N == 0] = np.inf
        order = np.argsort(impurity_N, kind="stable")[: n_latents + 1]
        # Latents as good as the last one wanted may have lower indices; whole numbers decide among the close ones.
        limit = impurity_N[order[-1]]
        close = np.flatnonzero(impurity_N <= limit * (1 + CLOSE)) if np.isfinite(limit) else np.arange(len(impurity_N))
        return sorted(close.tolist(), key=self._exact_impurity)[:n_latents]

    def _exact_impurity(self, latent: int) -> tuple[bool, Fraction]:
        left, left_positive = int(self.left_N[latent]), int(self.left_positive_N[latent])
        if left == 0:
            return True, Fraction(0)
        right, right_positive = self.total - left, self.positive - left_positive
        parts = Fraction(left_positive * (left - left_positive), left)
        return False, parts + Fraction(right_positive * (right - right_positive), right)

    def predict(self, latent: int, values_B: NDArray[np.float32]) -> Bools:
        """Classify samples by the split of one latent and the majority of each side; the negative class in a tie."""
        left, left_positive = int(self.left_N[latent]), int(self.left_positive_N[latent])
        if left == 0:
            return np.full(len(values_B), 2 * self.positive > self.total)
        left_class = 2 * left_positive > left
        right_class = 2 * (self.positive - left_positive) > self.total - left
        return np.where(values_B <= self.threshold_N[latent], left_class, right_class)


@dataclass
class Node:
    """A node of a tree; a leaf has no latent. Its samples count `total`, the positive ones `positive`."""

    depth: int
    total: int
    positive: int
    parent: int = -1
    latent: int = -1
    threshold: float = 0.0
    left: int = -1
    right: int = -1

    @property
    def is_pure(self) -> bool:
        """Whether all its samples are of one class."""
        return self.positive in (0, self.total)

    @property
    def predicts_positive(self) -> bool:
        """Its class; the negative one in a tie."""
        return 2 * self.positive > self.total


@dataclass
class Tree:
    """A tree grown until its leaves are pure, or hold samples that no latent tells apart; node 0 is the root.

    Attributes:
        nodes: children after their parents.
        leaf_of_B: where each sample that it was grown on ends.
    """

    nodes: list[Node]
    leaf_of_B: NDArray[np.int64]

    @property
    def depth(self) -> int:
        """The number of splits on the longest path."""
        return self.nodes[-1].depth

    def score(
        self, leaf_of_B: NDArray[np.int64], labels: Labels, generous: bool = False
    ) -> tuple[list[float], NDArray[np.int64]]:
        """Classify samples by the tree, cut to 0, 1, ... `depth` splits.

        Args:
            leaf_of_B: where they end, see `leaves`.
            labels: theirs.
            generous: take every sample of a leaf above the cut for correct, as the authors' script does.

        Returns:
            The accuracy of each cut; and for each sample, at how many cuts of two splits or more it is correct.
        """
        parents = np.array([node.parent for node in self.nodes])
        depths = np.array([node.depth for node in self.nodes])
        predicts = np.array([node.predicts_positive for node in self.nodes])
        weights = np.array(labels.weights)
        correct, deep_cuts_B = score_cuts(
            leaf_of_B, parents, depths, predicts, labels.values_B, weights, self.depth, generous
        )
        return [count / labels.total for count in correct.tolist()], deep_cuts_B

    def leaves(self, latents: LatentBlocks) -> NDArray[np.int64]:
        """Return the leaf that each of other samples ends in."""
        latent, left, right = (np.array([getattr(node, k) for node in self.nodes]) for k in ("latent", "left", "right"))
        threshold = np.array([node.threshold for node in self.nodes])
        at_B = np.zeros(latents.n_samples, np.int64)
        moving_B = np.arange(latents.n_samples)
        while len(moving_B := moving_B[latent[at_B[moving_B]] >= 0]):
            here = at_B[moving_B]
            goes_left = latents.values(moving_B, latent[here]) <= threshold[here]
            at_B[moving_B] = np.where(goes_left, left[here], right[here])
        return at_B


def grow_tree(columns: Columns, labels: Labels, stumps: Stumps) -> Tree:
    """Grow the full tree, level by level.

    Args:
        columns: the samples' latents.
        labels: their labels.
        stumps: the best splits of those latents for those labels; the best of all is the root's.
    """
    n_samples = len(labels.values_B)
    tree = Tree([Node(0, labels.total, labels.positive)], np.zeros(n_samples, np.int64))
    root = stumps.best(1)[0]
    chosen, thresholds = np.array([root if stumps.left_N[root] > 0 else -1]), stumps.threshold_N[[root]]
    level = [] if tree.nodes[0].is_pure else [0]
    latents = columns.latents
    covered_B = inside_B = np.arange(n_samples)  # the samples of `columns`, and those whose node may be split
    node_of_B = np.zeros(n_samples, np.int64)  # of those inside, counted within the level
    while level:
        moving = chosen[node_of_B] >= 0
        inside_B, node_of_B = inside_B[moving], node_of_B[moving]
        goes_right_B = latents.values(inside_B, chosen[node_of_B]) > thresholds[node_of_B]
        child_B = 2 * node_of_B + goes_right_B
        number_of_child, level, place_of_child = _add_children(
            tree, level, chosen, thresholds, child_B, labels.only(inside_B)
        )
        tree.leaf_of_B[inside_B] = number_of_child[child_B]
        node_of_B = place_of_child[child_B]
        inside_B, node_of_B = inside_B[node_of_B >= 0], node_of_B[node_of_B >= 0]
        if 2 * len(inside_B) <= len(covered_B):  # do not walk over the others on every level below
            columns, covered_B = columns.only(np.searchsorted(covered_B, inside_B)), inside_B
        if level:
            code_B = np.full(len(covered_B), -1, np.int32)
            code_B[np.searchsorted(covered_B, inside_B)] = 2 * node_of_B + labels.values_B[inside_B]
            chosen, thresholds = _best_splits(columns, code_B, labels, [tree.nodes[number] for number in level])
    return tree


def _add_children(
    tree: Tree,
    level: list[int],
    chosen: NDArray[np.int64],
    thresholds: NDArray[np.float64],
    child_B: NDArray[np.int64],
    labels: Labels,
) -> tuple[NDArray[np.int64], list[int], NDArray[np.int64]]:
    """Split the nodes of a level.

    Args:
        tree: what grows.
        level: its nodes.
        chosen: the latent by which each is split, or -1.
        thresholds: where.
        child_B: where the samples of those that are split go: twice the place of their node on the level, plus 1 for
            the right side.
        labels: of these samples.

    Returns:
        The number of each child, or -1; the next level, of the children that may be split; the place of each there.
    """
    total = np.bincount(child_B, labels.weight_B, 2 * len(level)).astype(int).tolist()
    positive = np.bincount(child_B, labels.weight_B * labels.values_B, 2 * len(level)).astype(int).tolist()
    number_of_child, place_of_child = np.full(2 * len(level), -1), np.full(2 * len(level), -1)
    below: list[int] = []
    for parent in np.flatnonzero(chosen >= 0).tolist():
        node = tree.nodes[level[parent]]
        node.latent, node.threshold = int(chosen[parent]), float(thresholds[parent])
        node.left, node.right = len(tree.nodes), len(tree.nodes) + 1
        for child in (2 * parent, 2 * parent + 1):
            number_of_child[child] = len(tree.nodes)
            tree.nodes.append(Node(node.depth + 1, total[child], positive[child], level[parent]))
            if not tree.nodes[-1].is_pure:
                place_of_child[child] = len(below)
                below.append(len(tree.nodes) - 1)
    return number_of_child, below, place_of_child


def _best_splits(
    columns: Columns,
    code_B: NDArray[np.int32],
    labels: Labels,
    nodes: list[Node],
    of_latents: tuple[NDArray, NDArray] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the best latent and threshold of each node, -1 where nothing tells its samples apart; see the kernel."""
    totals, positives = np.array([node.total for node in nodes]), np.array([node.positive for node in nodes])
    arrays = (columns.starts, columns.samples, code_B, np.array(labels.weights), totals, positives)
    of_latents = of_latents or (np.empty((0, 2), np.int64), np.empty(0))
    found, *others = by_blocks(columns.latents, splits_of_level, *arrays, of_latents)
    for other in others:
        keep_better(found, other, totals, positives)
    return found[0], found[2]
