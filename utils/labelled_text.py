"""Labelled text: texts with character spans that carry concepts, checked, stored and read back.

On disk a Hugging Face `DatasetDict` (`text: str`, `spans: list of {start, end, concept}`, and `score: float` where the
source tells one) with a `manifest.json` beside the splits. A sentence-level label is one span over the whole text, so
sentence- and token-level data share one path.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value, load_from_disk
from filelock import FileLock

from utils.atomic import atomic_folder, differences, lock_file, read_json_object, write_json
from utils.errors import UserError

FORMAT = 1
FEATURES = Features(
    {
        "text": Value("string"),
        "spans": List({"start": Value("int32"), "end": Value("int32"), "concept": Value("string")}),
    }
)


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` (exclusive) of a text, which carry `concept`."""

    start: int
    end: int
    concept: str


@dataclass(frozen=True)
class Text:
    """One text and its spans, in any order; spans may touch or overlap.

    `score` tells how much a text has of its one concept, from 0 to 1, where the source says so (RTP: its toxicity).
    """

    text: str
    spans: tuple[Span, ...] = ()
    score: float | None = None


def whole(text: str, concept: str | None, score: float | None = None) -> Text:
    """Label a whole text with one concept, or with none."""
    return Text(text, (Span(0, len(text), concept),) if concept else (), score)


@dataclass
class LabelledText:
    """A data set of texts in named splits.

    Attributes:
        name: the data set's name, such as `SP`.
        concepts: the concepts in the order of the label columns.
        splits: the texts of each split; a text's index is its `text_id`.
        settings: what the data were made from (source files and their checksums, seed, versions).
        counts: what was dropped or is remarkable, by reason.
    """

    name: str
    concepts: list[str]
    splits: dict[str, list[Text]]
    settings: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        """Check that there are texts and that every span lies in its text and names a known concept.

        Raises:
            UserError: naming the split and the number of the text (counted from 0).
        """
        if not any(self.splits.values()):
            raise UserError(f"{self.name}: the data set is empty; check --source")
        known = set(self.concepts)
        for split, texts in self.splits.items():
            if not texts:
                raise UserError(f"{self.name}: split {split!r} is empty; check --source")
            for number, text in enumerate(texts):
                if any("\ud800" <= character <= "\udfff" for character in text.text):
                    raise UserError(
                        f"{self.name}: split {split!r}, text {number}: not valid Unicode (a lone surrogate)"
                    )
                for span in text.spans:
                    where = f"{self.name}: split {split!r}, text {number}: span {span.start}..{span.end}"
                    if not 0 <= span.start < span.end <= len(text.text):
                        raise UserError(f"{where} lies outside its text of {len(text.text)} characters")
                    if span.concept not in known:
                        raise UserError(f"{where}: unknown concept {span.concept!r}")

    def fingerprint(self) -> str:
        """Return a SHA-256 over concepts, splits, texts and spans."""
        digest = hashlib.sha256(json.dumps([self.name, self.concepts]).encode())
        for split, texts in self.splits.items():
            digest.update(f"split {split}".encode())
            for text in texts:
                spans = [[span.start, span.end, span.concept] for span in text.spans]
                scored = [] if text.score is None else [text.score]
                digest.update(json.dumps([text.text, spans, *scored]).encode())
        return digest.hexdigest()

    def without_conflicts(self) -> "LabelledText":
        """Return the data set without texts that occur with different spans, in whatever split; count them."""
        spans = _spans_by_text(self.splits)
        splits = {split: [text for text in texts if len(spans[text.text]) == 1] for split, texts in self.splits.items()}
        dropped = sum(map(len, self.splits.values())) - sum(map(len, splits.values()))
        return LabelledText(
            self.name,
            self.concepts,
            splits,
            self.settings | {"conflicts": "drop"},
            self.counts | {"texts_with_conflicting_labels_dropped": dropped},
        )

    def manifest(self) -> dict[str, Any]:
        """Return what `manifest.json` holds."""
        return {
            "format": FORMAT,
            "dataset": self.name,
            "concepts": self.concepts,
            "texts": {split: len(texts) for split, texts in self.splits.items()},
            "spans": {split: _span_counts(texts) for split, texts in self.splits.items()},
            "settings": self.settings,
            "counts": self.counts | _repeats(self.splits),
            "fingerprint": self.fingerprint(),
        }

    def save(self, folder: Path) -> bool:
        """Check and write the data set; return whether it was written, False where these very data lie there already.

        Raises:
            UserError: bad spans, or a folder that holds other data.
        """
        self.check()
        manifest = self.manifest()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_file(folder)):
            return self._save(folder, manifest)

    def _save(self, folder: Path, manifest: dict[str, Any]) -> bool:
        if folder.exists():
            _check_same(folder, manifest)
            return False
        dataset = DatasetDict({split: _to_dataset(texts) for split, texts in self.splits.items()})
        try:
            with atomic_folder(folder) as temporary:
                dataset.save_to_disk(temporary)
                write_json(temporary / "manifest.json", manifest)
        except OSError:
            if not folder.exists():
                raise
            _check_same(folder, manifest)  # another machine was faster
            return False
        return True


