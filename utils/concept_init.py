"""A warm start: the concepts' encoder rows begin as a logistic regression on the training tokens, or texts."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.activation_cache import ActivationSplit
from utils.sae import SAE
from utils.text_means import EVIDENCE, TextMeans

MOST_ROWS = 200_000  # tokens that a regression is fitted on, evenly spaced
MOST_BYTES = 2**28  # of them that stay in memory
_ROWS = 16_384
_TOKEN_PENALTY, _TEXT_PENALTY = 3e-4, 3e-3  # of squared weights; there are far fewer texts
_EVALUATIONS = 28  # of the loss
_LEAST_SPREAD = 1e-6  # of a label: its share times that of its absence
FLOPS_PER_ROW = 4 * _EVALUATIONS  # of one latent and input: forward and backward
Chunks = Callable[[], Iterator[tuple[Tensor, Tensor]]]  # (z_BD, labels_BC), the same every time


@torch.no_grad()
def start_from_regression(sae: SAE, split: ActivationSplit, means: TextMeans | None) -> None:
    """Set the first C rows of encoder and latent bias such that pre is a logistic regression's log-odds.

    With means, these are the texts', and the tokens have a third of them (see `EVIDENCE`).

    The decoder's columns start as the difference of the classes' mean normalised activations, so that a latent that
    fires at 1 writes what the concept adds; that of a label which never occurs, or always, stays as it is.

    Args:
        sae: is changed; its pre-bias is 0.
        split: the tokens and labels, read batch by batch.
        means: of texts; then the regression is on them, not on tokens.
    """
    n_concepts = split.n_concepts
    if means is None:
        chunks, penalty = partial(_tokens, sae, split), _TOKEN_PENALTY
    else:
        chunks, penalty = partial(_texts, means), _TEXT_PENALTY
    n_rows = min(len(split), MOST_ROWS) if means is None else 0
    if n_rows * split.d_model * 4 <= MOST_BYTES:
        kept = list(chunks())  # so few that they need not be read for every step
        chunks = partial(iter, kept)
    weight_CD, bias_C = regress(chunks, split.d_model, n_concepts, penalty, sae.pre_bias.device)
    share = 1 if means is None else EVIDENCE
    sae.encoder.weight[:n_concepts] = weight_CD / share
    sae.latent_bias[:n_concepts] = bias_C / share
    difference_CD, known_C = _class_differences(chunks)
    columns_CD = sae.decoder.weight[:, :n_concepts].T
    sae.decoder.weight[:, :n_concepts] = torch.where(known_C[:, None], difference_CD, columns_CD).T


def _tokens(sae: SAE, split: ActivationSplit) -> Iterator[tuple[Tensor, Tensor]]:
    device = sae.pre_bias.device
    rows_B = np.unique(np.linspace(0, len(split) - 1, min(len(split), MOST_ROWS)).astype(np.int64))
    for start in range(0, len(rows_B), _ROWS):
        own_B = rows_B[start : start + _ROWS]
        z_BD = sae.normalise(torch.from_numpy(split.acts(own_B)).to(device))[0]
        yield z_BD, torch.from_numpy(split.take("label", own_B)).to(device)


def _texts(means: TextMeans) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(means.means_TD.split(_ROWS), means.labels_TC.split(_ROWS), strict=True)


@torch.enable_grad()
def regress(
    chunks: Chunks, n_inputs: int, n_concepts: int, penalty: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Fit one logistic regression per concept by L-BFGS; return weight_CD and bias_C.

    The search goes over coordinates in which the curvature at its start is about 1 for every concept and direction:
    inputs' variances lie orders of magnitude apart, as labels' shares do. The minimum is that of the plain regression.

    Args:
        chunks: the rows; gone through once for every evaluation of the loss.
        n_inputs: D.
        n_concepts: C.
        penalty: half of it times the squared weights is added to the mean loss.
        device: of the result.
    """
    mean_D, variance_D, axes_DD, share_C, n_rows = _moments(chunks)
    spread_C = (share_C * (1 - share_C)).clamp(min=_LEAST_SPREAD)
    weight_scale_CD = (spread_C[:, None] * variance_D + penalty).rsqrt()
    bias_scale_C, start_C = spread_C.rsqrt(), torch.logit(share_C, eps=_LEAST_SPREAD)
    found_CD = torch.zeros(n_concepts, n_inputs, device=device, requires_grad=True)
    found_C = torch.zeros(n_concepts, device=device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [found_CD, found_C], max_iter=_EVALUATIONS, max_eval=_EVALUATIONS, line_search_fn="strong_wolfe"
    )

    def fitted() -> tuple[Tensor, Tensor]:
        return (found_CD.detach() * weight_scale_CD) @ axes_DD.T, start_C + found_C.detach() * bias_scale_C

    def loss() -> Tensor:
        optimizer.zero_grad()
        weight_CD, bias_C = (part.requires_grad_() for part in fitted())
        weight_CD.grad, bias_C.grad = penalty * weight_CD.detach(), torch.zeros_like(bias_C)
        total = penalty / 2 * weight_CD.detach().square().sum()
        for z_BD, labels_BC in chunks():
            pre_BC = F.linear(z_BD - mean_D, weight_CD, bias_C)
            part = F.binary_cross_entropy_with_logits(pre_BC, labels_BC.to(pre_BC.dtype), reduction="sum") / n_rows
            part.backward()
            total = total.detach() + part.detach()
        found_CD.grad, found_C.grad = (weight_CD.grad @ axes_DD) * weight_scale_CD, bias_C.grad * bias_scale_C
        return total

    optimizer.step(loss)
    weight_CD, bias_C = fitted()
    return weight_CD, bias_C - weight_CD @ mean_D


@torch.no_grad()
def _moments(chunks: Chunks) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Return the mean of the inputs, their variances along their axes, the share of each label, and how many rows."""
    sums: list[Tensor] = []
    n_rows = 0
    for z_BD, labels_BC in chunks():
        wide_BD = z_BD.double()
        own = [wide_BD.sum(dim=0), wide_BD.T @ wide_BD, labels_BC.double().sum(dim=0)]
        sums = [total + part for total, part in zip(sums, own, strict=True)] if sums else own
        n_rows += len(z_BD)
    mean_D, square_DD, share_C = (total / n_rows for total in sums)
    variance_D, axes_DD = torch.linalg.eigh(square_DD - mean_D[:, None] * mean_D)
    return mean_D.float(), variance_D.clamp(min=0).float(), axes_DD.float(), share_C.float(), n_rows


def _class_differences(chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Return the mean with each label less the mean without it, [C, D], and whether there are both, [C]."""
    parts: list[tuple[Tensor, ...]] = [
        (has_CB @ z_BD, (1 - has_CB) @ z_BD, has_CB.sum(dim=1), torch.tensor(has_CB.shape[1]))
        for has_CB, z_BD in ((labels_BC.T.float(), z_BD) for z_BD, labels_BC in chunks())
    ]
    with_CD, without_CD, n_with_C = (torch.stack([part[i] for part in parts]).sum(dim=0) for i in range(3))
    n_without_C = sum(part[3] for part in parts) - n_with_C
    difference_CD = with_CD / n_with_C.clamp(min=1)[:, None] - without_CD / n_without_C.clamp(min=1)[:, None]
    return difference_CD, (n_with_C > 0) & (n_without_C > 0)
