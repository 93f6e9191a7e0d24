"""Steering by an SAE's latents, behind the interface that all ways of steering share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from utils.columns import Columns
from utils.concept_latents import root
from utils.errors import UserError
from utils.latent_blocks import LatentBlocks
from utils.steerers import Batch, Pairs, Steerer
from utils.tokens import special_token_ids


@dataclass(frozen=True)
class LatentSteerer(Steerer):
    """Steers by decoder columns, see `utils.steering.steering_delta`; the model has the SAE attached."""

    latents: tuple[int, ...]
    beta: str
    name = "latents"

    @classmethod
    @torch.inference_mode()
    def fit(cls, model: Any, tokenizer: Any, pairs: Pairs, about: dict[str, Any]) -> "LatentSteerer":
        """Take the latents of the concepts the SAE was guided by, else the one that tells the texts apart best.

        Args:
            model: with the SAE attached.
            tokenizer: the model's.
            pairs: as for all; the means of each text's latents are told apart, by Gini impurity.
            about: `beta`; `concepts`, where the SAE was guided by others, too.

        Raises:
            UserError: no pairs; no such concept; texts that no latent tells apart.
        """
        if not pairs:
            raise UserError("no pairs to fit on")
        beta, guided_by = about.get("beta", "constant"), list(model.config.sae_concepts)
        if guided_by:
            latents = tuple(c for c, concept in enumerate(guided_by) if concept in about.get("concepts", guided_by))
            if not latents:
                raise UserError(f"the SAE was guided by {', '.join(guided_by)}, not by {', '.join(about['concepts'])}")
            return cls(latents, beta)
        texts = [text for pair in pairs for text in pair]
        labels_B = np.tile(np.array([0, 1], np.int8), len(pairs))
        means_BN = np.stack([_mean_latents(model, tokenizer, text) for text in texts])
        best = root(Columns.of(LatentBlocks.of(means_BN)), labels_B)
        if best < 0:
            raise UserError("no latent tells the texts of the pairs apart")
        return cls((best,), beta)

    @property
    def settings(self) -> dict[str, Any]:
        """Latents and beta."""
        return {"latents": list(self.latents), "beta": self.beta}

    @contextmanager
    def applied(self, model: Any, strengths: Sequence[float], batch: Batch) -> Iterator[list[LogitsProcessor]]:
        """All latents get a row's strength."""
        with model.steer({latent: list(strengths) for latent in self.latents}, beta=self.beta):
            yield []

    @classmethod
    def _loaded(cls, folder: Path, settings: dict[str, Any], tokenizer: Any) -> "LatentSteerer":
        return cls(tuple(int(latent) for latent in settings["latents"]), settings["beta"])


def _mean_latents(model: Any, tokenizer: Any, text: str) -> np.ndarray:
    """Return mean latents_N over a text's tokens, special ones left out."""
    ids_1T = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"].to(
        model.get_input_embeddings().weight.device
    )
    special = torch.tensor(special_token_ids(tokenizer), device=ids_1T.device)
    kept_T = ~torch.isin(ids_1T[0], special)
    if not kept_T.any():
        raise UserError("a text of a pair has no tokens")
    with model.capture() as seen:
        model(input_ids=ids_1T)
    means_N: np.ndarray = seen.latents[0][0][kept_T.to(seen.latents[0].device)].float().mean(dim=0).cpu().numpy()
    return means_N
