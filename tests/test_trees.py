"""Exact trees against scikit-learn's, and against a plain search where scikit-learn leaves ties to chance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier

from tests.plain import plain_accuracy_by_depth
from utils.columns import Columns
from utils.latent_blocks import LatentBlocks
from utils.trees import Labels, Stumps, grow_tree


def columns_of(values_BN):
    return Columns.of(LatentBlocks.of(values_BN))


def grow(values_BN, labels_B):
    columns, labels = columns_of(values_BN), Labels(labels_B.astype(np.int8))
    return grow_tree(columns, labels, Stumps.of(columns, labels))


def correct_by_depth(tree, labels_B):
    accuracies, _ = tree.score(tree.leaf_of_B, Labels(labels_B.astype(np.int8)))
    return [round(accuracy * len(labels_B)) for accuracy in accuracies]


def sklearn_correct(values_BN, labels_B, depth):
    tree = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(values_BN, labels_B)
    return int((tree.predict(values_BN) == labels_B).sum())


@pytest.mark.parametrize("seed", range(8))
def test_full_tree_equals_sklearn_where_no_latents_tie(seed):
    random = np.random.default_rng(seed)
    labels_B = random.random(120) < 0.4
    values_BN = (random.normal(size=(120, 12)) + 0.8 * labels_B[:, None]).astype(np.float32)
    tree = grow(values_BN, labels_B)
    full = DecisionTreeClassifier(random_state=0).fit(values_BN, labels_B)
    correct = correct_by_depth(tree, labels_B)
    # Below the first levels nodes hold few samples, several latents split them equally, and scikit-learn picks one.
    assert abs(tree.depth - full.get_depth()) <= 3
    assert correct[0] == max(labels_B.sum(), (~labels_B).sum())
    assert correct[-1] == 120
    for depth in (1, 2):
        assert correct[depth] == sklearn_correct(values_BN, labels_B, depth)
    assert tree.nodes[0].latent == full.tree_.feature[0]
    assert tree.nodes[0].threshold == full.tree_.threshold[0]


@pytest.mark.parametrize("seed", range(6))
def test_one_latent_gives_sklearns_tree_to_the_last_leaf(seed):
    random = np.random.default_rng(seed)
    labels_B = random.random(80) < 0.5
    values_BN = random.integers(0, 25, size=(80, 1)).astype(np.float32)  # repeated values with both labels
    tree = grow(values_BN, labels_B)
    full = DecisionTreeClassifier(random_state=0).fit(values_BN, labels_B)
    assert tree.depth == full.get_depth()
    assert len(tree.nodes) == full.tree_.node_count
    for depth in range(1, tree.depth + 1):
        assert correct_by_depth(tree, labels_B)[depth] == sklearn_correct(values_BN, labels_B, depth)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 24), st.integers(1, 5), st.integers(1, 4))
def test_ties_go_to_the_lowest_latent(seed, n_samples, n_latents, n_values):
    random = np.random.default_rng(seed)
    lowest = random.choice([0, -1, -n_values, 1])  # with and without zeros and negative values
    values_BN = random.integers(lowest, n_values + lowest + 1, size=(n_samples, n_latents)).astype(np.float32)
    labels_B = random.random(n_samples) < 0.5
    expected = plain_accuracy_by_depth(values_BN, labels_B, np.ones(n_samples, int))
    assert correct_by_depth(grow(values_BN, labels_B), labels_B) == pytest.approx(np.multiply(expected, n_samples))


def test_chain_as_long_as_the_samples_needs_no_recursion():
    n_samples = 4001
    labels_B = np.arange(n_samples) % 2 == 0
    tree = grow(np.arange(n_samples, dtype=np.float32)[:, None], labels_B)
    assert correct_by_depth(tree, labels_B)[-1] == n_samples


def test_values_within_1e_7_are_one():
    values_BN = np.array([[0.5], [0.5 + 5e-8], [0.9]], np.float32)
    assert Stumps.of(columns_of(values_BN), Labels(np.array([1, 0, 0], np.int8))).left_N[0] == 2


def test_neighbouring_floats_above_one_are_told_apart():
    low = np.nextafter(np.float32(4), np.float32(5))
    labels_B = np.array([True, False])
    tree = grow(np.array([[low], [np.nextafter(low, np.float32(5))]]), labels_B)
    assert correct_by_depth(tree, labels_B) == [1, 2]


def test_equal_splits_whose_scores_round_differently_tie():
    # 3 of 4 and 1 of 4 positive on either side: mirrored sides, the same impurity as a fraction.
    labels_B = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0, 0])
    one = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], np.float32)
    stumps = Stumps.of(columns_of(np.stack([1 - one, one, 2 * one], axis=1)), Labels(labels_B.astype(np.int8)))
    assert stumps.best(3) == [0, 1, 2]


def test_correct_on_other_samples_follows_the_tree():
    random = np.random.default_rng(3)
    labels_B = random.random(150) < 0.5
    values_BN = (random.normal(size=(150, 4)) + labels_B[:, None]).astype(np.float32)
    tree = grow(values_BN[:100], labels_B[:100])
    fitted = LatentBlocks.of(values_BN[:100])
    assert tree.leaves(fitted).tolist() == tree.leaf_of_B.tolist()
    stump = DecisionTreeClassifier(max_depth=1, random_state=0).fit(values_BN[:100], labels_B[:100])
    expected = (stump.predict(values_BN[100:]) == labels_B[100:]).mean()
    others = Labels(labels_B[100:].astype(np.int8))
    accuracies, _ = tree.score(tree.leaves(LatentBlocks.of(values_BN[100:])), others)
    assert accuracies[1] == pytest.approx(expected, abs=1e-12)