def load_labelled_text(folder: Path) -> LabelledText:
    """Read a data set that `LabelledText.save` wrote.

    Raises:
        UserError: no such data set, a newer format, or contents that fail `LabelledText.check`.
    """
    needed = ("dataset", "concepts", "settings", "counts", "fingerprint")
    manifest = read_json_object(folder / "manifest.json", needed, FORMAT)
    splits = {}
    for split, rows in load_from_disk(folder).items():
        scores = rows["score"] if "score" in rows.column_names else [None] * len(rows)
        splits[split] = [
            Text(text, tuple(Span(**span) for span in spans), score)
            for text, spans, score in zip(rows["text"], rows["spans"], scores, strict=True)
        ]
    data = LabelledText(manifest["dataset"], manifest["concepts"], splits, manifest["settings"], manifest["counts"])
    data.check()
    if data.fingerprint() != manifest["fingerprint"]:
        raise UserError(f"{folder}: its texts do not match its manifest; remove it and make it anew")
    return data


def split_by_text(texts: list[Text], *, seed: int, test_share: float = 0.1) -> dict[str, list[Text]]:
    """Split texts at random into `train` and `test`; equal texts stay together, the order of the texts is kept.

    Raises:
        UserError: fewer than two different texts.
    """
    unique = sorted({text.text for text in texts})
    if len(unique) < 2:
        raise UserError("a train and a test split need at least two different texts; check --source")
    order = np.random.default_rng(seed).permutation(len(unique))
    test = {unique[i] for i in order[: max(1, round(len(unique) * test_share))]}
    return {
        "train": [text for text in texts if text.text not in test],
        "test": [text for text in texts if text.text in test],
    }


def _check_same(folder: Path, manifest: dict[str, Any]) -> None:
    if differs := differences(read_json_object(folder / "manifest.json"), manifest):
        raise UserError(f"{folder} holds a data set of other settings ({differs}); remove it or choose another --out")


def _to_dataset(texts: list[Text]) -> Dataset:
    columns = {
        "text": [text.text for text in texts],
        "spans": [[{"start": s.start, "end": s.end, "concept": s.concept} for s in text.spans] for text in texts],
    }
    if all(text.score is None for text in texts):
        return Dataset.from_dict(columns, features=FEATURES)
    scores = {"score": [text.score for text in texts]}
    return Dataset.from_dict(columns | scores, features=Features(FEATURES | {"score": Value("float64")}))


def _span_counts(texts: list[Text]) -> dict[str, int]:
    return dict(sorted(Counter(span.concept for text in texts for span in text.spans).items()))


def _spans_by_text(splits: dict[str, list[Text]]) -> dict[str, set[tuple[Span, ...]]]:
    """Return the different sets of spans that each text occurs with."""
    spans: dict[str, set[tuple[Span, ...]]] = {}
    for texts in splits.values():
        for text in texts:
            spans.setdefault(text.text, set()).add(text.spans)
    return spans


def _repeats(splits: dict[str, list[Text]]) -> dict[str, int]:
    """Count texts that occur again, those that occur with different spans, and those that occur in several splits."""
    spans = _spans_by_text(splits)
    n_splits = Counter(text for texts in splits.values() for text in {text.text for text in texts})
    return {
        "repeated_texts": sum(map(len, splits.values())) - len(spans),
        "texts_with_conflicting_labels": sum(len(different) > 1 for different in spans.values()),
        "texts_in_several_splits": sum(n > 1 for n in n_splits.values()),
    }
