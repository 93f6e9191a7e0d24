"""How close a completion is to its prompt, by an embedding model that the user has at hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from utils.errors import UserError, first_line
from utils.models import LOADING_ERRORS, default_device
from utils.scorers.base import Scored, Scorer, Scores
from utils.scorers.fingerprints import model_fingerprint
from utils.scorers.transformer import ensure_padding

_ROWS = 16


@dataclass(frozen=True)
class Closeness(Scorer):
    """`closeness`: the cosine between the mean embeddings of completion and prompt; none for an empty text."""

    model: Any
    tokenizer: Any
    fingerprint: str
    name: str = "closeness"
    reads_prompt: bool = True

    @classmethod
    def load(cls, folder: str) -> "Closeness":
        """Load an encoder in the Hugging Face layout, from a folder or the hub.

        Raises:
            UserError: nothing there that can be loaded.
        """
        try:
            model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        except LOADING_ERRORS as error:
            raise UserError(f"--embedding-model {folder}: cannot be loaded ({first_line(error)})") from None
        ensure_padding(tokenizer)
        model = model.eval().to(default_device())
        return cls(model, tokenizer, f"closeness 1 {model_fingerprint(folder, model)}")

    def score(self, texts: Sequence[Scored]) -> list[Scores | None]:
        """Score completions beside their prompts."""
        pairs = [(text.prompt, text.text) for text in texts]
        filled = [pair for pair in pairs if all(part.strip() for part in pair)]
        flat_BD = self._embed([part for pair in filled for part in pair])
        cosines = iter(F.cosine_similarity(flat_BD[0::2], flat_BD[1::2]).tolist() if filled else [])
        return [{"closeness": next(cosines)} if all(part.strip() for part in pair) else {} for pair in pairs]

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> torch.Tensor:
        parts = []
        for start in range(0, len(texts), _ROWS):
            inputs = self.tokenizer(
                texts[start : start + _ROWS], return_tensors="pt", padding=True, truncation=True, max_length=512
            ).to(self.model.device)
            states_BTD = self.model(**inputs).last_hidden_state
            mask_BT1 = inputs["attention_mask"].unsqueeze(-1)
            parts.append(((states_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)).float().cpu())
        return torch.cat(parts) if parts else torch.empty(0, 1)
