"""The two losses of a guided SAE: reconstruction, and the concepts' latents."""

import torch
from torch import Tensor
from torch.nn import functional as F


def reconstruction_loss(reconstruction_BD: Tensor, acts_BD: Tensor) -> Tensor:
    """Return the normalised squared error of each token, mean_D (xhat - x)^2 / mean_D x^2, of shape [B]."""
    return (reconstruction_BD - acts_BD).square().mean(dim=-1) / acts_BD.square().mean(dim=-1)


def concept_losses(pre_BC: Tensor, labels_BC: Tensor, scaling: float = 1.0) -> Tensor:
    """Return the binary cross-entropy of each token and concept, of shape [B, C].

    Args:
        pre_BC: pre-activations, before TopK, of the latents reserved for the concepts.
        labels_BC: 0 or 1.
        scaling: weight of the positive labels; it multiplies their gradients.
    """
    weight = torch.full((), scaling, dtype=pre_BC.dtype, device=pre_BC.device)  # a tensor() would wait for the GPU
    return F.binary_cross_entropy_with_logits(pre_BC, labels_BC.to(pre_BC.dtype), pos_weight=weight, reduction="none")


def concept_loss(pre_BN: Tensor, labels_BC: Tensor, scaling: float = 1.0) -> Tensor:
    """Return the binary cross-entropy of each token, summed over the C concepts, of shape [B].

    Args:
        pre_BN: pre-activations; the first C latents are reserved for the concepts.
        labels_BC: 0 or 1.
        scaling: weight of the positive labels.
    """
    return concept_losses(pre_BN[:, : labels_BC.shape[1]], labels_BC, scaling).sum(dim=1)
