"""The SAE and its losses against the formulas, written out plainly in float64."""

import pytest
import torch
from torch.nn import functional as F

from utils.errors import UserError
from utils.losses import concept_loss, reconstruction_loss
from utils.sae import ACTIVATIONS, SAE, SAEConfig


@pytest.fixture
def acts_BD():
    return torch.randn(7, 12, dtype=torch.float64) * 30 + 5


def make(activation="topk-sigmoid", k=4):
    sae = SAE(SAEConfig(n_inputs=12, n_latents=20, k=k, activation=activation)).double()
    with torch.no_grad():
        for parameter in (sae.pre_bias, sae.latent_bias):
            parameter.normal_()
    return sae


def plain_pre(sae, x_D):
    mean, std = x_D.mean(), x_D.std(correction=1)
    z_D = (x_D - mean) / (std + 1e-5)
    return sae.encoder.weight @ (z_D - sae.pre_bias) + sae.latent_bias, mean, std


@pytest.mark.parametrize(
    ("activation", "postact"), [("topk", torch.relu), ("topk-sigmoid", torch.sigmoid), ("topk-tanh", torch.tanh)]
)
def test_topk_forward_equals_the_formula(acts_BD, activation, postact):
    sae = make(activation)
    output = sae(acts_BD)
    for b, x_D in enumerate(acts_BD):
        pre_N, mean, std = plain_pre(sae, x_D)
        kept = pre_N.argsort(descending=True)[:4]
        latents_N = torch.zeros(20, dtype=torch.float64)
        latents_N[kept] = postact(pre_N[kept])
        torch.testing.assert_close(output.pre_BN[b], pre_N)
        torch.testing.assert_close(output.latents_BN[b], latents_N)
        reconstruction_D = (sae.decoder.weight @ latents_N + sae.pre_bias) * std + mean
        torch.testing.assert_close(output.reconstruction_BD[b], reconstruction_D)
    torch.testing.assert_close(sae.encode(acts_BD), output.latents_BN)


def test_all_but_k_latents_are_exactly_zero(acts_BD):
    assert ((make("topk-sigmoid").encode(acts_BD) != 0).sum(dim=1) == 4).all()


def test_sigmoid_keeps_latents_below_one_half(acts_BD):
    sae = make("topk-sigmoid", k=20)
    latents_BN = sae.encode(acts_BD)
    assert (latents_BN < 0.5).any()
    torch.testing.assert_close(latents_BN, torch.sigmoid(sae(acts_BD).pre_BN))


def test_relu_jumprelu_and_identity(acts_BD):
    relu, jumprelu, identity = (make(name) for name in ("relu", "jumprelu", "identity"))
    for sae in (relu, jumprelu, identity):
        sae.load_state_dict(identity.state_dict(), strict=False)
    pre_BN = identity(acts_BD).pre_BN
    with torch.no_grad():
        jumprelu.threshold.fill_(0.5)
    torch.testing.assert_close(identity.encode(acts_BD), pre_BN)
    torch.testing.assert_close(relu.encode(acts_BD), pre_BN.clamp(min=0))
    torch.testing.assert_close(jumprelu.encode(acts_BD), torch.where(pre_BN > 0.5, pre_BN, 0))


def test_jumprelu_straight_through_gradients():
    sae = make("jumprelu")
    with torch.no_grad():
        sae.threshold.fill_(0.5)
    pre_BN = torch.full((2, 20), 0.5003, dtype=torch.float64, requires_grad=True)  # within half a bandwidth
    grad_BN = torch.arange(40, dtype=torch.float64).reshape(2, 20)
    sae.activate(pre_BN).backward(grad_BN)
    torch.testing.assert_close(pre_BN.grad, grad_BN)
    torch.testing.assert_close(sae.threshold.grad, -0.5 / 0.001 * grad_BN.sum(dim=0))


