"""PreAdd (Pei et al. 2023): l + alpha (l_prefix - l), l the model's logits, l_prefix those behind a prefix."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import LogitsProcessor

from utils.errors import UserError
from utils.rivals.formula import Formula, M, Weight, with_prefix
from utils.rivals.streams import FormulaProcessor
from utils.scorers.base import Scored
from utils.scorers.fluency import log_perplexities
from utils.steerers import Batch, Pairs, Steerer


@dataclass(frozen=True)
class FormulaSteerer(Steerer):
    """Steers by a formula over the model with and without a prefix that invites the attribute.

    Attributes:
        prefix: a sentence.
        tokenizer: the model's.
    """

    prefix: str
    tokenizer: Any

    @classmethod
    def fit(cls, model: Any, tokenizer: Any, pairs: Pairs, about: dict[str, Any]) -> Self:
        """Take the prefix that invites the attribute most, of the `prefixes` in `about`.

        That is where the positive texts become likelier than the negative ones, in nats per token; the pairs' own
        likelihoods cancel, so that no text without a prefix is needed.

        Raises:
            UserError: no pairs, or no prefix.
        """
        prefixes = list(about["prefixes"])
        if not pairs or not prefixes:
            raise UserError(f"{cls.name} needs pairs and prefixes to choose among")
        scores = [_invites(model, tokenizer, pairs, prefix) for prefix in prefixes]
        return cls(prefixes[scores.index(max(scores))], tokenizer)

    @abstractmethod
    def formula(self, strength_B: Weight) -> Formula:
        """Return the formula for these strengths."""

    @property
    def settings(self) -> dict[str, Any]:
        """The prefix."""
        return {"prefix": self.prefix}

    @classmethod
    def _loaded(cls, folder: Path, settings: dict[str, Any], tokenizer: Any) -> Self:
        if tokenizer is None:
            raise UserError(f"{cls.name} needs the model's tokenizer")
        return cls(settings["prefix"], tokenizer)

    @contextmanager
    def applied(self, model: Any, strengths: Sequence[float], batch: Batch) -> Iterator[list[LogitsProcessor]]:
        """Steer by a processor of scores; the model itself is not touched.

        Raises:
            UserError: an empty prefix, or a strength that is no number or leaves no token possible.
        """
        strength_B = torch.tensor(list(strengths), dtype=torch.float64)
        if not strength_B.isfinite().all():
            raise UserError(f"{self.name}: a strength must be a finite number")
        formula = self.formula(strength_B)
        yield [FormulaProcessor(model, self.tokenizer, formula, strength_B, batch)] if strength_B.any() else []


def _invites(model: Any, tokenizer: Any, pairs: Pairs, prefix: str) -> float:
    negative, positive = (
        [
            nll
            for nll in log_perplexities(model, tokenizer, [Scored(prefix, " " + text) for text in texts])
            if nll is not None
        ]
        for texts in zip(*pairs, strict=True)
    )
    return float(np.mean(negative) - np.mean(positive))


@dataclass(frozen=True)
class PreAdd(FormulaSteerer):
    """See the module; the strength is alpha, -1 against the attribute."""

    name = "preadd"

    def formula(self, strength_B: Weight) -> Formula:
        """Return M + alpha (M_prefix - M)."""
        return M + (with_prefix(self.prefix) - M) * strength_B
