"""How good an SAE is as an SAE: on cached activations, and inside its language model."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.activation_cache import ActivationSplit
from utils.losses import concept_losses, reconstruction_loss
from utils.measures import Measures
from utils.objective import StepResult
from utils.sae import SAE
from utils.tokens import special_token_ids

_QUALITIES = ("reconstruction_loss", "concept_loss", "l0", "fvu", "cosine", "dead_latents")


@torch.no_grad()
def measure(
    sae: SAE,
    data: ActivationSplit,
    batch_size: int,
    max_tokens: int | None = None,
    *,
    guided: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> Measures:
    """Measure an SAE on a split, or on evenly spaced tokens of it; of several processes, each takes its share.

    Args:
        sae: whose first latents are held against the labels.
        data: the split.
        batch_size: tokens at once.
        max_tokens: fewer tokens than the split has.
        guided: whether the loss includes that of the concepts, which is measured anyway.
        rank: this process, of `world_size`.
        world_size: how many processes share the tokens; all get the sums of all.
    """
    device = sae.pre_bias.device
    n_tokens = len(data) if max_tokens is None else min(len(data), max_tokens)
    rows = np.linspace(0, len(data) - 1, n_tokens).astype(np.int64)[rank::world_size]
    measures = Measures(sae.config.n_inputs, sae.config.n_latents, data.n_concepts, device, guided)
    for start in range(0, len(rows), batch_size):
        rows_B = rows[start : start + batch_size]
        acts_BD = torch.from_numpy(data.acts(rows_B)).to(device)
        labels_BC = torch.from_numpy(data.take("label", rows_B)).to(device)
        output = sae.training_forward(acts_BD, data.n_concepts)
        loss_B = reconstruction_loss(output.reconstruction_BD, acts_BD)
        loss_BC = concept_losses(output.concept_pre_BC, labels_BC)
        measures.add(acts_BD, labels_BC, StepResult(loss_B.mean(), loss_B, loss_BC, output))
    measures.reduce()
    return measures


def activation_quality(
    sae: SAE, data: ActivationSplit, batch_size: int, max_tokens: int | None = None
) -> dict[str, float]:
    """Return `reconstruction_loss`, `concept_loss`, `l0`, `fvu`, `cosine` and `dead_latents`, see `Measures.values`."""
    values = measure(sae, data, batch_size, max_tokens).values()
    return {name: values[name] for name in _QUALITIES}


@torch.no_grad()
def language_model_quality(model: Any, tokenizer: Any, texts: list[str], max_length: int = 512) -> dict[str, float]:
    """Measure what the model loses when it gets the SAE's reconstruction, against losing the activations altogether.

    Special tokens keep their activations, as SAEs are not trained on them. Texts are taken one by one, cut at
    `max_length` tokens; those with fewer than two tokens are left out.

    Args:
        model: with an SAE, see `utils.sae_model`.
        tokenizer: the model's.
        texts: what it predicts, token by token.
        max_length: the longest text, in tokens.

    Returns:
        `ce_clean`, `ce_sae`, `ce_ablated`: cross-entropy in nats per token; `kl_sae`, `kl_ablated`: KL divergence of
        the clean prediction from the changed one; `ce_recovered` = (ablated - sae) / (ablated - clean);
        `kl_recovered` = 1 - kl_sae / kl_ablated; `n_tokens` predicted.
    """
    special = torch.tensor(special_token_ids(tokenizer))
    sums: dict[str, float] = dict.fromkeys(("ce_clean", "ce_sae", "ce_ablated", "kl_sae", "kl_ablated"), 0.0)
    n_tokens = 0
    for input_ids_BT in tqdm(list(_sequences(tokenizer, texts, max_length)), unit="text", desc="language model"):
        untouched_BT = torch.isin(input_ids_BT, special)
        clean_TV = _log_probabilities(model, input_ids_BT, nullcontext())
        target_T1 = input_ids_BT[0, 1:, None].to(clean_TV.device)
        sums["ce_clean"] -= clean_TV.gather(1, target_T1).sum().item()
        for name, mode in (
            ("sae", model.reconstruct(untouched_BT=untouched_BT)),
            ("ablated", model.ablate(untouched_BT=untouched_BT)),
        ):
            changed_TV = _log_probabilities(model, input_ids_BT, mode)
            sums[f"ce_{name}"] -= changed_TV.gather(1, target_T1).sum().item()
            sums[f"kl_{name}"] += (clean_TV.exp() * (clean_TV - changed_TV)).sum().item()
        n_tokens += len(target_T1)
    if n_tokens == 0:
        return {"n_tokens": 0.0}
    values = {key: value / n_tokens for key, value in sums.items()}
    lost = values["ce_ablated"] - values["ce_clean"]
    return values | {
        "ce_recovered": (values["ce_ablated"] - values["ce_sae"]) / lost if lost else float("nan"),
        "kl_recovered": 1 - values["kl_sae"] / values["kl_ablated"] if values["kl_ablated"] else float("nan"),
        "n_tokens": float(n_tokens),
    }


def _sequences(tokenizer: Any, texts: list[str], max_length: int) -> Iterator[Tensor]:
    for text in texts:
        input_ids_BT = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][:, :max_length]
        if input_ids_BT.shape[1] > 1:
            yield input_ids_BT


def _log_probabilities(model: Any, input_ids_BT: Tensor, mode: AbstractContextManager[None]) -> Tensor:
    """Return log p of every next token, [T - 1, V], in float32."""
    with mode:
        logits_BTV = model(input_ids=input_ids_BT.to(model.device), use_cache=False).logits
    return torch.log_softmax(logits_BTV[0, :-1].float(), dim=-1)
