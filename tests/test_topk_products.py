"""TopK and the products over kept latents, against PyTorch's own and against plain autograd."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from utils.losses import concept_losses, reconstruction_loss
from utils.sae import SAE, TOPK_POSTACTS, SAEConfig
from utils.topk_kernels import chosen_dots, top_k_rows, transposed_product, weighted_rows
from utils.topk_products import decode_top_k, encode_top_k, top_indices

FLOATS = st.one_of(st.sampled_from([0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-42]), st.floats(width=32))


@settings(max_examples=100, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=FLOATS), st.data())
def test_the_k_largest_are_found_first_come_first_of_equals(pre_BN, data):
    k = data.draw(st.integers(1, pre_BN.shape[1]))
    pre_BN = pre_BN + np.float32(0)  # no -0
    order_BN = np.argsort(-np.where(np.isnan(pre_BN), np.inf, pre_BN), axis=1, kind="stable")
    indices_BK = top_k_rows(pre_BN, k)
    assert (np.diff(indices_BK) > 0).all()
    if not np.isnan(pre_BN).any():
        np.testing.assert_array_equal(indices_BK, np.sort(order_BN[:, :k]))
    values_BK = torch.from_numpy(pre_BN).topk(k).values.numpy()
    np.testing.assert_array_equal(np.sort(np.take_along_axis(pre_BN, indices_BK.astype(int), 1)), np.sort(values_BK))


@pytest.mark.parametrize(("n_latents", "k"), [(3000, 250), (3000, 1), (70, 70), (5, 3)])
def test_the_k_largest_of_many(n_latents, k):
    pre_BN = torch.randn(33, n_latents)
    chosen_BN = torch.zeros_like(pre_BN).scatter(1, top_indices(pre_BN, k), 1.0)
    assert torch.equal(chosen_BN, torch.zeros_like(pre_BN).scatter(1, pre_BN.topk(k).indices, 1.0))
    assert top_indices(pre_BN.reshape(3, 11, n_latents), k).shape == (3, 11, k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n_inputs", [13, 192])
def test_products_over_kept_latents_equal_dense_ones(dtype, threads, n_inputs, monkeypatch):
    rng = np.random.default_rng(0)
    n_tokens, n_latents, k = 700, 400, 37
    rows_ND, x_BD = (rng.normal(size=(n, n_inputs)).astype(dtype) for n in (n_latents, n_tokens))
    chosen = [np.sort(rng.permutation(n_latents)[:k]) for _ in range(n_tokens)]
    indices_BK = np.stack(chosen).astype(np.int32)
    values_BK = rng.normal(size=indices_BK.shape).astype(dtype)
    latents_BN = np.zeros((n_tokens, n_latents), dtype)
    np.put_along_axis(latents_BN, indices_BK.astype(int), values_BK, 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4 if dtype == np.float32 else 1e-12)
    close(weighted_rows(values_BK, indices_BK, rows_ND), latents_BN @ rows_ND)
    dots_BN = x_BD @ rows_ND.T
    close(chosen_dots(x_BD, indices_BK, rows_ND), np.take_along_axis(dots_BN, indices_BK.astype(int), 1))
    product_ND, sum_N = transposed_product(values_BK, indices_BK, x_BD, n_latents)
    close(product_ND, latents_BN.T @ x_BD)
    close(sum_N, latents_BN.sum(0))


@pytest.mark.parametrize("k", [2, 9])  # of 12 and more latents: over the kept ones, and dense
@pytest.mark.parametrize("n_concepts", [0, 3])
def test_gradients_equal_finite_differences(k, n_concepts):
    def reconstruct(pre_bias_D, weight_ND, latent_bias_N, decoder_DN):
        values_BK, indices_BK, concept_BC = encode_top_k(
            z_BD, pre_bias_D, weight_ND, latent_bias_N, k=k, n_concepts=n_concepts
        )
        return decode_top_k(values_BK.sigmoid(), indices_BK, decoder_DN), concept_BC

    z_BD = torch.randn(4, 5, dtype=torch.float64)
    shapes = ((5,), (12, 5), (12,), (5, 12))
    parameters = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    assert torch.autograd.gradcheck(reconstruct, parameters)


@pytest.mark.parametrize("activation", [*TOPK_POSTACTS, "relu", "identity", "jumprelu"])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("n_inputs", "n_latents", "k"), [(6, 48, 5), (7, 20, 11), (3, 5, 5)])
def test_training_gradients_equal_plain_autograds(activation, guided, n_inputs, n_latents, k):
    sae = SAE(SAEConfig(n_inputs, n_latents, k, activation)).double()
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    acts_BD = torch.randn(50, n_inputs, dtype=torch.float64)
    labels_BC = torch.randint(0, 2, (50, 2 if guided else 0))

    def gradients(reconstruction_BD, pre_BC):
        loss_B = reconstruction_loss(reconstruction_BD, acts_BD) + concept_losses(pre_BC, labels_BC, 5.0).sum(1)
        return torch.autograd.grad(loss_B.mean(), list(sae.parameters()))

    plain, fast = sae(acts_BD), sae.training_forward(acts_BD, labels_BC.shape[1])
    expected = gradients(plain.reconstruction_BD, plain.pre_BN[:, : labels_BC.shape[1]])
    torch.testing.assert_close(fast.reconstruction_BD, plain.reconstruction_BD, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients(fast.reconstruction_BD, fast.concept_pre_BC), expected, rtol=1e-9, atol=1e-10)


def test_an_sae_that_does_not_subtract_its_bias():
    config = SAEConfig(6, 48, 5, "topk", normalisation="none", subtract_pre_bias=False)
    sae = SAE(config).double()
    torch.nn.init.normal_(sae.pre_bias)
    acts_BD = torch.randn(9, 6, dtype=torch.float64)
    outputs = sae(acts_BD).reconstruction_BD, sae.training_forward(acts_BD).reconstruction_BD
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), list(sae.parameters())) for out in outputs))
    assert not torch.allclose(outputs[0], SAE(dataclasses.replace(config, subtract_pre_bias=True)).double()(acts_BD)[0])


def test_decoder_columns_lie_contiguous_and_stay_so():
    sae = SAE(SAEConfig(6, 48, 5))
    assert sae.decoder.weight.T.is_contiguous()
    sae.load_state_dict({name: tensor.contiguous() for name, tensor in sae.state_dict().items()})
    assert sae.double().decoder.weight.T.is_contiguous()
    sae.training_forward(torch.randn(4, 6).double()).reconstruction_BD.sum().backward()
    assert sae.decoder.weight.grad is not None
    assert sae.decoder.weight.grad.stride() == sae.decoder.weight.stride()
