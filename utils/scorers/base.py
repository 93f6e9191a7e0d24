"""What a scorer is, and a cache on disk, so that nothing is scored twice."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from utils.json_lines import append_lines, read_lines

Scores = dict[str, float]  # by measure; what cannot be told of a text is not there
_AT_ONCE = 64


@dataclass(frozen=True)
class Scored:
    """A text to score, and the prompt it goes on from."""

    prompt: str
    text: str


class Scorer(Protocol):
    """Gives numbers to texts.

    Attributes:
        name: of its cache.
        fingerprint: all that decides its scores: versions, weights, settings.
    """

    @property
    def name(self) -> str:
        """See above."""

    @property
    def fingerprint(self) -> str:
        """See above."""

    def score(self, texts: Sequence[Scored]) -> list[Scores | None]:
        """Return the scores of each text, None where that failed and may be tried again another time."""


class EffectScorer(Scorer, Protocol):
    """A scorer of what steering is to change, which can show what it found."""

    def marks(self, text: str) -> list[tuple[int, int]]:
        """Return characters (start, end) that speak for the effect."""


def score_cached(scorer: Scorer, texts: Sequence[Scored], folder: Path) -> list[Scores]:
    """Score texts that were not scored before; the others are looked up.

    Args:
        scorer: does it.
        texts: may repeat.
        folder: holds a file of JSON lines for each scorer, which grows batch by batch.

    Returns:
        The scores of each text; none where scoring failed, which is tried again the next time.

    Raises:
        UserError: a damaged file.
    """
    path = folder / f"{scorer.name}.jsonl"
    known: dict[str, Scores] = {line["key"]: line["scores"] for line in read_lines(path, ("key", "scores"))}
    keys = [_key(scorer, text) for text in texts]
    missing = list({key: text for key, text in zip(keys, texts, strict=True) if key not in known}.items())
    with tqdm(total=len(missing), unit="text", desc=scorer.name, delay=5) as bar:
        for start in range(0, len(missing), _AT_ONCE):
            batch = missing[start : start + _AT_ONCE]
            scores = scorer.score([text for _, text in batch])
            new = {key: own for (key, _), own in zip(batch, scores, strict=True) if own is not None}
            append_lines(path, [{"key": key, "scores": own} for key, own in new.items()])
            known |= new
            bar.update(len(batch))
    return [known.get(key, {}) for key in keys]


def _key(scorer: Scorer, text: Scored) -> str:
    return hashlib.sha256(json.dumps([scorer.fingerprint, text.prompt, text.text]).encode()).hexdigest()
