"""FMS against a plain re-statement of the formula with refitted scikit-learn trees, and against closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plain import plain_fms
from utils.errors import UserError
from utils.fms import N_REMOVED, fms, shuffled


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
        (np.zeros((3, 2)), np.array([0, 1, 0]), "heldout", "two samples of each class"),
    ],
)
def test_bad_input(latents_BN, labels_B, mode, message):
    with pytest.raises(UserError, match=message):
        fms(latents_BN, labels_B, mode)
