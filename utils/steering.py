"""Steering: adding decoder columns to the residual stream (paper section on steering; DESIGN section 3)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from utils.errors import UserError
from utils.sae import SAE

BETAS = ("constant", "active", "balanced")
Strength = float | Sequence[float] | Tensor  # of all rows of a batch, or of each


def check_steering(sae: SAE, alphas: Mapping[int, Strength], beta: str) -> None:
    """Raise UserError for a latent the SAE lacks, a strength that is no number, or an unknown kind of beta."""
    if beta not in BETAS:
        raise UserError(f"beta: {beta!r} is unknown; choose one of {', '.join(BETAS)}")
    for latent, alpha in alphas.items():
        if not 0 <= latent < sae.config.n_latents:
            raise UserError(f"latent {latent} is out of range: the SAE has latents 0 to {sae.config.n_latents - 1}")
        strength = torch.as_tensor(alpha, dtype=torch.float64)
        if strength.any() and not sae.decoder.weight[:, latent].any():
            raise UserError(f"latent {latent}: its decoder column is zero, so it has no direction to steer in")
        if not strength.isfinite().all():
            raise UserError(f"alpha of latent {latent}: must be a finite number, not {alpha}")
        if strength.ndim > 1:
            raise UserError(f"alpha of latent {latent}: a number, or one for each row of the batch, is needed")


def steers(alpha: Strength) -> bool:
    """Tell whether a strength changes anything in any row."""
    return bool(torch.as_tensor(alpha).any())


def steering_delta(acts_BTD: Tensor, sae: SAE, alphas: Mapping[int, Strength], beta: str) -> Tensor:
    """Return what is added to each activation x: sum_i alpha_i beta_i (||x|| / ||D_i||) D_i, D_i decoder column i.

    Args:
        acts_BTD: activations; of any leading shape where strengths are the same for all rows.
        sae: whose decoder columns, and latents f, are used.
        alphas: the strength of each latent i, of all rows or one for each row of the batch.
        beta: `constant` 1; `active` 1 where f_i > 0, else 0; `balanced` f_i where alpha_i < 0, else 1 - f_i.

    Raises:
        UserError: strengths for another number of rows.
    """
    latents = list(alphas)
    alpha_BTK = _strengths(acts_BTD, alphas)
    columns_KD = sae.decoder.weight[:, latents].T
    directions_KD = columns_KD / columns_KD.norm(dim=1, keepdim=True)
    if beta == "constant":
        strength_BTK = alpha_BTK.expand(*acts_BTD.shape[:-1], len(latents))
    else:
        latents_BTK = sae.encode(acts_BTD)[..., latents]
        if beta == "active":
            beta_BTK = (latents_BTK > 0).to(acts_BTD.dtype)
        else:
            beta_BTK = torch.where(alpha_BTK < 0, latents_BTK, 1 - latents_BTK)
        strength_BTK = alpha_BTK * beta_BTK
    return acts_BTD.norm(dim=-1, keepdim=True) * (strength_BTK @ directions_KD)


def _strengths(acts_BTD: Tensor, alphas: Mapping[int, Strength]) -> Tensor:
    """Return alpha_BTK, where B and T may be 1."""
    each = [torch.as_tensor(alpha, dtype=torch.float64).to(acts_BTD) for alpha in alphas.values()]
    rows = {len(alpha) for alpha in each if alpha.ndim == 1}
    if not rows:
        return torch.stack(each)
    if acts_BTD.ndim != 3 or rows != {len(acts_BTD)}:
        n_rows = len(acts_BTD) if acts_BTD.ndim == 3 else "no"
        raise UserError(f"alphas for {', '.join(map(str, sorted(rows)))} rows, but the batch has {n_rows} rows")
    return torch.stack([alpha.expand(len(acts_BTD)) for alpha in each], dim=1).unsqueeze(1)
