"""Fluency: perplexity under the unsteered model, and how much a completion repeats itself."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F

from utils.scorers.base import Scored, Scorer, Scores
from utils.tokens import prompt_ids

_ROWS = 16


class Fluency(Scorer):
    """How a completion reads.

    `log_perplexity`: the mean negative log-likelihood of its tokens after the prompt, in nats, under the model without
    steering; `distinct_1` and `distinct_2`: the share of different words, and pairs of words, among all;
    `repetition`: the share of words that occurred within the eight before; `n_words`.

    Args:
        model: a causal language model; with an SAE, it must not be steered now.
        tokenizer: its tokenizer.
        revision: what identifies its weights.
    """

    name = "fluency"
    reads_prompt = True

    def __init__(self, model: Any, tokenizer: Any, revision: str) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.fingerprint = f"fluency 2 {revision} {model.dtype}"

    def score(self, texts: Sequence[Scored]) -> list[Scores | None]:
        """Score completions after their prompts."""
        scores: list[Scores | None] = []
        for text, nll in zip(texts, log_perplexities(self.model, self.tokenizer, texts), strict=True):
            known = {} if nll is None else {"log_perplexity": nll}
            scores.append(_of_words(text.text.split()) | known)
        return scores


@torch.inference_mode()
def log_perplexities(model: Any, tokenizer: Any, texts: Sequence[Scored]) -> list[float | None]:
    """Return the mean negative log-likelihood, in nats, of each text's tokens after its prompt; None where it has none.

    Texts of similar length share a batch, padded on the right.

    Args:
        model: a causal language model, as it is now: steered, if it is.
        tokenizer: its tokenizer.
        texts: what to predict, and after what.
    """
    prompts = [prompt_ids(tokenizer, text.prompt) for text in texts]
    own = [tokenizer(text.text, verbose=False, add_special_tokens=False)["input_ids"] for text in texts]
    rows = [(prompt, ids) for prompt, ids in zip(prompts, own, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    values: list[float | None] = [None] * len(rows)
    for start in range(0, len(order), _ROWS):
        batch = order[start : start + _ROWS]
        for i, value in zip(batch, _of_batch(model, [rows[i] for i in batch]), strict=True):
            values[i] = value
    return values


def _of_batch(model: Any, rows: list[tuple[list[int], list[int]]]) -> list[float | None]:
    longest = max(len(prompt) + len(ids) for prompt, ids in rows)
    if longest < 2:
        return [None] * len(rows)
    device = model.get_input_embeddings().weight.device
    padding = [longest - len(prompt) - len(ids) for prompt, ids in rows]
    ids_BT = torch.tensor([prompt + ids + [0] * n for (prompt, ids), n in zip(rows, padding, strict=True)])
    mask_BT = torch.tensor([[1] * (longest - n) + [0] * n for n in padding])
    logits_BTV = model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device)).logits[:, :-1].float()
    next_BT = ids_BT[:, 1:].to(logits_BTV.device)
    nll_BT = F.cross_entropy(logits_BTV.flatten(0, 1), next_BT.flatten(), reduction="none").view(next_BT.shape)
    values: list[float | None] = []
    for nll_T, (prompt, ids) in zip(nll_BT, rows, strict=True):
        first, last = max(len(prompt), 1), len(prompt) + len(ids)  # nothing predicts the very first token
        values.append(nll_T[first - 1 : last - 1].mean().item() if last > first else None)
    return values


def _of_words(words: list[str]) -> Scores:
    scores = {"n_words": float(len(words))}
    if words:
        scores["distinct_1"] = len(set(words)) / len(words)
        scores["repetition"] = sum(word in words[max(0, i - 8) : i] for i, word in enumerate(words)) / len(words)
    if len(words) > 1:
        pairs = list(pairwise(words))
        scores["distinct_2"] = len(set(pairs)) / len(pairs)
    return scores
