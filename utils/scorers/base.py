"""What a scorer is, and a cache on disk, so that nothing is scored twice."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from utils.json_lines import append_lines, read_lines

Scores = dict[str, float]  # by measure; what cannot be told of a text is not there


@dataclass(frozen=True)
class Scored:
    """A text to score, and the prompt it goes on from."""

    prompt: str
    text: str


class Scorer(ABC):
    """Gives numbers to texts.

    Attributes:
        name: of its cache.
        fingerprint: all that decides its scores: versions, weights, settings.
        reads_prompt: whether the prompt plays a part.
        at_once: texts after which scores are written to the disk.
    """

    name: str
    fingerprint: str
    reads_prompt: bool = False
    at_once: int = 64

    @abstractmethod
    def score(self, texts: Sequence[Scored]) -> list[Scores | None]:
        """Return the scores of each text, None where that failed and may be tried again another time."""

    def marks(self, text: str) -> list[tuple[int, int]]:
        """Return characters (start, end) that speak for the effect; none where the scorer cannot tell."""
        return []


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
        for start in range(0, len(missing), scorer.at_once):
            batch = missing[start : start + scorer.at_once]
            scores = scorer.score([text for _, text in batch])
            new = {key: own for (key, _), own in zip(batch, scores, strict=True) if own is not None}
            append_lines(path, [{"key": key, "scores": own} for key, own in new.items()])
            known |= new
            bar.update(len(batch))
    return [known.get(key, {}) for key in keys]


def _key(scorer: Scorer, text: Scored) -> str:
    prompt = text.prompt if scorer.reads_prompt else ""
    return hashlib.sha256(json.dumps([scorer.fingerprint, prompt, text.text]).encode()).hexdigest()
