"""Classifiers that are fine-tuned transformers: of texts (style, toxicity) and of tokens (personal data)."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from utils.atomic import atomic_folder
from utils.errors import UserError, first_line
from utils.labelled_text import Span, Text
from utils.models import LOADING_ERRORS, default_device, quiet_loading
from utils.scorers.base import Scored, Scorer, Scores
from utils.scorers.fingerprints import model_fingerprint
from utils.scorers.pii_probe import spans_of_tokens
from utils.tokens import label_tokens

_ROWS = 16
_MAX_LENGTH = 256
NO_LABEL = -100  # what the loss passes over


@dataclass(frozen=True)
class FineTuning:
    """How a base model is trained on; the defaults are the paper's for the classifier of style."""

    epochs: float = 2
    lr: float = 2e-5
    batch_size: int = 16
    weight_decay: float = 0.01
    seed: int = 0


def fine_tune_texts(base: str, texts: Sequence[Text], classes: tuple[str, str], how: FineTuning, out: Path) -> None:
    """Train a base model to tell texts with labels (the second class) from those without, and store it.

    Raises:
        UserError: a base that cannot be loaded.
    """
    names = dict(enumerate(classes))
    model, tokenizer = _load(AutoModelForSequenceClassification, base, whole=False, **_two(names))
    rows = [
        tokenizer(text.text, truncation=True, max_length=_MAX_LENGTH) | {"labels": int(bool(text.spans))}
        for text in texts
    ]
    _train(model, tokenizer, rows, DataCollatorWithPadding(tokenizer), how, out)


def fine_tune_tokens(base: str, texts: Sequence[Text], how: FineTuning, out: Path) -> None:
    """Train a base model to tell tokens that share a character with a span from those that do not, and store it.

    Raises:
        UserError: a base that cannot be loaded, or whose tokenizer does not tell where tokens come from.
    """
    names = {0: "O", 1: "PII"}
    model, tokenizer = _load(AutoModelForTokenClassification, base, whole=False, **_two(names))
    _check_fast(tokenizer, base)
    rows = []
    for text in texts:
        row = tokenizer(text.text, truncation=True, max_length=_MAX_LENGTH, return_offsets_mapping=True)
        offsets = row.pop("offset_mapping")
        labels_T = label_tokens(text.text, text.spans, offsets, dict.fromkeys((s.concept for s in text.spans), 0))
        special = [start == end for start, end in offsets]
        labels = [NO_LABEL if skip else int(own.any()) for own, skip in zip(labels_T, special, strict=True)]
        rows.append(dict(row) | {"labels": labels})
    _train(model, tokenizer, rows, DataCollatorForTokenClassification(tokenizer), how, out)


def _two(names: dict[int, str]) -> dict[str, Any]:
    """A base may have had other classes; its head is then made anew."""
    return {"num_labels": 2, "id2label": names, "ignore_mismatched_sizes": True}


