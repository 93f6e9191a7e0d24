"""Erasure, gates, warm starts and the rest of what guidance can do beyond the paper: each against its definition."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from concept_erasure import LeaceFitter
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from tests.guided import normalised
from utils.concept_init import regress
from utils.decorrelation import Decorrelation
from utils.erasure import Eraser, fit_leace, fold, random_eraser
from utils.errors import UserError
from utils.guided_start import guided_start
from utils.losses import concept_losses, reconstruction_loss
from utils.sae import SAE, SAEConfig, TrainingOutput
from utils.text_means import EVIDENCE, TextMeans
from utils.training_core import TrainingCore

CPU = torch.device("cpu")


@pytest.fixture
def cache(labelled_cache):
    return labelled_cache


@pytest.fixture
def config(labelled_config):
    return labelled_config


def some_eraser(n_inputs, n_spared, rank=2):
    basis_DR = torch.linalg.qr(torch.randn(n_inputs, rank)).Q.double()
    other_DR = basis_DR + 0.3 * torch.randn(n_inputs, rank)
    right_RD = torch.linalg.solve(other_DR.T @ basis_DR, other_DR.T)  # oblique: right left = 1
    return Eraser(basis_DR, right_RD, torch.randn(n_inputs).double(), n_spared)


# --- erasure


def test_erasure_is_leace_on_the_same_data(cache):
    split = cache.split("train")
    z_BD, labels_BC = normalised(split), torch.from_numpy(split.label_BC)
    eraser = fit_leace(SAE(SAEConfig(32, 64, 8)), split, 2)
    expected = LeaceFitter.fit(z_BD, labels_BC.double(), shrinkage=False, svd_tol=1e-5).eraser
    torch.testing.assert_close(eraser(z_BD.float()), expected(z_BD).float(), rtol=1e-4, atol=1e-4)


def test_no_label_is_linearly_told_from_what_is_left(cache):
    split = cache.split("train")
    z_BD, labels_BC = normalised(split), torch.from_numpy(split.label_BC).double()
    erased_BD = fit_leace(SAE(SAEConfig(32, 64, 8)), split, 2)(z_BD.float()).double()
    covariance_DC = (erased_BD - erased_BD.mean(0)).T @ (labels_BC - labels_BC.mean(0)) / len(z_BD)
    before_DC = (z_BD - z_BD.mean(0)).T @ (labels_BC - labels_BC.mean(0)) / len(z_BD)
    assert covariance_DC.abs().max() < 1e-4 * before_DC.abs().max()
    torch.testing.assert_close(erased_BD.mean(0), z_BD.mean(0), rtol=1e-4, atol=1e-4)


def test_in_no_part_of_the_texts_a_label_is_told_from_what_is_left(cache):
    split = cache.split("train")
    z_BD, labels_BC = normalised(split), torch.from_numpy(split.label_BC).double()
    texts, text_B = np.unique(split.text_id_B, return_inverse=True)
    second_B = torch.from_numpy(text_B >= (len(texts) + 1) // 2)
    largest = []
    for n_parts in (1, 2):
        erased_BD = fit_leace(SAE(SAEConfig(32, 64, 8)), split, 2, n_parts)(z_BD.float()).double()
        torch.testing.assert_close(erased_BD.mean(0), z_BD.mean(0), rtol=1e-4, atol=1e-4)
        for own_B in (second_B, ~second_B):
            centred_BC = labels_BC[own_B] - labels_BC[own_B].mean(0)
            largest.append((erased_BD[own_B].T @ centred_BC / own_B.sum()).abs().max())
    assert max(largest[2:]) < 1e-4 < 0.01 * min(largest[:2])


def test_there_are_as_many_parts_as_texts_suffice_for(cache, config, monkeypatch):
    split = cache.split("train")
    n_texts = len(np.unique(split.text_id_B))
    erased = dataclasses.replace(config, erase="leace", erase_parts=3)
    ranks = []
    for texts_per_part in (n_texts + 1, n_texts // 2, 1):
        monkeypatch.setattr("utils.guided_start.TEXTS_PER_PART", texts_per_part)
        sae, _ = guided_start(erased, split, 2, 0, CPU)
        assert sae.eraser is not None
        ranks.append(torch.linalg.matrix_rank(sae.eraser.left_DR @ sae.eraser.right_RD).item())
    assert ranks == [2, 4, 6]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])  # of the texts, from the first on, that have the second label
def test_a_label_that_parts_lack_or_all_tokens_have_erases_nothing_there(cache, share):
    split = cache.split("train")
    texts, text_B = np.unique(split.text_id_B, return_inverse=True)
    label_BC = np.stack([split.label_BC[:, 0], text_B < share * len(texts)], axis=1).astype(np.int8)
    z_BD = normalised(split).float()
    erased_BD = fit_leace(SAE(SAEConfig(32, 64, 8)), split.with_labels(label_BC), 2, 4)(z_BD)
    assert erased_BD.isfinite().all()
    centred_B = label_BC[:, 0] - label_BC[:, 0].mean()
    assert np.abs(erased_BD.numpy().T @ centred_B / len(z_BD)).max() < 1e-4
    weight_CD, bias_C = regress(lambda: iter([(z_BD, torch.from_numpy(label_BC))]), 32, 2, 1e-3, CPU)
    assert weight_CD.isfinite().all()
    assert share == 0.3 or (bias_C[1] > 5) == (share == 1)


def test_parts_that_leave_nothing_are_refused(cache):
    with pytest.raises(UserError, match="erase_parts: 16 of 2 concepts leave nothing of 32 inputs; choose fewer"):
        fit_leace(SAE(SAEConfig(32, 64, 8)), cache.split("train"), 2, 16)


def test_a_random_subspace_of_equal_rank_is_the_control():
    eraser = some_eraser(12, 3)
    control = random_eraser(eraser, seed=1)
    projection_DD = control.left_DR @ control.right_RD
    torch.testing.assert_close(projection_DD @ projection_DD, projection_DD)
    assert torch.linalg.matrix_rank(projection_DD) == torch.linalg.matrix_rank(eraser.left_DR @ eraser.right_RD) == 2
    assert torch.equal(control.left_DR, random_eraser(eraser, seed=1).left_DR)


@pytest.mark.parametrize(("activation", "n_gated"), [("topk-sigmoid", 0), ("topk-sigmoid", 3), ("relu", 0)])
@pytest.mark.parametrize("subtract_pre_bias", [True, False])
def test_a_folded_sae_has_the_same_latents(n_gated, subtract_pre_bias, activation):
    sae = SAE(SAEConfig(12, 40, 5, activation, subtract_pre_bias=subtract_pre_bias, n_gated=n_gated)).double()
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    acts_BD = torch.randn(60, 12).double()
    plain = sae.encode(acts_BD)
    sae.eraser = some_eraser(12, 3)
    folded = fold(sae)
    assert folded.eraser is None
    torch.testing.assert_close(folded.encode(acts_BD), sae.encode(acts_BD), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(folded(acts_BD), sae(acts_BD), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(sae.encode(acts_BD), plain)


# --- gates, and gradients of all of it


@pytest.mark.parametrize(("n_gated", "gate_margin"), [(0, 0.0), (3, 0.0), (3, 1.0)])
@pytest.mark.parametrize("erased", [False, True])
@pytest.mark.parametrize(("n_inputs", "n_latents", "k"), [(6, 48, 5), (7, 20, 11)])  # sparse products, and dense
def test_training_gradients_equal_plain_autograds(n_gated, gate_margin, erased, n_inputs, n_latents, k):
    sae = SAE(SAEConfig(n_inputs, n_latents, k, n_gated=n_gated, gate_margin=gate_margin, skip_rank=2)).double()
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    if erased:
        sae.eraser = some_eraser(n_inputs, 3)
    acts_BD = torch.randn(50, n_inputs).double()
    labels_BC = torch.randint(0, 2, (50, 3))
    trained = [parameter for parameter in sae.parameters() if parameter.requires_grad]

    def gradients(reconstruction_BD, pre_BC):
        loss_B = reconstruction_loss(reconstruction_BD, acts_BD) + concept_losses(pre_BC, labels_BC, 5.0).sum(1)
        return torch.autograd.grad(loss_B.mean(), trained)

    plain, fast = sae(acts_BD), sae.training_forward(acts_BD, 3)
    torch.testing.assert_close(fast.reconstruction_BD, plain.reconstruction_BD, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fast.concept_pre_BC, plain.pre_BN[:, :3], rtol=1e-10, atol=1e-10)
    assert fast.indices_BK is not None
    latents_BN = torch.zeros_like(plain.latents_BN).scatter(1, fast.indices_BK, fast.kept_BK)
    torch.testing.assert_close(latents_BN, plain.latents_BN)
    expected = gradients(plain.reconstruction_BD, plain.pre_BN[:, :3])
    torch.testing.assert_close(gradients(fast.reconstruction_BD, fast.concept_pre_BC), expected, rtol=1e-9, atol=1e-10)


def test_gated_latents_stand_outside_the_topk():
    sae = SAE(SAEConfig(12, 40, 5, n_gated=3))
    torch.nn.init.normal_(sae.latent_bias)
    output = sae(torch.randn(60, 12))
    gated_BG, pre_BG = output.latents_BN[:, :3], output.pre_BN[:, :3]
    assert torch.equal(gated_BG, torch.where(pre_BG > 0, pre_BG.sigmoid(), 0.0))
    assert ((output.latents_BN[:, 3:] != 0).sum(dim=1) == 5).all()


def test_gated_latents_far_below_the_likeliest_are_closed():
    pre_BG = torch.tensor([[2.0, -0.5, -4.0], [0.0, -2.9, -3.1], [-5.0, -6.0, -7.0]])
    sae = SAE(SAEConfig(12, 40, 5, n_gated=3, gate_at=-4.5, gate_margin=3.0))
    open_BG = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
    latents_BN = sae.activate(torch.cat([pre_BG, torch.zeros(3, 37)], dim=1))
    assert torch.equal(latents_BN[:, :3], torch.where(open_BG, pre_BG.sigmoid(), 0.0))


# --- warm starts and guidance of texts


@pytest.mark.parametrize("widest", [1, 300])  # the largest of the inputs' scales
def test_the_regression_is_as_good_as_scikit_learns(widest):
    z_BD = torch.randn(400, 32) @ torch.randn(32, 32)
    labels_BC = (0.05 * z_BD @ torch.randn(32, 2) - torch.tensor([1.0, 3.0]) + torch.randn(400, 2) > 0).to(torch.int8)
    z_BD *= torch.logspace(0, math.log10(widest), 32)
    chunks = lambda: zip(z_BD.split(50), labels_BC.split(50), strict=True)  # noqa: E731

    def loss(weight_D, bias, c):
        pre_B = z_BD @ weight_D + bias
        penalty = 1e-2 / 2 * weight_D.square().sum()
        return (functional.binary_cross_entropy_with_logits(pre_B, labels_BC[:, c].float()) + penalty).item()

    weight_CD, bias_C = regress(chunks, 32, 2, 1e-2, CPU)
    for c in range(2):
        one = LogisticRegression(C=1 / (1e-2 * len(z_BD)), tol=1e-8, solver="newton-cholesky")
        one.fit(z_BD.double().numpy(), labels_BC[:, c])
        least = loss(torch.from_numpy(one.coef_[0]).float(), float(one.intercept_[0]), c)
        assert loss(weight_CD[c], bias_C[c], c) == pytest.approx(least, rel=0.002)


def test_a_warm_start_tells_the_concepts_before_any_step(cache, config):
    split = cache.split("train")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cold = SAE(config.sae)
        torch.manual_seed(0)
        warm, _ = guided_start(dataclasses.replace(config, concept_init="logistic"), split, 2, 0, CPU)
    assert torch.equal(warm.encoder.weight[2:], cold.encoder.weight[2:])
    z_BD, labels_BC = normalised(split).float(), torch.from_numpy(split.label_BC)
    losses = [concept_losses(sae.pre_activations(z_BD)[:, :2], labels_BC).mean() for sae in (cold, warm)]
    assert losses[1] < 0.5 * losses[0]
    difference_D = z_BD[labels_BC[:, 1] > 0].mean(0) - z_BD[labels_BC[:, 1] == 0].mean(0)
    torch.testing.assert_close(warm.decoder.weight[:, 1], difference_D, rtol=1e-4, atol=1e-4)


def test_the_pre_activation_of_a_texts_mean_is_the_mean_of_its_tokens(cache):
    split, sae = cache.split("train"), SAE(SAEConfig(32, 64, 8))
    torch.nn.init.normal_(sae.pre_bias)
    means = TextMeans.of(sae, split)
    acts_BD = torch.from_numpy(split.acts(np.arange(len(split))))
    pre_BN = sae(acts_BD).pre_BN
    text_id = split.text_id_B[100]
    own_B = np.flatnonzero(split.text_id_B == text_id)
    torch.testing.assert_close(sae.pre_activations(means.at(own_B[:1]))[0], pre_BN[own_B].mean(0), rtol=1e-4, atol=1e-4)
    row = means.text_B[own_B[0]]
    assert torch.equal(means.labels_TC[row], torch.from_numpy(split.label_BC[own_B]).amax(0))


def test_the_concept_loss_is_on_texts_where_asked(cache, config):
    core = TrainingCore(dataclasses.replace(config, text_loss=True), cache, 1.0, seed=0)
    assert core.means is not None
    batch = next(core.batches())
    result = core.objective(batch.acts_BD, batch.labels_BC, None, core.means.at(batch.rows_B))
    pre_BC = core.sae.pre_activations(core.means.at(batch.rows_B))[:, :2]
    torch.testing.assert_close(result.concept_loss_BC, concept_losses(EVIDENCE * pre_BC, batch.labels_BC).detach())


def test_the_penalty_has_the_gradient_of_squared_correlations_each_weighted_by_itself():
    latents_BN = torch.rand(300, 10, dtype=torch.float64, requires_grad=True)
    labels_BC = torch.randint(0, 2, (300, 2))
    output = TrainingOutput(torch.empty(0), torch.empty(0), latents_BN, None)
    penalty = Decorrelation(10, labels_BC.double().mean(0))
    penalty.moments_NM = penalty.batch_moments(output, labels_BC).detach()  # as if all batches were this one
    (gradient_BN,) = torch.autograd.grad(penalty(penalty.batch_moments(output, labels_BC)), latents_BN)

    centred_BC = labels_BC - labels_BC.double().mean(0)
    covariance_NC = (latents_BN.T @ centred_BC / 300)[2:]
    scale_NC = latents_BN.var(0, correction=0)[2:, None] * centred_BC.var(0, correction=0)
    squared_NC = covariance_NC.square() / scale_NC.detach()
    weight_NC = (squared_NC * squared_NC.mean(0) / squared_NC.square().mean(0)).detach()
    loss = (weight_NC * squared_NC).mean(0).sum()
    (expected_BN,) = torch.autograd.grad(loss, latents_BN)
    torch.testing.assert_close(gradient_BN, expected_BN, rtol=1e-3, atol=1e-9)
    correlation = np.corrcoef(latents_BN[:, 5].detach(), labels_BC[:, 1])[0, 1]
    assert penalty.squared_correlations()[5, 1].item() == pytest.approx(correlation**2, rel=1e-3)


def test_the_warm_start_on_texts_gives_their_log_odds(cache, config):
    split, warm = cache.split("train"), dataclasses.replace(config, concept_init="logistic", text_loss=True)
    sae, means = guided_start(warm, split, 2, 0, CPU)
    assert means is not None
    weight_CD, bias_C = regress(lambda: iter([(means.means_TD, means.labels_TC)]), 32, 2, 3e-3, CPU)
    log_odds_TC = EVIDENCE * sae.pre_activations(means.means_TD)[:, :2]
    torch.testing.assert_close(log_odds_TC, means.means_TD @ weight_CD.T + bias_C, rtol=1e-3, atol=1e-3)


def test_moments_of_kept_latents_are_those_of_all_and_parts_average():
    sae = SAE(SAEConfig(12, 40, 5, n_gated=2))
    acts_BD, labels_BC = torch.randn(200, 12), torch.randint(0, 2, (200, 2))
    penalty = Decorrelation(40, labels_BC.float().mean(0))
    whole_NM = penalty.batch_moments(sae.training_forward(acts_BD, 2), labels_BC)
    dense = TrainingOutput(torch.empty(0), torch.empty(0), sae.encode(acts_BD), None)
    torch.testing.assert_close(whole_NM, penalty.batch_moments(dense, labels_BC))
    parts = [
        penalty.batch_moments(sae.training_forward(acts_BD[rows], 2), labels_BC[rows])
        for rows in (slice(0, 100), slice(100, 200))
    ]
    torch.testing.assert_close(sum(parts) / 2, whole_NM)
    penalty.update(whole_NM)
    assert penalty.moments_NM.abs().sum() > 0


@pytest.mark.parametrize("decorrelate", [0.0, 5.0])
def test_decorrelated_latents_tell_less_of_the_labels(cache, config, decorrelate):
    core = TrainingCore(dataclasses.replace(config, decorrelate=decorrelate, max_epochs=30), cache, 1.0, seed=0)
    while core.steps < core.total_steps:
        for batch in core.batches():
            core.step(batch)
    split = cache.split("train")
    latents_BN = core.sae.encode(torch.from_numpy(split.acts(np.arange(len(split)))))[:, 2:].detach()
    latents_BN = latents_BN[:, latents_BN.var(0) > 1e-3]
    found = np.corrcoef(latents_BN.T, split.label_BC.T)[:-2, -2:]
    assert (np.square(found).max() < 0.3) == (decorrelate > 0)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_concepts_rows_take_a_share_of_a_step(cache, config, share):
    whole, part = (
        TrainingCore(dataclasses.replace(config, concept_lr=own), cache, 1.0, seed=0) for own in (1.0, share)
    )
    start = whole.sae.encoder.weight.detach().clone()
    for core in (whole, part):
        core.step(next(core.batches()))
    moved, own = whole.sae.encoder.weight - start, part.sae.encoder.weight - start
    torch.testing.assert_close(own[:2], share * moved[:2], rtol=1e-3, atol=1e-7)
    assert torch.equal(own[2:], moved[2:])
    torch.testing.assert_close(part.sae.latent_bias[:2], share * whole.sae.latent_bias[:2])
