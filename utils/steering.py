"""Steering: adding decoder columns to the residual stream (paper section on steering; DESIGN section 3)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from utils.errors import UserError
from utils.sae import SAE

BETAS = ("constant", "active", "balanced")


def check_steering(sae: SAE, alphas: Mapping[int, float], beta: str) -> None:
    """Raise UserError for a latent the SAE lacks, a strength that is no number, or an unknown kind of beta."""
    if beta not in BETAS:
        raise UserError(f"beta: {beta!r} is unknown; choose one of {', '.join(BETAS)}")
    for latent, alpha in alphas.items():
        if not 0 <= latent < sae.config.n_latents:
            raise UserError(f"latent {latent} is out of range: the SAE has latents 0 to {sae.config.n_latents - 1}")
        if alpha and not sae.decoder.weight[:, latent].any():
            raise UserError(f"latent {latent}: its decoder column is zero, so it has no direction to steer in")
        if not abs(alpha) < float("inf"):
            raise UserError(f"alpha of latent {latent}: must be a finite number, not {alpha}")


def steering_delta(acts_BTD: Tensor, sae: SAE, alphas: Mapping[int, float], beta: str) -> Tensor:
    """Return what is added to each activation x: sum_i alpha_i beta_i (||x|| / ||D_i||) D_i, D_i decoder column i.

    Args:
        acts_BTD: activations, of any leading shape.
        sae: whose decoder columns, and latents f, are used.
        alphas: the strength of each latent i.
        beta: `constant` 1; `active` 1 where f_i > 0, else 0; `balanced` f_i where alpha_i < 0, else 1 - f_i.
    """
    latents = list(alphas)
    alpha_K = acts_BTD.new_tensor([alphas[latent] for latent in latents])
    columns_KD = sae.decoder.weight[:, latents].T
    directions_KD = columns_KD / columns_KD.norm(dim=1, keepdim=True)
    if beta == "constant":
        strength_BTK = alpha_K.expand(*acts_BTD.shape[:-1], len(latents))
    else:
        latents_BTK = sae.encode(acts_BTD)[..., latents]
        if beta == "active":
            beta_BTK = (latents_BTK > 0).to(acts_BTD.dtype)
        else:
            beta_BTK = torch.where(alpha_K < 0, latents_BTK, 1 - latents_BTK)
        strength_BTK = alpha_K * beta_BTK
    return acts_BTD.norm(dim=-1, keepdim=True) * (strength_BTK @ directions_KD)
