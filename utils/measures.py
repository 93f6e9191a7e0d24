"""What is reported of training and evaluation: sums over tokens, on the device, read only when asked for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from utils.objective import StepResult

_BINS = 1024  # of the pre-activations of a concept, for AUROC
_LOSSES = ("loss_r", "loss_r_labelled", "loss_c", "loss_c_labelled")
_SCALARS = ("tokens", "labelled", "steps", *_LOSSES, "residual", "l0", "cosine", "grad_norm", "acts_square")


class Measures:
    """Sums over tokens, such that those of two sets of tokens add up to those of both.

    Nothing here makes the host wait for the device until `values` or `concept_rows` is called.

    Args:
        n_inputs: width of the activations, D.
        n_latents: N.
        n_concepts: C; 0 for vanilla training.
        device: where the sums live.
        guided: whether the loss includes that of the concepts.
    """

    def __init__(
        self, n_inputs: int, n_latents: int, n_concepts: int, device: torch.device, guided: bool = True
    ) -> None:
        self.guided = guided
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys((*_SCALARS, "grad_norm", "acts_square"), ())
        shapes |= {"acts_D": (n_inputs,), "fired_N": (n_latents,), "loss_C": (n_concepts,), "correct_C": (n_concepts,)}
        shapes["bins_2CH"] = (2, n_concepts, _BINS)  # tokens without and with the label, by pre-activation
        self.sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}

    def empty(self) -> "Measures":
        """Return sums of the same shapes, all 0."""
        return Measures(
            len(self.sums["acts_D"]),
            len(self.sums["fired_N"]),
            len(self.sums["loss_C"]),
            self.sums["tokens"].device,
            self.guided,
        )

    @torch.no_grad()
    def add(self, acts_BD: Tensor, labels_BC: Tensor, result: StepResult) -> None:
        """Count a batch; `labels_BC` may have more columns than the concepts that are measured."""
        acts_BD = acts_BD.to(result.output.reconstruction_BD.dtype)
        square_B = acts_BD.square().sum(dim=1)
        cosine_B = F.cosine_similarity(result.output.reconstruction_BD, acts_BD, dim=1)
        labelled_B = (labels_BC > 0).any(dim=1)
        loss_c_B = result.concept_loss_BC.sum(dim=1)
        active_BK = result.output.kept_BK != 0
        fired = active_BK.to(torch.float64)
        if result.output.indices_BK is None:
            self.sums["fired_N"] += fired.sum(dim=0)
        else:
            self.sums["fired_N"].scatter_add_(0, result.output.indices_BK.flatten(), fired.flatten())
        for name, value in {
            "tokens": torch.ones_like(loss_c_B),
            "labelled": labelled_B,
            "loss_r": result.reconstruction_loss_B,
            "loss_r_labelled": result.reconstruction_loss_B * labelled_B,
            "loss_c": loss_c_B,
            "loss_c_labelled": loss_c_B * labelled_B,
            "residual": result.reconstruction_loss_B * square_B,
            "l0": active_BK,
            "cosine": cosine_B,
            "acts_square": square_B,
        }.items():
            self.sums[name] += value.sum()
        self.sums["acts_D"] += acts_BD.sum(dim=0)
        self._add_concepts(result.output.concept_pre_BC, labels_BC, result.concept_loss_BC)

    def _add_concepts(self, pre_BC: Tensor, labels_BC: Tensor, loss_BC: Tensor) -> None:
        n_concepts = pre_BC.shape[1]
        if n_concepts == 0:
            return
        label_BC = labels_BC[:, :n_concepts].long()
        self.sums["loss_C"] += loss_BC.sum(dim=0)
        self.sums["correct_C"] += ((pre_BC > 0) == (label_BC > 0)).sum(dim=0)
        # Finest near 0, where the latents of a fresh SAE are; every number has a bin.
        place_BC = (pre_BC / (1 + pre_BC.abs()) + 1) * (_BINS / 2)
        bin_BC = place_BC.nan_to_num(0).long().clamp(0, _BINS - 1)
        column_C = torch.arange(n_concepts, device=pre_BC.device)
        index_BC = (label_BC * n_concepts + column_C) * _BINS + bin_BC
        ones = torch.ones_like(index_BC, dtype=torch.float64)
        self.sums["bins_2CH"].view(-1).scatter_add_(0, index_BC.flatten(), ones.flatten())

    def add_step(self, grad_norm: Tensor) -> None:
        """Count an update and its gradient's norm, before clipping."""
        self.sums["steps"] += 1
        self.sums["grad_norm"] += grad_norm

    def merge(self, other: "Measures") -> None:
        """Add the sums of other tokens."""
        for name, value in other.sums.items():
            self.sums[name] += value

    def reset(self) -> None:
        """Set all sums to 0."""
        for value in self.sums.values():
            value.zero_()

    def reduce(self) -> None:
        """Add up the sums of all processes, in all of them."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            flat = torch.cat([value.flatten() for value in self.sums.values()])
            dist.all_reduce(flat)
            parts = flat.split([value.numel() for value in self.sums.values()])
            for value, part in zip(self.sums.values(), parts, strict=True):
                value.copy_(part.reshape(value.shape))
            # Every process makes every step, with the same gradient.
            self.sums["steps"] /= dist.get_world_size()
            self.sums["grad_norm"] /= dist.get_world_size()

    def values(self) -> dict[str, float]:
        """Return the means over the tokens.

        Returns:
            `loss`, `reconstruction_loss`, `concept_loss` (the unweighted BCE, summed over the concepts; part of the
            loss where training is guided), the last two also over tokens with any label (`_labelled`) and with none
            (`_unlabelled`); `fvu`, the fraction of variance unexplained; `cosine` between activation and
            reconstruction; `l0`; `dead_latents`, the share that no token activates; `concept_auroc` and
            `concept_accuracy`, means over the concepts; `grad_norm`, where there were updates. NaN where no token is.
        """
        sums = {name: value.cpu() for name, value in self.sums.items()}
        n, n_labelled, n_steps = (sums[name].item() for name in ("tokens", "labelled", "steps"))
        values = {"loss": _ratio((sums["loss_r"] + self.guided * sums["loss_c"]).item(), n)}
        for key, name in (("loss_r", "reconstruction_loss"), ("loss_c", "concept_loss")):
            total, labelled = sums[key].item(), sums[f"{key}_labelled"].item()
            values[name] = _ratio(total, n)
            values[f"{name}_labelled"] = _ratio(labelled, n_labelled)
            values[f"{name}_unlabelled"] = _ratio(total - labelled, n - n_labelled)
        variance = (sums["acts_square"] - sums["acts_D"].square().sum() / max(n, 1)).item()
        values["fvu"] = _ratio(sums["residual"].item(), variance)
        values |= {name: _ratio(sums[name].item(), n) for name in ("cosine", "l0")}
        values["dead_latents"] = (sums["fired_N"] == 0).double().mean().item()
        if len(sums["loss_C"]) > 0:
            values["concept_auroc"] = auroc(sums["bins_2CH"]).nanmean().item()
            values["concept_accuracy"] = _ratio(sums["correct_C"].mean().item(), n)
        if n_steps > 0:
            values["grad_norm"] = sums["grad_norm"].item() / n_steps
        return values

    def concept_rows(self, concepts: Sequence[str]) -> list[dict[str, Any]]:
        """Return one row per measured concept: its name, `positives`, `bce`, `auroc` and `accuracy` of its latent."""
        sums = {name: value.cpu() for name, value in self.sums.items()}
        n, positives_C, auroc_C = sums["tokens"].item(), sums["bins_2CH"][1].sum(dim=-1), auroc(sums["bins_2CH"])
        return [
            {
                "concept": concepts[c],
                "positives": int(positives_C[c]),
                "bce": _ratio(sums["loss_C"][c].item(), n),
                "auroc": auroc_C[c].item(),
                "accuracy": _ratio(sums["correct_C"][c].item(), n),
            }
            for c in range(len(positives_C))
        ]


def auroc(bins_2CH: Tensor) -> Tensor:
    """Return the areas under the ROC curves, [C], from counts of negatives and positives by ascending score.

    Scores of the same bin count as equal; NaN where a concept has no positives or no negatives.
    """
    negatives_CH, positives_CH = bins_2CH
    below_CH = negatives_CH.cumsum(dim=-1) - negatives_CH / 2
    pairs_C = negatives_CH.sum(dim=-1) * positives_CH.sum(dim=-1)
    return (below_CH * positives_CH).sum(dim=-1) / pairs_C


def _ratio(value: float, of: float) -> float:
    return value / of if of > 0 else float("nan")
