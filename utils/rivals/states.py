"""Pairs of texts without and with an attribute, and a model's hidden states at their last tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.errors import UserError
from utils.hooks import decoder_blocks, output_tensor
from utils.labelled_text import Text

_ROWS = 16


def make_pairs(texts: Sequence[Text], concepts: Sequence[str], n_pairs: int, seed: int) -> list[tuple[str, str]]:
    """Draw pairs (text without any of the concepts, text with one).

    Where labels are those of whole texts, two texts make a pair; where they are those of tokens, a text and the same
    with `[CONCEPT]` in place of each of its spans.

    Args:
        texts: of the training split.
        concepts: the attribute; texts with any of them are the positive ones.
        n_pairs: how many; fewer where the rarer kind of text is used up.
        seed: of the choice.

    Raises:
        UserError: no text of one kind.
    """
    random = np.random.default_rng([seed, 8])
    marked = [text for text in texts if any(span.concept in concepts for span in text.spans)]
    if any(not _is_whole(text, concepts) for text in marked):
        chosen = [marked[i] for i in random.choice(len(marked), min(n_pairs, len(marked)), replace=False)]
        return [(_masked(text, concepts), text.text) for text in chosen]
    kinds: list[list[str]] = [[], []]
    for text in texts:
        if text.text.strip():
            kinds[any(span.concept in concepts for span in text.spans)].append(text.text)
    if not all(kinds):
        raise UserError(f"pairs need texts with and without {', '.join(concepts)}")
    n = min(n_pairs, *map(len, kinds))
    drawn = [[own[i] for i in random.choice(len(own), n, replace=False)] for own in kinds]
    return pair_up(*drawn)


def pair_up(negative: Sequence[str], positive: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of texts without and with an attribute.

    Raises:
        UserError: more of one than of the other.
    """
    if len(negative) != len(positive):
        raise UserError(f"pairs: {len(negative)} texts without the attribute, but {len(positive)} with it")
    return list(zip(negative, positive, strict=True))


def _is_whole(text: Text, concepts: Sequence[str]) -> bool:
    return all((span.start, span.end) == (0, len(text.text)) for span in text.spans if span.concept in concepts)


def _masked(text: Text, concepts: Sequence[str]) -> str:
    masked = text.text
    for span in sorted(text.spans, key=lambda span: -span.start):
        if span.concept in concepts:
            masked = f"{masked[: span.start]}[{span.concept}]{masked[span.end :]}"
    return masked


@torch.inference_mode()
def last_states(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Return states_MLD: the output of each of the L blocks at the last token of each of M texts, in float32.

    Raises:
        UserError: a text without tokens.
    """
    encoded = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    if not all(encoded):
        raise UserError("a text of a pair has no tokens")
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    blocks = decoder_blocks(model)
    states: list[Tensor] = [torch.empty(0)] * len(encoded)
    for start in tqdm(range(0, len(order), _ROWS), unit="batch", desc="states", delay=5):
        rows = order[start : start + _ROWS]
        for i, states_LD in zip(rows, _of_batch(model, blocks, [encoded[i] for i in rows]), strict=True):
            states[i] = states_LD
    return torch.stack(states)


def _of_batch(model: Any, blocks: Any, encoded: list[list[int]]) -> Tensor:
    """Run one batch, padded on the right; return states_BLD."""
    device = model.get_input_embeddings().weight.device
    longest = max(map(len, encoded))
    ids_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids in encoded], device=device)
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in encoded], device=device)
    last_B = torch.tensor([len(ids) - 1 for ids in encoded])
    seen: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        acts_BTD = output_tensor(output)
        seen.append(acts_BTD[torch.arange(len(encoded)), last_B.to(acts_BTD.device)].float().cpu())

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen, dim=1)


def differences(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """Return states_MLD of the positive texts less those of the negative ones.

    Raises:
        UserError: no pairs.
    """
    if not pairs:
        raise UserError("no pairs to fit on")
    negative, positive = zip(*pairs, strict=True)
    return last_states(model, tokenizer, positive) - last_states(model, tokenizer, negative)
