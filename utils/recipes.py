"""Named recipes: the paper's, `clear`, and what tells which part of it does what. See docs/recipes.md."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from utils.concept_init import FLOPS_PER_ROW, MOST_ROWS
from utils.errors import UserError
from utils.train_config import SAE_Train_config

# Concept latents: erased elsewhere, regressed at the start, and gated on their own.
CLEAR: Mapping[str, Any] = {
    "erase": "leace",
    "erased_skip": True,
    "concept_gate": "threshold",
    "gate_at": -3.25,
    "concept_init": "logistic",
}
# By whether labels are those of whole texts: few, which may go together; else of tokens, many, and of a token just one.
# A regression on all texts is done at the start, one on many tokens and labels nearly.
_BY_LABELS: Mapping[bool, Mapping[str, Any]] = {
    True: {"erase_parts": 16, "gate_margin": 0.0, "concept_lr": 0.0, "text_loss": True, "decorrelate": 8.0},
    False: {"erase_parts": 1, "gate_margin": 3.5, "concept_lr": 0.02, "text_loss": False, "decorrelate": 0.5},
}
WHOLE_TEXTS = ("SP", "RTP", "RTP_split", "CSD")  # data sets whose labels are those of texts
THIRD = "-third"
_WITHOUT: Mapping[str, Mapping[str, Any]] = {
    "erase": {"erase": "none", "erase_parts": 1, "erased_skip": False},
    "parts": {"erase_parts": 1},
    "skip": {"erased_skip": False},
    "gate": {"concept_gate": "topk", "gate_at": 0.0, "gate_margin": 0.0},
    "margin": {"gate_margin": 0.0},
    "warm": {"concept_init": "random", "concept_lr": 1.0},
    "short-steps": {"concept_lr": 1.0},
    "text": {"text_loss": False},
    "decorrelate": {"decorrelate": 0.0},
}
RECIPES: Mapping[str, str] = {
    "vanilla": "no guidance",
    "paper": "the paper's guidance",
    "clear": "all of it",
    f"paper{THIRD}": "a third of the paper's steps",
    f"clear{THIRD}": "a third of the paper's FLOPs",
    **{f"clear-no-{part}": f"without {part}" for part in _WITHOUT},
    "paper-erase": "the paper's, and erasure alone",
    "control-labels": "clear, with shuffled labels",
    "control-random": "clear, with a random subspace erased",
}


def clear_options(dataset: str) -> dict[str, Any]:
    """Return what `clear` adds to a run config for a data set."""
    whole_texts = dataset in WHOLE_TEXTS or dataset.startswith("Combi")
    return {**CLEAR, **_BY_LABELS[whole_texts]}


def recipe_config(
    name: str, paper: SAE_Train_config, *, whole_texts: bool, n_rows: int, n_tokens: int, n_concepts: int
) -> SAE_Train_config:
    """Return the run config of a recipe, of no more training FLOPs than the paper's.

    Args:
        name: of `RECIPES`.
        paper: the paper's recipe for these data.
        whole_texts: whether labels are those of whole texts.
        n_rows: texts then, else tokens, that a warm start is fitted on.
        n_tokens: of the training split.
        n_concepts: C.
    """
    budget = training_flops(paper, n_rows, n_tokens, n_concepts) / (3 if name.endswith(THIRD) else 1)
    config = replace(paper, **recipe_options(name, whole_texts=whole_texts))
    epochs = range(paper.max_epochs, 0, -1)
    within = (replace(config, max_epochs=n) for n in epochs)
    return next(
        (own for own in within if training_flops(own, n_rows, n_tokens, n_concepts) <= budget),
        replace(config, max_epochs=1),
    )


def recipe_options(name: str, *, whole_texts: bool) -> dict[str, Any]:
    """Return what a recipe of `RECIPES` changes in the paper's run config.

    Raises:
        UserError: it is to lack what `clear` does not have for such labels.
    """
    name = name.removesuffix(THIRD)
    if name in ("vanilla", "paper"):
        return {}
    if name == "paper-erase":
        return {"erase": "leace"}
    clear = {**CLEAR, **_BY_LABELS[whole_texts]}
    if name == "control-labels":
        return clear | {"control": "shuffled_labels"}
    if name == "control-random":
        return clear | {"control": "random_erasure"}
    without = dict(_WITHOUT[name.removeprefix("clear-no-")]) if name != "clear" else {}
    if without and clear | without == clear:
        raise UserError(f"{name}: for labels of {'whole texts' if whole_texts else 'tokens'} this is clear itself")
    return clear | without


def training_flops(config: SAE_Train_config, n_rows: int, n_tokens: int, n_concepts: int) -> float:
    """Return the floating-point operations of a run: a multiplication and an addition are two.

    Of the products over all latents only the encoder's forward one is; the decoder's and the gradients' run over the
    kept latents, see `utils.topk_products`. What a warm start and an erasure take comes on top.

    Args:
        config: of a TopK activation.
        n_rows: that a warm start is fitted on.
        n_tokens: of an epoch.
        n_concepts: C; 0: a vanilla run.
    """
    d_model, kept = config.n_inputs, config.k + (n_concepts if config.concept_gate == "threshold" else 0)
    n_latents = config.sae.n_latents
    per_token = 2.0 * d_model * (n_latents + 4 * kept + n_concepts)
    start = 0.0
    if n_concepts:
        if config.erase != "none":
            n_erased = n_concepts * config.erase_parts
            start += 2.0 * n_tokens * d_model * (d_model + n_erased) + 10.0 * d_model**3
            per_token += (10.0 if config.erased_skip else 4.0) * d_model * n_erased
        if config.text_loss:
            start += 2.0 * n_tokens * d_model
            per_token += 6.0 * d_model * n_concepts
        if config.decorrelate:
            per_token += 6.0 * kept * n_concepts
        if config.concept_init == "logistic":
            rows = min(n_rows, MOST_ROWS)
            start += (FLOPS_PER_ROW * n_concepts + 2.0 * d_model) * rows * d_model + 10.0 * d_model**3
    steps = n_tokens // config.batch_size * config.max_epochs
    return start + per_token * steps * config.batch_size
