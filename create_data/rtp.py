"""RTP: Real Toxicity Prompts, as whole sentences (RTP) or as prompts alone (RTP_split)."""

from pathlib import Path

from create_data.sources import Record, read_records
from utils.errors import UserError
from utils.labelled_text import LabelledText, split_by_text, whole

CONCEPT = "toxicity"
THRESHOLD = 0.5
_HUB_ID = "allenai/real-toxicity-prompts"


def build(name: str, source: Path | None, seed: int) -> LabelledText:
    """Label each text toxic when its toxicity is at least 0.5, and split into train and test by text.

    `RTP` takes prompt and continuation and the mean of their known scores; `RTP_split` takes the prompt and its score.
    A text without any known score is dropped and counted; so is an empty one.

    Raises:
        UserError: an unreadable source, or a record that is not in the original schema (the line is named).
    """
    parts = ("prompt",) if name == "RTP_split" else ("prompt", "continuation")
    files, records = read_records(name, source, _HUB_ID)
    texts, unknown, partly_unknown, empty = [], 0, 0, 0
    for record in records:
        pieces = [_text_and_score(record, part) for part in parts]
        text = "".join(piece for piece, _ in pieces)
        scores = [score for _, score in pieces if score is not None]
        if not text.strip():
            empty += 1
        elif not scores:
            unknown += 1
        else:
            partly_unknown += len(scores) < len(parts)
            score = sum(scores) / len(scores)
            texts.append(whole(text, CONCEPT if score >= THRESHOLD else None, score))
    if not texts:
        raise UserError(f"{name}: the source holds no text with a known toxicity")
    settings = {"files": files, "seed": seed, "threshold": THRESHOLD}
    counts = {
        "texts_without_score_dropped": unknown,
        "texts_with_one_score_missing": partly_unknown,
        "empty_texts_dropped": empty,
    }
    return LabelledText(name, [CONCEPT], split_by_text(texts, seed=seed), settings, counts)


def _text_and_score(record: Record, part: str) -> tuple[str, float | None]:
    piece = record.get(part, dict, _HUB_ID)
    if not isinstance(piece.get("text"), str):
        raise UserError(f"{record.where}: no {part}.text; the original schema of {_HUB_ID} is expected")
    score = piece.get("toxicity")
    if score is not None and not (isinstance(score, int | float) and 0 <= score <= 1):
        raise UserError(f"{record.where}: {part}.toxicity is {score!r}, not a number from 0 to 1 or null")
    return piece["text"], None if score is None else float(score)
