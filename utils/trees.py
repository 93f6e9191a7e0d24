"""Exact Gini decision trees over latents, as FMS needs them: every tie is decided, every accuracy is counted.

The splits are those of scikit-learn's `DecisionTreeClassifier` (its impurity, its thresholds between values, its rule
that values within 1e-7 are one), except that scikit-learn lets chance decide between latents that split equally well,
while here the latent with the lowest index wins.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SAME_VALUE = 1e-7
_LATENTS_AT_ONCE = 256

Floats = NDArray[np.float32]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Stumps:
    """The best split of every latent on its own; N latents.

    Attributes:
        score_N: purity of the two sides, sum over sides of (negatives^2 + positives^2) / size; higher is better,
            and -inf where a latent has but one value.
        threshold_N: a sample goes left where its value is at most this.
        left_N: number of samples on the left, and `left_positives_N` of the positive ones among them.
    """

    score_N: NDArray[np.float64]
    threshold_N: NDArray[np.float64]
    left_N: NDArray[np.int64]
    left_positives_N: NDArray[np.int64]

    def ranking(self) -> NDArray[np.int64]:
        """Return the latents from best to worst, the lower index first among equals."""
        return np.argsort(-self.score_N, kind="stable")

    def correct(self, latent: int, n_samples: int, n_positives: int) -> int:
        """Return how many samples the split of one latent classifies correctly by the majority of each side."""
        if np.isneginf(self.score_N[latent]):
            return max(n_positives, n_samples - n_positives)
        left, left_positives = int(self.left_N[latent]), int(self.left_positives_N[latent])
        right, right_positives = n_samples - left, n_positives - left_positives
        return max(left_positives, left - left_positives) + max(right_positives, right - right_positives)

    def predict(self, latent: int, values_B: Floats, n_fitted: int, n_fitted_positives: int) -> Booleans:
        """Classify other samples by the split of one latent, fitted on so many samples; the negative class in a tie."""
        if np.isneginf(self.score_N[latent]):
            return np.full(len(values_B), 2 * n_fitted_positives > n_fitted)
        left, left_positives = int(self.left_N[latent]), int(self.left_positives_N[latent])
        left_class = 2 * left_positives > left
        right_class = 2 * (n_fitted_positives - left_positives) > n_fitted - left
        return np.where(values_B <= self.threshold_N[latent], left_class, right_class)


def best_stumps(values_NB: Floats, labels_B: Booleans) -> Stumps:
    """Find the best Gini split of each latent.

    Args:
        values_NB: latents by samples; finite.
        labels_B: True for positive samples.
    """
    chunks = range(0, len(values_NB), _LATENTS_AT_ONCE)
    parts = [_stumps_of_chunk(values_NB[start : start + _LATENTS_AT_ONCE], labels_B) for start in chunks]
    return Stumps(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _stumps_of_chunk(values_NB: Floats, labels_B: Booleans) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    n_samples = values_NB.shape[1]
    order_NB = np.argsort(values_NB, axis=1)
    sorted_NB = np.take_along_axis(values_NB, order_NB, axis=1)
    positives_NB = np.cumsum(labels_B[order_NB], axis=1, dtype=np.float64)
    n_positives = positives_NB[0, -1]
    left_positives_NS = positives_NB[:, :-1]  # S = B - 1 places to split
    left_S = np.arange(1, n_samples, dtype=np.float64)
    right_positives_NS = n_positives - left_positives_NS
    right_S = n_samples - left_S
    score_NS = (left_positives_NS**2 + (left_S - left_positives_NS) ** 2) / left_S
    score_NS += (right_positives_NS**2 + (right_S - right_positives_NS) ** 2) / right_S
    score_NS[sorted_NB[:, 1:] <= sorted_NB[:, :-1] + np.float32(SAME_VALUE)] = -np.inf
    place_N = np.argmax(score_NS, axis=1)
    latents = np.arange(len(values_NB))
    below_N, above_N = (sorted_NB[latents, place].astype(np.float64) for place in (place_N, place_N + 1))
    middle_N = below_N / 2 + above_N / 2
    threshold_N = np.where(middle_N < above_N, middle_N, below_N)  # rounding must not move the split
    left_positives_N = left_positives_NS[latents, place_N].astype(np.int64)
    return score_NS[latents, place_N], threshold_N, place_N + 1, left_positives_N


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

    def add(self, depth: int, labels_B: Booleans) -> Node:
        """Append a node for samples with these labels."""
        node = Node(depth, len(labels_B), int(labels_B.sum()))
        self.nodes.append(node)
        return node

    def correct_by_depth(self) -> list[int]:
        """Return the training samples classified correctly when the tree is cut to 0, 1, ... `depth` splits."""
        return self._count(lambda leaf: leaf.majority)

    def correct_by_depth_released(self) -> list[int]:
        """Return the same, with every sample of a leaf above the cut taken for correct, as the authors' script does."""
        return self._count(lambda leaf: leaf.n_samples)

    def _count(self, of_earlier_leaf: Callable[[Node], int]) -> list[int]:
        counts = [0] * (self.depth + 1)
        for node in self.nodes:
            counts[node.depth] += node.majority
            if node.latent is None:
                for depth in range(node.depth + 1, len(counts)):
                    counts[depth] += of_earlier_leaf(node)
        return counts

    def correct_on(self, values_NB: Floats, labels_B: Booleans) -> list[int]:
        """Return how many of other samples the tree classifies correctly when cut to 0, 1, ... `depth` splits."""
        counts = []
        at_B = np.zeros(len(labels_B), np.int64)
        columns = np.arange(len(labels_B))
        predicts = np.array([node.predicts_positive for node in self.nodes])
        latent = np.array([-1 if node.latent is None else node.latent for node in self.nodes])
        threshold = np.array([node.threshold for node in self.nodes])
        left, right = (np.array([getattr(node, side) for node in self.nodes]) for side in ("left", "right"))
        for _ in range(self.depth + 1):
            counts.append(int((predicts[at_B] == labels_B).sum()))
            goes_left_B = values_NB[latent[at_B], columns] <= threshold[at_B]
            at_B = np.where(latent[at_B] < 0, at_B, np.where(goes_left_B, left[at_B], right[at_B]))
        return counts


