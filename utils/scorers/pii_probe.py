"""Personal data by a linear probe on a language model's activations: a token classifier that needs no other model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from utils.activation_cache import ActivationCache, ActivationSplit
from utils.atomic import atomic_file
from utils.errors import UserError, first_line
from utils.extraction import Extractor
from utils.labelled_text import Span, Text
from utils.models import find_model, load_tokenizer
from utils.scorers.base import Scored
from utils.scorers.fingerprints import fitted_fingerprint
from utils.tokens import tokenise

FILE = "probe.skops"
_ABOUT = ("model", "block", "site", "revision")
_MAX_LENGTH = 2048


def train_pii_probe(cache: ActivationCache, split: ActivationSplit, most_tokens: int, seed: int, folder: Path) -> None:
    """Fit the probe on tokens with any label against those without, and store it.

    Args:
        cache: of which the split is.
        split: tokens with labels.
        most_tokens: chosen at random.
        seed: of the choice.
        folder: where to.

    Raises:
        UserError: tokens of one kind only.
    """
    rows_B = np.arange(len(split))
    if len(rows_B) > most_tokens:
        rows_B = np.sort(np.random.default_rng(seed).choice(rows_B, most_tokens, replace=False))
    labels_B = split.label_BC[rows_B].any(axis=1)
    if len(np.unique(labels_B)) < 2:
        raise UserError(f"{cache.folder}: the probe needs tokens with labels and without")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, tol=1e-3))
    probe.fit(split.acts(rows_B), labels_B)
    if (folder / "config.json").exists():
        raise UserError(f"{folder} holds a transformer; choose another --out, or remove it")
    with atomic_file(folder / FILE) as temporary:
        skops.io.dump({"probe": probe} | {key: cache.manifest[key] for key in _ABOUT}, temporary)


@dataclass(frozen=True)
class PIIProbe:
    """Finds personal data by a probe, read after the prompt; see `train_pii_probe`."""

    probe: Pipeline
    extractor: Extractor
    tokenizer: Any
    fingerprint: str

    @classmethod
    def load(cls, folder: Path, model_path: str | None = None) -> "PIIProbe":
        """Load a probe, and the language model it reads the activations of (from `model_path`, where given).

        Raises:
            UserError: no probe there, or other weights of the model than it was trained on.
        """
        try:
            about = skops.io.load(folder / FILE)
            model, block, site, revision = (about[key] for key in _ABOUT)
        except Exception as error:
            raise UserError(f"{folder / FILE}: not a probe ({first_line(error)})") from None
        source = find_model(model, model_path)
        if source.revision != revision:
            raise UserError(f"{source.folder}: other weights than {folder} was trained on")
        extractor = Extractor.load(source, block, site)
        fingerprint = f"probe {fitted_fingerprint(about['probe'])} {model} {block} {site} {revision}"
        return cls(about["probe"], extractor, load_tokenizer(source), fingerprint)

    def find(self, texts: Sequence[Scored]) -> list[list[Span]]:
        """Return the spans of personal data in each text; what its prompt holds does not count."""
        joined = [Text(text.prompt + text.text) for text in texts]
        tokenised = tokenise(joined, list(range(len(joined))), self.tokenizer, [], _MAX_LENGTH)
        filled = [one for one in tokenised if one.n_rows]
        if not filled:
            return [[] for _ in texts]
        acts_BD = self.extractor.activations(filled, "float32").cpu().numpy()
        values = iter(np.split(self.probe.predict_proba(acts_BD)[:, 1], np.cumsum([one.n_rows for one in filled])))
        found: list[list[Span]] = []
        for text, one in zip(texts, tokenised, strict=True):
            if not one.n_rows:
                found.append([])
                continue
            offsets = self.tokenizer(text.prompt + text.text, return_offsets_mapping=True, verbose=False)
            kept = [pair for pair, keep in zip(offsets["offset_mapping"], one.keep_T, strict=False) if keep]
            found.append(spans_of_tokens(text, kept, next(values).tolist()))
        return found


def spans_of_tokens(text: Scored, offsets: Sequence[tuple[int, int]], values_T: Sequence[float]) -> list[Span]:
    """Join tokens of a prompt and a text that are personal data (0.5 or more) to spans of the text alone.

    Tokens with nothing but white space between them belong to one span.
    """
    joined, shift = text.prompt + text.text, len(text.prompt)
    spans: list[Span] = []
    for (first, end), value in zip(offsets, values_T, strict=True):
        piece = joined[first:end]
        start = max(first + len(piece) - len(piece.lstrip()), shift)
        if value < 0.5 or start >= end:
            continue
        if spans and not joined[spans[-1].end + shift : start].strip():
            spans[-1] = Span(spans[-1].start, end - shift, "?")
        else:
            spans.append(Span(start - shift, end - shift, "?"))
    return spans
