"""RTP: Real Toxicity Prompts, as whole sentences (RTP) or as prompts alone (RTP_split)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.atomic import sha256_file
from utils.errors import UserError, first_line
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
    files, records = _from_files(source) if source is not None else ({_HUB_ID: "hub"}, _from_hub())
    texts, unknown, empty = [], 0, 0
    for where, record in records:
        text, score = _text_and_score(where, record, parts)
        unknown += score is None
        empty += not text.strip()
        if score is not None and text.strip():
            texts.append(whole(text, CONCEPT if score >= THRESHOLD else None))
    if not texts:
        raise UserError(f"{name}: the source holds no text with a known toxicity")
    settings = {"files": files, "seed": seed, "threshold": THRESHOLD}
    counts = {"texts_without_score_dropped": unknown, "empty_texts_dropped": empty}
    return LabelledText(name, [CONCEPT], split_by_text(texts, seed=seed), settings, counts)


def _text_and_score(where: str, record: Any, parts: tuple[str, ...]) -> tuple[str, float | None]:
    text, scores = "", []
    for part in parts:
        piece = record.get(part) if isinstance(record, dict) else None
        if not isinstance(piece, dict) or not isinstance(piece.get("text"), str):
            raise UserError(f"{where}: no {part}.text; the original schema of {_HUB_ID} is expected")
        score = piece.get("toxicity")
        if score is not None and not (isinstance(score, int | float) and 0 <= score <= 1):
            raise UserError(f"{where}: {part}.toxicity is {score!r}, not a number from 0 to 1 or null")
        text += piece["text"]
        scores += [] if score is None else [float(score)]
    return text, sum(scores) / len(scores) if scores else None


def _from_files(source: Path) -> tuple[dict[str, str], Iterator[tuple[str, Any]]]:
    files = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"--source {source}: no such .jsonl file, or a folder without one")
    return {file.name: sha256_file(file) for file in files}, _read_lines(files)


def _read_lines(files: list[Path]) -> Iterator[tuple[str, Any]]:
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield f"{file}, line {number}", json.loads(line)
                except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
                    raise UserError(f"{file}, line {number}: not valid JSON") from None


def _from_hub() -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(_HUB_ID, split="train")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"RTP: {_HUB_ID} cannot be fetched ({first_line(error)}); give --source FILE.jsonl") from None
    for number, record in enumerate(rows):
        yield f"{_HUB_ID}, record {number}", record