def grow_tree(values_NB: Floats, labels_B: Booleans, root: Stumps | None = None) -> Tree:
    """Grow the full tree.

    Args:
        values_NB: latents by samples; finite.
        labels_B: True for positive samples.
        root: the stumps over all samples, where they are known already.
    """
    tree = Tree()
    stumps = root if root is not None else best_stumps(values_NB, labels_B)
    # A stack, not recursion: a chain of splits may be as long as there are samples.
    latents = np.arange(len(values_NB))
    waiting = [(tree.add(0, labels_B), values_NB, labels_B, latents, stumps)]
    while waiting:
        node, values_NB, labels_B, latents_N, stumps = waiting.pop()
        best = int(np.argmax(stumps.score_N))
        if node.is_pure or np.isneginf(stumps.score_N[best]):
            continue
        node.latent, node.threshold = int(latents_N[best]), float(stumps.threshold_N[best])
        goes_left_B = values_NB[best] <= node.threshold
        varies_N = ~np.isneginf(stumps.score_N)  # the others are constant below this node, too
        for goes_B, side in ((goes_left_B, "left"), (~goes_left_B, "right")):
            setattr(node, side, len(tree.nodes))
            child = tree.add(node.depth + 1, labels_B[goes_B])
            if not child.is_pure:
                values, labels = values_NB[np.ix_(varies_N, goes_B)], labels_B[goes_B]
                waiting.append((child, values, labels, latents_N[varies_N], best_stumps(values, labels)))
    return tree
