"""Extra streams of a model beside generation: the same text behind a prefix, each with its own keys and values."""

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from utils.rivals.formula import Formula
from utils.steerers import Batch
from utils.tokens import special_token_ids


class _PrefixedStream:
    """The prompts of a batch behind a prefix; asked step by step for the next token."""

    def __init__(self, model: Any, tokenizer: Any, prefix: str, batch: Batch) -> None:
        self.model, self.cache = model, None
        prefix_ids = tokenizer(prefix, add_special_tokens=False, verbose=False)["input_ids"]
        special = set(special_token_ids(tokenizer))
        rows = []
        for ids, mask in zip(batch.input_ids_BT.tolist(), batch.attention_mask_BT.tolist(), strict=True):
            own = [token for token, kept in zip(ids, mask, strict=True) if kept]
            # A beginning token stays in front of all.
            n_leading = next((i for i, token in enumerate(own) if token not in special), len(own))
            rows.append(own[:n_leading] + prefix_ids + own[n_leading:])
        longest, pad = max(map(len, rows)), tokenizer.pad_token_id or 0
        device = batch.input_ids_BT.device
        self.ids_BT = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
        self.mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)

    def log_p(self, input_ids_BT: Tensor) -> Tensor:
        """Return log_p_BV of the next token after what was written so far."""
        if self.cache is None:
            new_BT, positions_BT = self.ids_BT, (self.mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        else:
            new_BT = input_ids_BT[:, -1:]
            self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(new_BT)], dim=1)
            positions_BT = self.mask_BT.sum(dim=1, keepdim=True) - 1
        output = self.model(
            input_ids=new_BT,
            attention_mask=self.mask_BT,
            position_ids=positions_BT,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = output.past_key_values
        log_p_BV: Tensor = output.logits[:, -1].float().log_softmax(dim=-1)
        return log_p_BV


class FormulaProcessor(LogitsProcessor):
    """Puts a formula in place of the model's scores; rows of strength 0 keep theirs, bit for bit."""

    def __init__(self, model: Any, tokenizer: Any, formula: Formula, strength_B: Tensor, batch: Batch) -> None:
        self.formula, self.unsteered_B1 = formula, strength_B.unsqueeze(1) == 0
        self.streams = {
            prefix: _PrefixedStream(model, tokenizer, prefix, batch) for prefix in formula.prefixes() if prefix
        }

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the formula's scores for the next token."""
        known = {"": scores.float().log_softmax(dim=-1)}
        known |= {prefix: stream.log_p(input_ids) for prefix, stream in self.streams.items()}
        new_BV = self.formula.log_scores(known, input_ids).to(scores)
        return torch.where(self.unsteered_B1.to(scores.device), scores, new_BV)
