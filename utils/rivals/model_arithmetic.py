"""Model Arithmetic (Dekoninck et al. 2024): linear M - 0.6 M_bad, or the union M - 0.96 max(M_bad, M)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.rivals.formula import Formula, M, Weight, classified, maximum, with_prefix
from utils.rivals.preadd import FormulaSteerer


@dataclass(frozen=True)
class ModelArithmetic(FormulaSteerer):
    """See the module; the strength is the weight of M_bad, negative against the attribute, more than -1.

    Attributes:
        union: max(M_bad, M) in place of M_bad.
        attribute: tells how probably texts have the attribute; weighted by the strength, too, where there is one.
    """

    union: bool = False
    attribute: Callable[[list[str]], Sequence[float]] | None = None
    name = "model-arithmetic"

    @property
    def settings(self) -> dict[str, Any]:
        """Prefix and kind; a classifier is not saved, see `dataclasses.replace`."""
        return super().settings | {"union": self.union, "classifier": self.attribute is not None}

    @classmethod
    def _loaded(cls, folder: Path, settings: dict[str, Any], tokenizer: Any) -> "ModelArithmetic":
        return replace(super()._loaded(folder, settings, tokenizer), union=bool(settings["union"]))

    def formula(self, strength_B: Weight) -> Formula:
        """Return M + strength M_bad, or M + strength max(M_bad, M); and strength times the classifier's term."""
        bad = with_prefix(self.prefix)
        formula = M + (maximum(bad, M) if self.union else bad) * strength_B
        if self.attribute is None:
            return formula
        return formula + classified(self.attribute, self._decode) * strength_B

    def _decode(self, rows: list[list[int]]) -> list[str]:
        decoded: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return decoded
