"""Exact Gini decision trees over latents, as FMS needs them: every tie is decided, every accuracy is counted.

The splits are those of scikit-learn's `DecisionTreeClassifier` (its impurity, its thresholds between values, its rule
that neighbouring values within 1e-7 are one), except that scikit-learn lets chance decide between latents that split
equally well, while here the latent with the lowest index wins.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from utils.columns import Columns
from utils.splits import CLOSE, best_of_parts, sides_of_samples, splits_of_level, stumps
from utils.threads import equal_parts, in_threads

Labels = NDArray[np.int8]


@dataclass(frozen=True)
class Stumps:
    """The best split of every latent on its own.

    Attributes:
        n_samples: samples they were fitted on, `n_positives` of them positive.
        left_N: samples on the left side, 0 where a latent has but one value; `left_positives_N` positive ones.
        threshold_N: a sample goes left where its value is at most this.
    """

    n_samples: int
    n_positives: int
    left_N: NDArray[np.int64]
    left_positives_N: NDArray[np.int64]
    threshold_N: NDArray[np.float64]

    @classmethod
    def of(cls, columns: Columns, labels_B: Labels) -> "Stumps":
        """Find the best Gini split of each latent; labels are 0 or 1."""
        sides_N2, threshold_N = np.zeros((columns.n_latents, 2), np.int64), np.zeros(columns.n_latents)
        arrays = (columns.latents_NB, columns.starts, columns.samples, labels_B, sides_N2, threshold_N)
        in_threads(stumps, equal_parts(columns.n_latents), *arrays)
        return cls(len(labels_B), int(labels_B.sum()), sides_N2[:, 0], sides_N2[:, 1], threshold_N)

    def best(self, n_latents: int) -> list[int]:
        """Return the best latents in their order, the lower index first among equals; those that split nothing last."""
        left, left_positives = self.left_N.astype(np.float64), self.left_positives_N.astype(np.float64)
        right, right_positives = self.n_samples - left, self.n_positives - left_positives
        with np.errstate(divide="ignore", invalid="ignore"):
            impurity_N = left_positives * (left - left_positives) / left
            impurity_N += right_positives * (right - right_positives) / right
        impurity_N[self.left_N == 0] = np.inf
        order = np.argsort(impurity_N, kind="stable")[: n_latents + 1]
        # Latents as good as the last one wanted may have lower indices; whole numbers decide among the close ones.
        limit = impurity_N[order[-1]]
        close = np.flatnonzero(impurity_N <= limit * (1 + CLOSE)) if np.isfinite(limit) else np.arange(len(impurity_N))
        return sorted(close.tolist(), key=self._exact_impurity)[:n_latents]

    def _exact_impurity(self, latent: int) -> tuple[bool, Fraction]:
        left, left_positives = int(self.left_N[latent]), int(self.left_positives_N[latent])
        if left == 0:
            return True, Fraction(0)
        right, right_positives = self.n_samples - left, self.n_positives - left_positives
        parts = Fraction(left_positives * (left - left_positives), left)
        return False, parts + Fraction(right_positives * (right - right_positives), right)

    def correct(self, latent: int) -> int:
        """Return how many of its samples the split of one latent classifies correctly by the majority of each side."""
        left, left_positives = int(self.left_N[latent]), int(self.left_positives_N[latent])
        right, right_positives = self.n_samples - left, self.n_positives - left_positives
        return max(left_positives, left - left_positives) + max(right_positives, right - right_positives)

    @property
    def majority(self) -> int:
        """The number of samples of the larger class."""
        return max(self.n_positives, self.n_samples - self.n_positives)

    def predict(self, latent: int, values_B: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Classify other samples by the split of one latent; the negative class in a tie."""
        left, left_positives = int(self.left_N[latent]), int(self.left_positives_N[latent])
        if left == 0:
            return np.full(len(values_B), 2 * self.n_positives > self.n_samples)
        left_class = 2 * left_positives > left
        right_class = 2 * (self.n_positives - left_positives) > self.n_samples - left
        return np.where(values_B <= self.threshold_N[latent], left_class, right_class)


@dataclass
class Node:
    """A node of a tree; a leaf has no latent."""

    depth: int
    n_samples: int
    n_positives: int
    latent: int | None = None
    threshold: float = 0.0
    left: int = -1
    right: int = -1

    @property
    def majority(self) -> int:
        """The number of its samples that its majority class classifies correctly."""
        return max(self.n_positives, self.n_samples - self.n_positives)

    @property
    def is_pure(self) -> bool:
        """Whether all its samples are of one class."""
        return self.n_positives in (0, self.n_samples)

    @property
    def predicts_positive(self) -> bool:
        """Its class; the negative one in a tie."""
        return 2 * self.n_positives > self.n_samples


