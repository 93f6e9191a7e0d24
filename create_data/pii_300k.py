"""PII_300k: ai4privacy's pii-masking-300k, English alone (PII_300k) or all its languages (PII_300k_mult_lang)."""

from collections import Counter
from pathlib import Path
from typing import Any

from create_data.pii_synth import PII_CONCEPTS
from create_data.sources import SPLITS, Record, read_records
from utils.errors import UserError
from utils.labelled_text import LabelledText, Span, Text

_HUB_ID = "ai4privacy/pii-masking-300k"
_ENGLISH = ("English", "en")


def build(name: str, source: Path | None) -> LabelledText:
    """Take each text with its masks as spans; digits are stripped from the labels (LASTNAME2 is a LASTNAME).

    A text is dropped and counted when one of its masks does not lie where it says, as some of its tokens would carry
    wrong labels; so is an empty one. Masks of kinds beyond the 25 concepts are counted and left unlabelled. The split
    is the record's own `set`, else that of its file.

    Raises:
        UserError: an unreadable source, or a record that is not in the original schema (the line is named).
    """
    files, records = read_records(name, source, _HUB_ID)
    splits: dict[str, list[Text]] = {}
    counts = Counter(texts_with_misplaced_mask_dropped=0, misplaced_masks=0, empty_texts_dropped=0, other_masks=0)
    for record in records:
        text = record.get("source_text", str, _HUB_ID)
        if name == "PII_300k" and record.get("language", str, _HUB_ID) not in _ENGLISH:
            continue
        masks = [_mask(record, mask) for mask in record.get("privacy_mask", list, _HUB_ID)]
        misplaced = sum(text[start:end] != value or not value for start, end, value, _ in masks)
        counts["misplaced_masks"] += misplaced
        if misplaced or not text.strip():
            counts["texts_with_misplaced_mask_dropped" if misplaced else "empty_texts_dropped"] += 1
            continue
        spans = [Span(start, end, concept) for start, end, _, concept in masks if concept in PII_CONCEPTS]
        counts["other_masks"] += len(masks) - len(spans)
        splits.setdefault(_split(record), []).append(Text(text, tuple(spans)))
    if not splits:
        raise UserError(f"{name}: the source holds no {'English ' if name == 'PII_300k' else ''}text")
    ordered = {split: splits[split] for split in dict.fromkeys(SPLITS.values()) if split in splits}
    return LabelledText(name, list(PII_CONCEPTS), ordered, {"files": files}, dict(counts))


def _mask(record: Record, mask: Any) -> tuple[int, int, str, str]:
    kinds = {"start": int, "end": int, "value": str, "label": str}
    if not isinstance(mask, dict) or not all(isinstance(mask.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{record.where}: a privacy_mask without {', '.join(kinds)}; see {_HUB_ID}")
    concept = "".join(character for character in mask["label"] if not character.isdigit())
    return mask["start"], mask["end"], mask["value"], concept


def _split(record: Record) -> str:
    own = record.fields.get("set")
    split = SPLITS.get(own) if isinstance(own, str) else record.split
    if split is None:
        raise UserError(f"{record.where}: neither its `set` nor its file's name tells train from validation")
    return split
