"""CSD: Nvidia's Aegis AI Content Safety Dataset 1.0, unsafe by the majority of its annotators."""

from collections import Counter
from pathlib import Path

from create_data.sources import SPLITS, Record, read_records
from utils.errors import UserError
from utils.labelled_text import LabelledText, Text, split_by_text, whole

CONCEPT = "unsafe"
_HUB_ID = "nvidia/Aegis-AI-Content-Safety-Dataset-1.0"
_N_ANNOTATORS = 5
_SAFE = "Safe"
_ABSENT = (None, "", "None")


def build(source: Path | None, seed: int) -> LabelledText:
    """Label a text unsafe when more than half of its annotators call it anything but "Safe".

    A tie is therefore not unsafe; ties are counted. A text that nobody annotated is dropped and counted, and so is an
    empty one. Splits are those of the source; a source without any is split into train and test by text.

    Raises:
        UserError: an unreadable source, or a record that is not in the original schema (the line is named).
    """
    files, records = read_records("CSD", source, _HUB_ID)
    splits: dict[str | None, list[Text]] = {}
    counts = Counter(ties_taken_as_safe=0, texts_without_annotation_dropped=0, empty_texts_dropped=0)
    for record in records:
        text = record.get("text", str, _HUB_ID)
        labels = _labels(record)
        n_unsafe = sum(label != _SAFE for label in labels)
        if not text.strip() or not labels:
            counts["texts_without_annotation_dropped" if text.strip() else "empty_texts_dropped"] += 1
            continue
        counts["ties_taken_as_safe"] += 2 * n_unsafe == len(labels)
        splits.setdefault(record.split, []).append(whole(text, CONCEPT if 2 * n_unsafe > len(labels) else None))
    if not splits:
        raise UserError("CSD: the source holds no annotated text")
    if len(splits) == 1:
        [texts] = splits.values()
        named = split_by_text(texts, seed=seed)
    else:
        splits["train"] = splits.pop(None, []) + splits.get("train", [])  # of files whose name tells no split
        named = {split: splits[split] for split in dict.fromkeys(SPLITS.values()) if splits.get(split)}
    return LabelledText("CSD", [CONCEPT], named, {"files": files, "seed": seed}, dict(counts))


def _labels(record: Record) -> list[str]:
    """Return each annotator's own label; it may name several kinds of harm, separated by commas."""
    columns = [f"labels_{annotator}" for annotator in range(_N_ANNOTATORS)]
    if not any(column in record.fields for column in columns):
        raise UserError(f"{record.where}: no {columns[0]}; the original schema of {_HUB_ID} is expected")
    return [str(label) for column in columns if (label := record.fields.get(column)) not in _ABSENT]