def _load(kind: Any, base: str, *, whole: bool, **kwargs: Any) -> tuple[Any, Any]:
    """Load a model; `whole` tells that none of its weights may be missing."""
    try:
        with quiet_loading():  # of a head that is yet to be trained
            model, info = kind.from_pretrained(base, output_loading_info=True, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(base)
    except LOADING_ERRORS as error:
        raise UserError(f"{base}: no model that can be loaded ({first_line(error)})") from None
    if whole and info["missing_keys"]:
        raise UserError(f"{base}: no classifier of this kind ({min(info['missing_keys'])} is missing)")
    ensure_padding(tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def ensure_padding(tokenizer: Any) -> None:
    """Let a tokenizer pad on the right, by its end token where it has no other."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"


def _check_fast(tokenizer: Any, base: str) -> None:
    if not tokenizer.is_fast:
        raise UserError(f"{base}: its tokenizer does not tell where tokens come from; choose a base with a fast one")


def _train(model: Any, tokenizer: Any, rows: list[Any], collator: Any, how: FineTuning, out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} is there already; choose another --out, or remove it")
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=how.epochs,
            learning_rate=how.lr,
            per_device_train_batch_size=how.batch_size,
            weight_decay=how.weight_decay,
            seed=how.seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=False,
        )
        Trainer(model, arguments, data_collator=collator, train_dataset=Dataset.from_list(rows)).train()
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class TextClassifier(Scorer):
    """A measure of texts by one class of a model: its probability, of an empty text `empty` (None: no value)."""

    model: Any
    tokenizer: Any
    label: int
    name: str
    fingerprint: str
    empty: float | None

    @classmethod
    def load(cls, folder: str, measure: str, label: str, empty: float | None) -> "TextClassifier":
        """Load a model from a folder or the hub; its class is the one whose name begins with `label`.

        Raises:
            UserError: nothing that can be loaded, or no such class.
        """
        model, tokenizer = _load(AutoModelForSequenceClassification, folder, whole=True)
        names = model.config.id2label
        label_id = next((i for i, name in names.items() if str(name).lower().startswith(label.lower())), None)
        if label_id is None:
            raise UserError(f"{folder}: no class {label!r}; it has {', '.join(map(str, names.values()))}")
        fingerprint = f"{measure} {model_fingerprint(folder, model)}"
        return cls(model.eval().to(default_device()), tokenizer, int(label_id), measure, fingerprint, empty)

    @torch.inference_mode()
    def score(self, texts: Sequence[Scored]) -> list[Scores | None]:
        """Score the completions alone."""
        scores: list[Scores | None] = [{} if self.empty is None else {self.name: self.empty} for _ in texts]
        filled = [i for i, text in enumerate(texts) if text.text.strip()]
        for start in range(0, len(filled), _ROWS):
            rows = filled[start : start + _ROWS]
            own = [texts[i].text for i in rows]
            inputs = self.tokenizer(own, return_tensors="pt", padding=True, truncation=True, max_length=_MAX_LENGTH)
            logits_BC = self.model(**inputs.to(self.model.device)).logits.float()
            several = self.model.config.problem_type == "multi_label_classification" or logits_BC.shape[1] == 1
            probabilities_BC = logits_BC.sigmoid() if several else logits_BC.softmax(dim=1)
            for i, value in zip(rows, probabilities_BC[:, self.label].tolist(), strict=True):
                scores[i] = {self.name: value}
        return scores


@dataclass(frozen=True)
class TokenTagger:
    """Finds personal data by a model that was trained by `fine_tune_tokens`."""

    model: Any
    tokenizer: Any
    fingerprint: str

    @classmethod
    def load(cls, folder: str) -> "TokenTagger":
        """Load a model.

        Raises:
            UserError: nothing that can be loaded.
        """
        model, tokenizer = _load(AutoModelForTokenClassification, folder, whole=True)
        _check_fast(tokenizer, folder)
        if model.config.id2label.get(0) != "O":
            raise UserError(f"{folder}: its first class must be 'O', no personal data, not {model.config.id2label}")
        return cls(model.eval().to(default_device()), tokenizer, f"tagger {model_fingerprint(folder, model)}")

    def find(self, texts: Sequence[Scored]) -> list[list[Span]]:
        """Return the spans of personal data in each text, read alone."""
        return [self._find(Scored("", text.text)) for text in texts]

    @torch.inference_mode()
    def _find(self, text: Scored) -> list[Span]:
        if not text.text.strip():
            return []
        inputs = self.tokenizer(
            text.text, return_tensors="pt", truncation=True, max_length=_MAX_LENGTH, return_offsets_mapping=True
        )
        offsets = inputs.pop("offset_mapping")[0].tolist()
        logits_TC = self.model(**inputs.to(self.model.device)).logits[0].float()
        return spans_of_tokens(text, offsets, (1 - logits_TC.softmax(dim=1)[:, 0]).tolist())
