"""What all ways of steering have in common, and steering by an SAE's latents as one of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor


@dataclass(frozen=True)
class Batch:
    """The prompts that are continued together, padded on the left.

    Attributes:
        input_ids_BT: their tokens.
        attention_mask_BT: 0 where there is padding.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor


class Steerer(ABC):
    """A way of steering; it is applied while `applied` is open, and leaves no trace in the model afterwards."""

    name: str

    @property
    @abstractmethod
    def made_of(self) -> dict[str, Any]:
        """What decides completions, but for the strength."""

    @abstractmethod
    def applied(self, model: Any, strengths: Sequence[float], batch: Batch) -> Any:
        """Steer each row by its own strength (0: not at all, bit for bit).

        Args:
            model: a causal language model.
            strengths: of the rows.
            batch: what is continued.

        Returns:
            A context manager, which yields processors for `generate(logits_processor=...)`.
        """


@dataclass(frozen=True)
class LatentSteerer(Steerer):
    """Steers by decoder columns, see `utils.steering.steering_delta`; the model has the SAE attached."""

    latents: tuple[int, ...]
    beta: str

    @property
    def name(self) -> str:  # type: ignore[override]
        """The kind of beta."""
        return self.beta

    @property
    def made_of(self) -> dict[str, Any]:
        """Latents and beta."""
        return {"latents": list(self.latents), "beta": self.beta}

    @contextmanager
    def applied(self, model: Any, strengths: Sequence[float], batch: Batch) -> Iterator[list[LogitsProcessor]]:
        """All latents get a row's strength."""
        with model.steer({latent: list(strengths) for latent in self.latents}, beta=self.beta):
            yield []