@dataclass
class Tree:
    """A tree grown until its leaves are pure, or hold samples that no latent tells apart; node 0 is the root."""

    nodes: list[Node] = field(default_factory=list)

    @property
    def depth(self) -> int:
        """The number of splits on the longest path."""
        return max(node.depth for node in self.nodes)

    def correct_by_depth(self) -> list[int]:
        """Return the training samples classified correctly when the tree is cut to 0, 1, ... `depth` splits."""
        return self._count(lambda leaf: leaf.majority)

    def correct_by_depth_released(self) -> list[int]:
        """Return the same, with every sample of a leaf above the cut taken for correct, as the authors' script does."""
        return self._count(lambda leaf: leaf.n_samples)

    def _count(self, of_earlier_leaf: Callable[[Node], int]) -> list[int]:
        counts = np.zeros(self.depth + 1, np.int64)
        for node in self.nodes:
            counts[node.depth] += node.majority
            if node.latent is None:
                counts[node.depth + 1 :] += of_earlier_leaf(node)
        return counts.tolist()

    def correct_on(self, latents_BN: NDArray[np.float32], labels_B: Labels) -> list[int]:
        """Return how many of other samples the tree classifies correctly when cut to 0, 1, ... `depth` splits."""
        counts = []
        at_B = np.zeros(len(labels_B), np.int64)
        rows = np.arange(len(labels_B))
        predicts = np.array([node.predicts_positive for node in self.nodes])
        latent = np.array([-1 if node.latent is None else node.latent for node in self.nodes])
        threshold = np.array([node.threshold for node in self.nodes])
        left, right = (np.array([getattr(node, side) for node in self.nodes]) for side in ("left", "right"))
        for _ in range(self.depth + 1):
            counts.append(int((predicts[at_B] == labels_B).sum()))
            goes_left_B = latents_BN[rows, latent[at_B]] <= threshold[at_B]
            at_B = np.where(latent[at_B] < 0, at_B, np.where(goes_left_B, left[at_B], right[at_B]))
        return counts


def grow_tree(columns: Columns, labels_B: Labels) -> Tree:
    """Grow the full tree, level by level; labels are 0 or 1."""
    tree = Tree([Node(0, len(labels_B), int(labels_B.sum()))])
    node_of_B = np.zeros(len(labels_B), np.int64)  # counted within the level; -1: done with
    level = [] if tree.nodes[0].is_pure else [0]
    arrays = (columns.latents_NB, columns.starts, columns.samples, labels_B)
    while level:
        nodes = [tree.nodes[number] for number in level]
        node_n = np.array([node.n_samples for node in nodes])
        node_positives = np.array([node.n_positives for node in nodes])
        parts = equal_parts(columns.n_latents)
        found = in_threads(splits_of_level, parts, *arrays, node_of_B, node_n, node_positives)
        latents, sides, cuts = (np.stack(values) for values in zip(*found, strict=True))
        chosen, thresholds = best_of_parts(latents, sides, cuts, node_n, node_positives)
        goes_left_B = sides_of_samples(columns.latents_NB, node_of_B, chosen, thresholds)
        inside_B = node_of_B >= 0
        child_of_B = np.where(inside_B, 2 * node_of_B + ~goes_left_B, 0)
        n_child = np.bincount(child_of_B[inside_B], minlength=2 * len(nodes))
        positives_child = np.bincount(child_of_B[inside_B], labels_B[inside_B], 2 * len(nodes)).astype(np.int64)
        place = np.full(2 * len(nodes), -1)  # of each child on the next level
        level = []
        for parent, node in enumerate(nodes):
            if chosen[parent] < 0:
                continue
            node.latent, node.threshold = int(chosen[parent]), float(thresholds[parent])
            node.left, node.right = len(tree.nodes), len(tree.nodes) + 1
            for child in (2 * parent, 2 * parent + 1):
                tree.nodes.append(Node(node.depth + 1, int(n_child[child]), int(positives_child[child])))
                if not tree.nodes[-1].is_pure:
                    place[child] = len(level)
                    level.append(len(tree.nodes) - 1)
        node_of_B = np.where(inside_B, place[child_of_B], -1)
    return tree
