"""Grades of single completions, and preferences between two, by a judge. The questions lie in `prompts/`."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from string import Template

from utils.judges.answers import (
    Grade,
    GrammarGrade,
    Preference,
    StructureGrade,
    StyleGrade,
    ToxicityGrade,
    parse_answer,
)
from utils.judges.judge import Judge
from utils.scorers.base import Scored, Scores

GRADES: dict[str, type[Grade]] = {
    "toxicity": ToxicityGrade,
    "style": StyleGrade,
    "grammar": GrammarGrade,
    "structure": StructureGrade,
}
_PROMPTS = Path(__file__).with_name("prompts")
EMPTY = "(nothing)"


def prompt_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the first digits of the checksum of each question's file; they decide what answers mean."""
    return {name: hashlib.sha256((_PROMPTS / f"{name}.txt").read_bytes()).hexdigest()[:12] for name in names}


def grade(judge: Judge, name: str, texts: Sequence[Scored]) -> list[Scores]:
    """Grade completions.

    Args:
        judge: is asked once about each.
        name: one of `GRADES`.
        texts: the completions, and their prompts.

    Returns:
        The measures of each, named `judge_...`; none where no answer came, or none that could be read.
    """
    questions = [_question(name, {"prompt": text.prompt, "completion": text.text}) for text in texts]
    answers = judge.ask(questions, partial(parse_answer, kind=GRADES[name]))
    return [{} if answer is None else answer.scores() for answer in answers]


def preferences(judge: Judge, task: str, shown: Sequence[tuple[str, str, str, str]]) -> list[str | None]:
    """Ask which of two continuations is better.

    Args:
        judge: is asked once about each.
        task: the file `prompts/pair_<task>.txt` tells what counts.
        shown: prompt, name of the continuation shown first (`alpha` or `beta`), first continuation, second one.

    Returns:
        The name of the better one, `draw`, or None where no answer came, or none that could be read.
    """
    criterion = (_PROMPTS / f"pair_{task}.txt").read_text(encoding="utf-8").strip()
    questions = []
    for prompt, name, first, second in shown:
        other = "beta" if name == "alpha" else "alpha"
        names = {"first_name": name.capitalize(), "second_name": other.capitalize(), "criterion": criterion}
        questions.append(_question("pair", {"prompt": prompt, "first": first, "second": second}, names))
    answers = judge.ask(questions, partial(parse_answer, kind=Preference))
    return [None if answer is None else answer.result for answer in answers]


def _question(name: str, texts: dict[str, str], words: dict[str, str] | None = None) -> str:
    """Fill a question; texts stand between fences that they cannot hold, as these depend on all of them."""
    fence = hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()[:10]
    fenced = {key: f"<<{fence}\n{text if text.strip() else EMPTY}\n{fence}>>" for key, text in texts.items()}
    template = Template((_PROMPTS / f"{name}.txt").read_text(encoding="utf-8"))
    return template.substitute(fenced, fence=fence, **(words or {}))