@pytest.mark.parametrize("activation", ["topk", "topk-sigmoid", "topk-tanh", "relu", "identity"])
def test_gradients_equal_finite_differences(activation):
    sae = make(activation)
    acts_BD = torch.randn(3, 12, dtype=torch.float64)
    labels_BC = torch.tensor([[1, 0], [0, 0], [1, 1]], dtype=torch.int8)

    def loss(*parameters):
        named = dict(zip(dict(sae.named_parameters()), parameters, strict=True))
        output = torch.func.functional_call(sae, named, (acts_BD,))
        return (reconstruction_loss(output.reconstruction_BD, acts_BD) + concept_loss(output.pre_BN, labels_BC)).mean()

    assert torch.autograd.gradcheck(loss, tuple(p.detach().requires_grad_() for p in sae.parameters()))


def test_decoder_starts_as_the_encoders_transpose_and_is_its_own():
    sae = make()
    torch.testing.assert_close(sae.decoder.weight, sae.encoder.weight.T)
    assert sae.decoder.weight.data_ptr() != sae.encoder.weight.data_ptr()


def test_losses_equal_the_formulas(acts_BD):
    sae = make()
    output = sae(acts_BD)
    expected_B = ((output.reconstruction_BD - acts_BD) ** 2).mean(1) / (acts_BD**2).mean(1)
    torch.testing.assert_close(reconstruction_loss(output.reconstruction_BD, acts_BD), expected_B)
    labels_BC = torch.randint(0, 2, (7, 3), dtype=torch.int8)
    p_BC = torch.sigmoid(output.pre_BN[:, :3])
    expected_B = -(labels_BC * p_BC.log() + (1 - labels_BC) * (1 - p_BC).log()).sum(1)
    torch.testing.assert_close(concept_loss(output.pre_BN, labels_BC), expected_B)


def test_concept_gradient_reaches_latents_outside_the_topk(acts_BD):
    sae = make(k=1)
    output = sae(acts_BD)
    output.pre_BN.retain_grad()
    concept_loss(output.pre_BN, torch.ones(7, 2, dtype=torch.int8)).mean().backward()
    grad_BN = output.pre_BN.grad
    assert grad_BN is not None
    assert (grad_BN[:, :2] != 0).all()
    assert (grad_BN[:, 2:] == 0).all()


def test_scaling_multiplies_exactly_the_positive_labels_gradients():
    labels_BC = torch.tensor([[1, 0], [0, 1]], dtype=torch.int8)
    grads = {}
    for scaling in (1.0, 5.0):
        pre_BN = torch.arange(8, dtype=torch.float64).reshape(2, 4).requires_grad_()
        concept_loss(pre_BN, labels_BC, scaling).sum().backward()
        assert pre_BN.grad is not None
        grads[scaling] = pre_BN.grad[:, :2]
    torch.testing.assert_close(grads[5.0], torch.where(labels_BC.bool(), 5.0, 1.0) * grads[1.0])


def test_concept_loss_is_stable_for_large_pre_activations():
    pre_BN = torch.tensor([[500.0, -500.0]])
    assert concept_loss(pre_BN, torch.tensor([[0, 1]])).item() == pytest.approx(1000)


def test_cross_entropy_is_the_librarys(acts_BD):
    pre_BN, labels_BC = torch.randn(5, 6), torch.randint(0, 2, (5, 2))
    expected = F.binary_cross_entropy(torch.sigmoid(pre_BN[:, :2]), labels_BC.float(), reduction="none").sum(1)
    torch.testing.assert_close(concept_loss(pre_BN, labels_BC), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k": 21}, "k: 21 is more than the 20 latents"),
        ({"k": 0}, "k: must be"),
        ({"n_inputs": 1.5}, "n_inputs: must be"),
        ({"activation": "softmax"}, "'softmax' is unknown"),
    ],
)
def test_impossible_shapes_are_named(values, message):
    with pytest.raises(UserError, match=message):
        SAEConfig(**{"n_inputs": 12, "n_latents": 20, "k": 4} | values)


def test_every_activation_runs(acts_BD):
    for activation in ACTIVATIONS:
        assert torch.isfinite(make(activation)(acts_BD).reconstruction_BD).all()
