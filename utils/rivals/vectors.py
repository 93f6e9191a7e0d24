"""Vectors that are added in every block: what ICV and DiffVec share."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessor

from utils.atomic import sha256_json
from utils.errors import UserError
from utils.hooks import decoder_blocks, output_tensor, site_module
from utils.models import LOADING_ERRORS
from utils.rivals.states import differences
from utils.steerers import Batch, Pairs, Steerer

_TENSORS = "vectors.safetensors"


@dataclass(frozen=True)
class VectorSteerer(Steerer):
    """Turns the output h of every block's feed-forward module towards a vector v, and keeps its norm.

    h' = ||h|| unit(h / ||h|| + strength (1 + max(0, cos(h, -v))) v / ||v||); a negative strength turns it away, with
    -v in place of v.

    Attributes:
        vectors_LD: v of each block.
        about: what they were fitted on: model, revision, data, number of pairs, seed.
    """

    vectors_LD: Tensor
    about: dict[str, Any]
    name = "vectors"

    @classmethod
    def fit(cls, model: Any, tokenizer: Any, pairs: Pairs, about: dict[str, Any]) -> Self:
        """Fit on the states of pairs; `about` is kept as it is."""
        return cls.of(differences(model, tokenizer, pairs), about)

    @classmethod
    @abstractmethod
    def of(cls, differences_MLD: Tensor, about: dict[str, Any]) -> Self:
        """Make one of the differences of M pairs' states, see `utils.rivals.states.differences`."""

    @property
    def settings(self) -> dict[str, Any]:
        """What they were fitted on."""
        return self.about

    @property
    def made_of(self) -> dict[str, Any]:
        """Method, what it was fitted on, and the vectors."""
        return super().made_of | {"vectors_sha256": sha256_json(self.vectors_LD.double().flatten().tolist())}

    @contextmanager
    def applied(self, model: Any, strengths: Sequence[float], batch: Batch) -> Iterator[list[LogitsProcessor]]:
        """Hook every feed-forward module.

        Raises:
            UserError: a model of another size than the vectors are for; a strength that is no number.
        """
        blocks = decoder_blocks(model)
        width = model.config.hidden_size
        if tuple(self.vectors_LD.shape) != (len(blocks), width):
            ours = " blocks of width ".join(map(str, self.vectors_LD.shape))
            raise UserError(f"{self.name} was fitted on {ours}, but the model has {len(blocks)} of width {width}")
        strength_B = torch.tensor(list(strengths), dtype=torch.float64)
        if not strength_B.isfinite().all():
            raise UserError(f"{self.name}: a strength must be a finite number")
        with ExitStack() as stack:
            if strength_B.any():
                for number, vector_D in enumerate(self.vectors_LD):
                    handle = site_module(model, number, "mlp").register_forward_hook(_Turn(vector_D, strength_B))
                    stack.callback(handle.remove)
            yield []

    def _save_tensors(self, folder: Path) -> None:
        save_file({"vectors": self.vectors_LD.contiguous()}, folder / _TENSORS)

    @classmethod
    def _loaded(cls, folder: Path, settings: dict[str, Any], tokenizer: Any) -> Self:
        try:
            return cls(load_file(folder / _TENSORS)["vectors"], settings)
        except LOADING_ERRORS as error:
            raise UserError(f"{folder / _TENSORS}: cannot be read ({error})") from None


class _Turn:
    """The hook of one block; it takes the dtype and device of what passes."""

    def __init__(self, vector_D: Tensor, strength_B: Tensor) -> None:
        self.vector_D, self.strength_B = vector_D, strength_B

    def __call__(self, _module: Any, _inputs: Any, output: Any) -> Any:
        h_BTD = output_tensor(output)
        strength_B11 = self.strength_B.to(h_BTD)[:, None, None]
        towards_BTD = F.normalize(self.vector_D.to(h_BTD), dim=-1) * strength_B11.sign()
        norm_BT1 = h_BTD.norm(dim=-1, keepdim=True)
        against_BT1 = 1 + F.cosine_similarity(h_BTD, -towards_BTD, dim=-1).clamp(min=0).unsqueeze(-1)
        turned_BTD = F.normalize(
            h_BTD / norm_BT1.clamp(min=1e-12) + strength_B11.abs() * against_BT1 * towards_BTD, dim=-1
        )
        changed_BTD = torch.where(strength_B11 == 0, h_BTD, norm_BT1 * turned_BTD)
        return (changed_BTD, *output[1:]) if isinstance(output, tuple) else changed_BTD
