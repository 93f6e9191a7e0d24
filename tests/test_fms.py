"""FMS against a plain re-statement of the formula with refitted scikit-learn trees, and against closed forms."""

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier

from tests.plain import plain_fms
from utils.errors import UserError
from utils.fms import N_REMOVED, fms, fms_of_concepts, shuffled


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("mode", ["paper", "released"])
def test_random_latents_equal_the_restated_formula(seed, mode):
    random = np.random.default_rng(seed)
    labels_B = (random.random(70) < 0.5).astype(int)
    latents_BN = random.normal(size=(70, 4)).astype(np.float32)
    latents_BN[:, 0] += labels_B * random.uniform(0, 6)
    score = fms(latents_BN, labels_B, mode)
    for p in (1, 3):
        # No row repeats, so leaves above the cut are pure and both ways to count them agree.
        assert score.at(p) == pytest.approx(plain_fms(latents_BN, labels_B, p, mode), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 40), st.integers(2, 5), st.integers(1, 5))
def test_repeated_rows_with_different_labels_equal_the_restated_formula(seed, n_samples, n_latents, n_values):
    random = np.random.default_rng(seed)
    labels_B = random.permutation(np.arange(n_samples) % 2)
    latents_BN = random.integers(0, n_values + 1, size=(n_samples, n_latents)).astype(np.float32)
    assert fms(latents_BN, labels_B).at(1) == pytest.approx(plain_fms(latents_BN, labels_B, 1), abs=1e-12)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_refitted_sklearn_trees_give_the_same_accuracies(class_weight):
    """The protocol as it is described: eleven fits, each after the root of the one before was set to 0."""
    random = np.random.default_rng(7)
    labels_B = (random.random(400) < 0.3).astype(int)
    latents_BN = random.normal(size=(400, 30)).astype(np.float32) + labels_B[:, None] * np.linspace(0, 2, 30)
    latents_BN = (latents_BN * (random.random((400, 30)) < 0.6)).astype(np.float32)
    score = fms(latents_BN, labels_B, balanced=class_weight is not None)
    weight_B = np.ones(400) if class_weight is None else 200 / np.bincount(labels_B)[labels_B]
    left_BN = latents_BN.copy()
    for p in range(N_REMOVED + 1):
        tree = DecisionTreeClassifier(max_depth=1, random_state=0, class_weight=class_weight).fit(left_BN, labels_B)
        accuracy = tree.score(left_BN, labels_B, weight_B)
        assert score.accs[p] == pytest.approx(accuracy, abs=1e-12)
        assert score.roots[p] == tree.tree_.feature[0]
        left_BN[:, tree.tree_.feature[0]] = 0
    for depth in (1, 2, 3):  # deeper ones have equal splits, of which scikit-learn picks one by chance
        tree = DecisionTreeClassifier(max_depth=depth, random_state=0, class_weight=class_weight)
        accuracy = tree.fit(latents_BN, labels_B).score(latents_BN, labels_B, weight_B)
        assert score.accs_by_depth[depth] == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize("balanced", [False, True])
def test_thousands_of_small_problems_equal_the_restated_formula(balanced):
    """With ties, repeated rows, constant latents, zeros and negative values; half of them sparse."""
    random = np.random.default_rng(balanced)
    for problem in range(1000):
        n_samples, n_latents = random.integers(4, 13), random.integers(1, 4)
        labels_B = random.permutation(np.arange(n_samples) < random.integers(1, n_samples)).astype(int)
        latents_BN = random.integers(-1, 4, size=(n_samples, n_latents)).astype(np.float32)
        given = latents_BN if problem % 2 else scipy.sparse.csr_array(latents_BN)
        expected = plain_fms(latents_BN, labels_B, 1, balanced=balanced)
        assert fms(given, labels_B, balanced=balanced).at(1) == pytest.approx(expected, abs=1e-12), problem


