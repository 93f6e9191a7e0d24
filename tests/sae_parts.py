"""Weights of a small SAE, in the layout most libraries use, and what the tests of loading share."""

import json

import pytest
import torch

D, N, K = 8, 24, 4


@pytest.fixture
def parts():
    """Weights of an SAE: W_enc [D, N], W_dec [N, D], b_enc [N], b_dec [D], threshold [N]."""
    return {
        "W_enc": torch.randn(D, N), "W_dec": torch.randn(N, D), "b_enc": torch.randn(N) * 0.1,
        "b_dec": torch.randn(D) * 0.1, "threshold": torch.rand(N) * 0.5,
    }  # fmt: skip


@pytest.fixture
def x():
    return torch.randn(50, D) * 3 + 1


def top(pre_BN, k=K):
    return torch.zeros_like(pre_BN).scatter(1, pre_BN.topk(k).indices, 1.0)


def contiguous(tensors):
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def assert_same(loaded, x, latents_BN, reconstruction_BD):
    torch.testing.assert_close(loaded.sae.encode(x), latents_BN, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.sae(x).reconstruction_BD, reconstruction_BD, rtol=1e-5, atol=1e-5)


def released_tensors(p, **more):
    return {
        "pre_bias": p["b_dec"], "encoder.weight": p["W_enc"].T, "latent_bias": p["b_enc"],
        "decoder.weight": p["W_dec"].T,
    } | more  # fmt: skip
