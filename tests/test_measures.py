"""What is reported of training, against the formulas and scikit-learn."""

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from utils.losses import concept_losses, reconstruction_loss
from utils.measures import Measures, auroc
from utils.objective import StepResult
from utils.sae import SAE, SAEConfig


@pytest.fixture
def tokens():
    sae = SAE(SAEConfig(6, 48, 5, "topk"))
    acts_BD, labels_BC = torch.randn(300, 6) + 1, torch.randint(0, 2, (300, 3)) * torch.tensor([1, 1, 0])
    labels_BC *= torch.randint(0, 2, (300, 1))
    return sae, acts_BD, labels_BC


def measured(sae, acts_BD, labels_BC):
    measures = Measures(6, 48, 3, torch.device("cpu"))
    output = sae.training_forward(acts_BD, 3)
    loss_B = reconstruction_loss(output.reconstruction_BD, acts_BD)
    losses_BC = concept_losses(output.concept_pre_BC, labels_BC)
    measures.add(acts_BD, labels_BC, StepResult(loss_B.mean(), loss_B, losses_BC, output))
    return measures


def test_values_equal_the_formulas(tokens):
    sae, acts_BD, labels_BC = tokens
    with torch.no_grad():
        output = sae(acts_BD)
        values = measured(*tokens).values()
        loss_B = reconstruction_loss(output.reconstruction_BD, acts_BD)
        loss_c_B = concept_losses(output.pre_BN[:, :3], labels_BC).sum(1)
    labelled_B = labels_BC.any(1)
    assert 50 < labelled_B.sum() < 250
    expected = {
        "loss": (loss_B + loss_c_B).mean(),
        "reconstruction_loss": loss_B.mean(),
        "reconstruction_loss_labelled": loss_B[labelled_B].mean(),
        "reconstruction_loss_unlabelled": loss_B[~labelled_B].mean(),
        "concept_loss": loss_c_B.mean(),
        "concept_loss_labelled": loss_c_B[labelled_B].mean(),
        "concept_loss_unlabelled": loss_c_B[~labelled_B].mean(),
        "l0": (output.latents_BN != 0).sum(1).float().mean(),
        "dead_latents": (output.latents_BN == 0).all(0).float().mean(),
        "fvu": (output.reconstruction_BD - acts_BD).square().sum() / (acts_BD - acts_BD.mean(0)).square().sum(),
    }
    assert {key: values[key] for key in expected} == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-5)


def test_concepts_equal_scikit_learns(tokens):
    sae, acts_BD, labels_BC = tokens
    with torch.no_grad():
        rows = measured(*tokens).concept_rows(["A", "B", "C"])
        pre_BC = sae(acts_BD).pre_BN[:, :3]
    for c, row in enumerate(rows[:2]):
        labels, scores = labels_BC[:, c].numpy(), pre_BC[:, c].numpy()
        assert row["positives"] == labels.sum()
        assert row["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)
        assert row["accuracy"] == pytest.approx(accuracy_score(labels, scores > 0))
        assert row["bce"] == pytest.approx(log_loss(labels, torch.sigmoid(pre_BC[:, c]).numpy()), rel=1e-5)
    assert rows[2]["positives"] == 0
    assert rows[2]["auroc"] != rows[2]["auroc"]  # not defined without positives


def test_sums_of_parts_are_those_of_the_whole(tokens):
    sae, acts_BD, labels_BC = tokens
    with torch.no_grad():
        whole, part = measured(*tokens), measured(sae, acts_BD[:100], labels_BC[:100])
        part.merge(measured(sae, acts_BD[100:], labels_BC[100:]))
    assert part.values() == pytest.approx(whole.values(), rel=1e-6)
    part.reset()
    assert not any(value.any() for value in part.sums.values())


def test_auroc_of_perfect_and_equal_scores():
    bins_2CH = torch.tensor([[[5.0, 0, 0], [1, 1, 1], [0, 0, 2]], [[0, 0, 3], [2, 2, 2], [4, 0, 0]]])
    assert auroc(bins_2CH).tolist() == [1.0, 0.5, 0.0]
