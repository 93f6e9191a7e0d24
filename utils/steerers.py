"""What all ways of steering have in common.

steerer = ICV.fit(model, tokenizer, pairs, {"seed": 0})
with steerer(model, -0.1):
model.generate(**inputs)
steerer.save(Path("ckpt/my_icv"))
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from utils.atomic import atomic_folder, read_json_object, write_json
from utils.errors import UserError

Pairs = Sequence[tuple[str, str]]  # (text without the attribute, text with it)
_FILE = "steerer.json"


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

    @classmethod
    @abstractmethod
    def fit(cls, model: Any, tokenizer: Any, pairs: Pairs, about: dict[str, Any]) -> Self:
        """Make one of pairs of texts.

        Args:
            model: a causal language model.
            tokenizer: its tokenizer.
            pairs: see `utils.rivals.states.make_pairs`.
            about: what they come from, which is kept, and settings, see each class.

        Raises:
            UserError: no pairs, or too few.
        """

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `save` writes as JSON."""

    @property
    def made_of(self) -> dict[str, Any]:
        """What decides completions, but for the strength."""
        return {"method": self.name} | self.settings

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

    @contextmanager
    def __call__(self, model: Any, strength: float) -> Iterator[None]:
        """Let `model.generate` steer all rows by one strength while this is open; inputs are padded on the left.

        Raises:
            UserError: by `generate`, for beams or several sequences a row; and whatever `applied` raises.
        """
        own, outer = model.generate, model.__dict__.get("generate")

        def generate(input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
            if kwargs.get("num_beams", 1) != 1 or kwargs.get("num_return_sequences", 1) != 1:
                raise UserError(f"{self.name}: one sequence for each row, without beams, can be steered")
            mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            with self.applied(model, [strength] * len(input_ids), Batch(input_ids, mask_BT)) as steering:
                every = LogitsProcessorList([*steering, *(kwargs.pop("logits_processor", None) or [])])
                return own(input_ids=input_ids, attention_mask=mask_BT, logits_processor=every, **kwargs)

        model.generate = generate
        try:
            yield
        finally:
            del model.generate
            if outer is not None:
                model.generate = outer

    def save(self, folder: Path) -> None:
        """Write it into a new folder."""
        with atomic_folder(folder) as temporary:
            write_json(temporary / _FILE, {"method": self.name, "settings": self.settings})
            self._save_tensors(temporary)

    @classmethod
    def load(cls, folder: Path, tokenizer: Any = None) -> Self:
        """Read what `save` wrote.

        Args:
            folder: where it lies.
            tokenizer: the model's, where the method needs one.

        Raises:
            UserError: nothing there, or another method's.
        """
        found = read_json_object(folder / _FILE, ("method", "settings"))
        if found["method"] != cls.name:
            raise UserError(f"{folder} holds {found['method']}, not {cls.name}")
        try:
            return cls._loaded(folder, found["settings"], tokenizer)
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / _FILE}: not what {cls.name} is made of ({error!r})") from None

    def _save_tensors(self, folder: Path) -> None:  # noqa: B027 - most have none
        """Write what is no JSON."""

    @classmethod
    @abstractmethod
    def _loaded(cls, folder: Path, settings: dict[str, Any], tokenizer: Any) -> Self:
        """Make one of what `save` wrote."""
