"""Exact trees against scikit-learn's, and against a plain search where scikit-learn leaves ties to chance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier

from tests.plain import plain_correct_by_depth
from utils.trees import best_stumps, grow_tree


def sklearn_correct(values_BN, labels_B, depth):
    tree = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(values_BN, labels_B)
    return int((tree.predict(values_BN) == labels_B).sum())


@pytest.mark.parametrize("seed", range(8))
def test_full_tree_equals_sklearn_where_no_latents_tie(seed):
    random = np.random.default_rng(seed)
    labels_B = random.random(120) < 0.4
    values_BN = (random.normal(size=(120, 12)) + 0.8 * labels_B[:, None]).astype(np.float32)
    tree = grow_tree(values_BN.T.copy(), labels_B)
    full = DecisionTreeClassifier(random_state=0).fit(values_BN, labels_B)
    correct = tree.correct_by_depth()
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
    tree = grow_tree(values_BN.T.copy(), labels_B)
    full = DecisionTreeClassifier(random_state=0).fit(values_BN, labels_B)
    assert tree.depth == full.get_depth()
    assert len(tree.nodes) == full.tree_.node_count
    for depth in range(1, tree.depth + 1):
        assert tree.correct_by_depth()[depth] == sklearn_correct(values_BN, labels_B, depth)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 24), st.integers(1, 5), st.integers(1, 4))
def test_ties_go_to_the_lowest_latent(seed, n_samples, n_latents, n_values):
    random = np.random.default_rng(seed)
    values_BN = random.integers(0, n_values + 1, size=(n_samples, n_latents)).astype(np.float32)
    labels_B = random.random(n_samples) < 0.5
    assert grow_tree(values_BN.T.copy(), labels_B).correct_by_depth() == plain_correct_by_depth(values_BN, labels_B)


def test_chain_as_long_as_the_samples_needs_no_recursion():
    n_samples = 4001
    values_NB = np.arange(n_samples, dtype=np.float32)[None]
    labels_B = np.arange(n_samples) % 2 == 0
    tree = grow_tree(values_NB, labels_B)
    assert tree.correct_by_depth()[-1] == n_samples


def test_values_within_1e_7_are_one():
    values_NB = np.array([[0.5, 0.5 + 5e-8, 0.9]], np.float32)
    stumps = best_stumps(values_NB, np.array([True, False, False]))
    assert stumps.left_N[0] == 2


def test_correct_on_other_samples_follows_the_tree():
    random = np.random.default_rng(3)
    labels_B = random.random(150) < 0.5
    values_NB = (random.normal(size=(4, 150)) + labels_B).astype(np.float32)
    tree = grow_tree(values_NB[:, :100].copy(), labels_B[:100])
    assert tree.correct_on(values_NB[:, :100], labels_B[:100]) == tree.correct_by_depth()
    stump = DecisionTreeClassifier(max_depth=1, random_state=0).fit(values_NB[:, :100].T, labels_B[:100])
    expected = (stump.predict(values_NB[:, 100:].T) == labels_B[100:]).sum()
    assert tree.correct_on(values_NB[:, 100:], labels_B[100:])[1] == expected