def test_latents_may_come_in_any_form():
    random = np.random.default_rng(0)
    labels_B = np.arange(90) % 3 == 0
    latents_BN = (random.normal(size=(90, 300)) * (random.random((90, 300)) < 0.2) + labels_B[:, None]).astype(
        np.float16
    )
    tensor_BN = torch.from_numpy(latents_BN)
    forms = [
        latents_BN.astype(np.float32),
        np.asfortranarray(latents_BN),
        latents_BN.astype(np.float64)[:, ::-1][:, ::-1],
        scipy.sparse.csr_array(latents_BN.astype(np.float32)),
        scipy.sparse.coo_matrix(latents_BN.astype(np.float64)),
        tensor_BN,
        tensor_BN.float().t().contiguous().t().requires_grad_(),
        tensor_BN.float().to_sparse_coo(),
        tensor_BN.float().to_sparse_csr(),
    ]
    for mode in ("paper", "heldout"):
        expected = fms(latents_BN, labels_B, mode)
        for form in forms:
            assert fms(form, torch.from_numpy(labels_B), mode).accs_by_depth == expected.accs_by_depth
    # bfloat16 has other values, but goes the way of tensors on a GPU.
    assert fms(tensor_BN.bfloat16(), labels_B).accs == fms(tensor_BN.bfloat16().float(), labels_B).accs


def test_several_concepts_are_scored_as_one_by_one():
    random = np.random.default_rng(0)
    labels_BC = random.random((120, 3)) < 0.3
    latents_BN = random.normal(size=(120, 20)) + labels_BC.repeat([8, 8, 4], axis=1)
    for mode in ("paper", "released", "heldout"):
        together = fms_of_concepts(latents_BN, labels_BC, mode, seed=3)
        alone = [fms(latents_BN, labels_BC[:, c], mode, seed=3) for c in range(3)]
        assert [score.at(5) for score in together] == [score.at(5) for score in alone]


def test_balanced_classes_count_the_same():
    labels_B = np.arange(100) < 10
    score = fms(np.ones((100, 2)), labels_B, balanced=True)
    assert score.accs[0] == 0.5  # what chance gives, not the share of the larger class
    assert fms(np.ones((100, 2)), labels_B).accs[0] == 0.9


def test_scaling_a_latent_or_adding_a_constant_one_changes_nothing():
    random = np.random.default_rng(5)
    labels_B = random.random(150) < 0.4
    latents_BN = random.normal(size=(150, 5)).astype(np.float32) + labels_B[:, None] * np.arange(5, dtype=np.float32)
    score = fms(latents_BN, labels_B)
    scaled = fms(latents_BN * np.array([4, 0.5, 2, 8, 1], np.float32), labels_B)
    constant = fms(np.concatenate([latents_BN, np.full((150, 1), 0.7, np.float32)], axis=1), labels_B)
    assert (scaled.accs, scaled.accs_by_depth) == (score.accs, score.accs_by_depth)
    assert (constant.accs[:5], constant.accs_by_depth) == (score.accs[:5], score.accs_by_depth)


@pytest.mark.parametrize("mode", ["paper", "released", "heldout"])
def test_interval_holds_the_score_and_narrows_with_the_samples(mode):
    random = np.random.default_rng(1)
    widths = []
    for n_samples in (60, 960):
        labels_B = np.arange(n_samples) % 2
        latents_BN = random.normal(size=(n_samples, 3)) + 2 * labels_B[:, None] * np.array([1, 0, 0])
        score = fms(latents_BN, labels_B, mode)
        low, high = score.interval(1)
        assert low < score.at(1) < high
        assert score.interval(1) == (low, high)
        widths.append(high - low)
    assert widths[1] < 0.45 * widths[0]  # a quarter, as the root of the number of samples


def test_interval_covers_what_many_samples_give():
    """A fixed classifier, right in 80 % of cases: about 95 % of the intervals hold the accuracy's true value."""
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        labels_B = np.arange(200) % 2
        latent_B = np.where(random.random(200) < 0.8, labels_B, 1 - labels_B)
        score = fms(latent_B[:, None], labels_B)
        low, high = score.interval(1, seed=int(random.integers(1000)))
        true = 0.8 * (2 * (0.8 - 0.5) + 1) / 2
        covered += low <= true <= high
    assert covered >= 88


def test_perfect_latent():
    labels_B = np.repeat([0, 1], 50)
    latents_BN = np.stack([labels_B, np.zeros(100)], axis=1)
    paper, released = fms(latents_BN, labels_B), fms(latents_BN, labels_B, "released")
    assert (paper.accs[0], paper.local(1), paper.global_) == (1.0, 1.0, 1.0)
    assert paper.at(1) == 1.0
    assert released.global_ == 1.5  # the no-split row of the authors' notebook
    assert released.at(1) == 1.25


