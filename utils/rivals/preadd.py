"""PreAdd (Pei et al. 2023): l + alpha (l_prefix - l), l the model's logits, l_prefix those behind a prefix."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor

from utils.errors import UserError
from utils.rivals.formula import Formula, M, Weight, with_prefix
from utils.rivals.streams import FormulaProcessor
from utils.steerers import Batch, Steerer


@dataclass(frozen=True)
class FormulaSteerer(Steerer):
    """Steers by a formula over the model with and without a prefix that invites the attribute.

    Attributes:
        prefix: a sentence.
        tokenizer: the model's.
    """

    prefix: str
    tokenizer: Any

    @abstractmethod
    def formula(self, strength_B: Weight) -> Formula:
        """Return the formula for these strengths."""

    @property
    def made_of(self) -> dict[str, Any]:
        """Method and prefix."""
        return {"method": self.name, "prefix": self.prefix}

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


@dataclass(frozen=True)
class PreAdd(FormulaSteerer):
    """See the module; the strength is alpha, -1 against the attribute."""

    name = "preadd"

    def formula(self, strength_B: Weight) -> Formula:
        """Return M + alpha (M_prefix - M)."""
        return M + (with_prefix(self.prefix) - M) * strength_B