def test_a_second_perfect_latent_makes_the_local_term_vanish():
    labels_B = np.repeat([0, 1], 50)
    score = fms(np.stack([labels_B, labels_B], axis=1), labels_B)
    assert score.local(1) == 0
    assert score.local(2) == 1
    assert score.at(1) == 0.5


def test_constant_latents_separate_nothing():
    labels_B = np.array([0, 0, 0, 1])
    score = fms(np.ones((4, 3)), labels_B)
    assert score.accs == [0.75] * (N_REMOVED + 1)
    assert score.roots == []
    assert score.at(1) == 0.75 / 2


def test_identical_rows_with_different_labels_stay_wrong():
    latents_BN = np.array([[0.0], [0.0], [1.0], [1.0], [2.0], [2.0]])
    labels_B = np.array([0, 0, 1, 0, 1, 1])
    paper, released = fms(latents_BN, labels_B), fms(latents_BN, labels_B, "released")
    assert paper.accs_cum == [5 / 6]
    assert released.accs_cum == [5 / 6]  # the mixed leaf lies at the cut, not above it
    deeper = np.array([[0.0], [0.0], [1.0], [2.0], [2.0], [3.0], [4.0], [5.0]])
    mixed = np.array([0, 1, 0, 1, 1, 0, 1, 0])
    honest, generous = fms(deeper, mixed), fms(deeper, mixed, "released")
    assert honest.accs_cum[-1] == 7 / 8
    assert generous.accs_cum[-1] == 1.0


def test_rows_and_latents_may_be_permuted():
    random = np.random.default_rng(0)
    labels_B = (random.random(150) < 0.5).astype(int)
    latents_BN = random.normal(size=(150, 6)).astype(np.float32) + labels_B[:, None] * np.arange(6) / 4
    rows, columns = random.permutation(150), random.permutation(6)
    a, b = fms(latents_BN, labels_B), fms(latents_BN[rows][:, columns], labels_B[rows])
    assert a.accs == b.accs
    assert columns[b.roots[0]] == a.roots[0]


def test_heldout_scores_unseen_samples():
    random = np.random.default_rng(0)
    labels_B = (random.random(400) < 0.5).astype(int)
    noise_BN = random.normal(size=(400, 200)).astype(np.float32)
    paper, heldout = fms(noise_BN, labels_B), fms(noise_BN, labels_B, "heldout")
    assert paper.accs[0] > 0.54  # the best of 200 noise latents looks good on the samples it was chosen on
    assert abs(heldout.accs[0] - 0.5) < 0.05
    perfect = fms(labels_B[:, None], labels_B, "heldout")
    assert perfect.accs[0] == 1.0
    assert perfect.at(1) == pytest.approx(np.mean([half.at(1) for half in perfect.halves]))


def test_shuffled_labels_lose_the_concept():
    labels_B = np.repeat([0, 1], 100)
    latents_BN = np.stack([labels_B + 0.1, np.random.default_rng(0).random(200)], axis=1)
    assert fms(latents_BN, labels_B).at(1) > 0.9
    assert shuffled(latents_BN, labels_B)[0].accs[0] < 0.65


@pytest.mark.parametrize(
    ("latents_BN", "labels_B", "mode", "message"),
    [
        (np.zeros((3, 2)), np.ones(3), "paper", "no negative sample"),
        (np.zeros((3, 2)), np.zeros(3), "paper", "no positive sample"),
        (np.zeros((3, 2)), np.array([0, 1, 0]), "best", "unknown mode"),
        (np.full((3, 2), np.nan), np.array([0, 1, 0]), "paper", "NaN"),
        (np.zeros((3, 2)), np.array([0, 1]), "paper", "do not fit"),
        (np.zeros(3), np.array([0, 1, 0]), "paper", "NumPy, SciPy or PyTorch"),
        ([[0.0], [1.0]], np.array([0, 1]), "paper", "list do not fit"),
        (np.zeros((2, 0)), np.array([0, 1]), "paper", "no latents"),
        (np.zeros((2, 1)), np.array([-1, 1]), "paper", "labels must be 0 or 1"),
        (np.zeros((2, 1)), np.array([0.2, np.nan]), "paper", "labels must be 0 or 1"),
        (np.zeros((3, 2)), np.array([0, 1, 0]), "heldout", "two samples of each class"),
    ],
)
def test_bad_input(latents_BN, labels_B, mode, message):
    with pytest.raises(UserError, match=message):
        fms(latents_BN, labels_B, mode)
