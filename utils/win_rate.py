"""Win rates: which of two methods completes better, prompt by prompt (paper, win rates)."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from utils.judges.grading import preferences
from utils.judges.judge import Judge

_RESAMPLES = 10_000
# (a is shown first, a is called alpha): together they cancel a liking for a place or a name.
ARRANGEMENTS = ((True, True), (True, False), (False, True), (False, False))


@dataclass(frozen=True)
class Task:
    """What counts.

    Attributes:
        effect: the scorers' measure.
        sign: 1 where more of it is better.
        margin: differences up to it count as none.
        alpha: the paper's strength, where win rates are taken.
    """

    effect: str
    sign: int
    margin: float
    alpha: float


TASKS = {
    "tox": Task("toxicity", 1, 0.02, 0.4),
    "non-tox": Task("toxicity", -1, 0.02, -0.4),
    "sp": Task("style", 1, 0.02, 0.2),
    "non-sp": Task("style", -1, 0.02, -0.2),
    "pii": Task("pii_clean", -1, 0.0, -3.0),
}
FLUENCY_MARGIN = 0.05  # nats per token


@dataclass(frozen=True)
class Judgement:
    """What was said of one pair in one arrangement: 1 a is better, -1 b is, 0 neither; None nothing that can be read.

    `a_first` and `a_alpha` are None where the arrangement plays no part.
    """

    verdict: int | None
    a_first: bool | None = None
    a_alpha: bool | None = None


def judge_pairs(judge: Judge, task: str, pairs: pd.DataFrame) -> list[list[Judgement]]:
    """Ask a judge about each pair in all four arrangements.

    Args:
        judge: is asked.
        task: one of `TASKS`.
        pairs: with the columns prompt, completion_a, completion_b.
    """
    shown = []
    for row in pairs.itertuples():
        for a_first, a_alpha in ARRANGEMENTS:
            first, second = (row.completion_a, row.completion_b) if a_first else (row.completion_b, row.completion_a)
            name = "alpha" if a_first == a_alpha else "beta"
            shown.append((str(row.prompt), name, str(first), str(second)))
    results = iter(preferences(judge, task, shown))
    return [[_judgement(next(results), *arrangement) for arrangement in ARRANGEMENTS] for _ in range(len(pairs))]


def _judgement(result: str | None, a_first: bool, a_alpha: bool) -> Judgement:
    verdict = None
    if result is not None:
        verdict = 0 if result == "draw" else 1 if (result == "alpha") == a_alpha else -1
    return Judgement(verdict, a_first, a_alpha)


def score_pairs(task: Task, pairs: pd.DataFrame) -> list[list[Judgement]]:
    """Judge each pair by the scorers alone: the effect counts first, and where it is equal fluency does.

    A completion that says nothing is worse than one that says something.

    Args:
        task: which effect, which way.
        pairs: with `completion_`, the effect's and `log_perplexity_` columns, each with `a` and `b`.
    """
    verdicts: list[list[Judgement]] = []
    for row in pairs.to_dict("records"):
        said = [bool(str(row[f"completion_{side}"]).strip()) for side in "ab"]
        if not all(said):
            verdicts.append([Judgement(said[0] - said[1])])
            continue
        effect = _difference(row, task.effect, task.margin)
        verdict = task.sign * effect if effect else effect
        if verdict == 0:
            fluency = _difference(row, "log_perplexity", FLUENCY_MARGIN)
            verdict = -fluency if fluency else fluency
        verdicts.append([Judgement(verdict)])
    return verdicts


def _difference(row: dict[Any, Any], measure: str, margin: float) -> int | None:
    """Return the sign of a's value less b's, 0 within the margin, None where one is missing."""
    a, b = (row.get(f"{measure}_{side}", np.nan) for side in "ab")
    if not np.isfinite([a, b]).all():
        return None
    return 0 if abs(a - b) <= margin else int(np.sign(a - b))


Outcome = Literal["win", "loss", "tie", "inconsistent", "missing"]


def outcome(judgements: Sequence[Judgement]) -> Outcome:
    """Return what came of a pair: a win or a loss where all arrangements agree on it, a tie where none prefers any."""
    verdicts = {judgement.verdict for judgement in judgements}
    if None in verdicts:
        return "missing"
    if len(verdicts) > 1:
        return "inconsistent"
    return {1: "win", -1: "loss", 0: "tie"}[verdicts.pop()]  # type: ignore[index, return-value]


def tally(judgements: Sequence[Sequence[Judgement]], seed: int = 0) -> dict[str, Any]:
    """Count the outcomes of pairs, and tell how sure they are.

    Returns:
        `wins`, `losses`, `ties`, `inconsistent`, `missing`; `win_rate`: wins, and half of what was neither won nor
        lost, among the pairs that were judged, with its bootstrap interval over pairs (95 %); `decided_win_rate`: wins
        among wins and losses, with its Wilson interval, and `p_value` of the sign test; `first_preferred` and
        `alpha_preferred`: how often the continuation shown first, or called Alpha, was preferred (0.5 without bias).
    """
    outcomes = [outcome(own) for own in judgements]
    counts = Counter(outcomes)
    points = np.array([{"win": 1.0, "loss": 0.0}.get(name, 0.5) for name in outcomes if name != "missing"])
    low, high = _bootstrap(points, np.random.default_rng([seed, 6]))
    wins, decided = counts["win"], counts["win"] + counts["loss"]
    test = binomtest(wins, decided) if decided else None
    wilson = test.proportion_ci(method="wilson") if test else (np.nan, np.nan)
    each = [judgement for own in judgements for judgement in own if judgement.verdict]
    return {
        "pairs": len(outcomes),
        "wins": wins,
        "losses": counts["loss"],
        "ties": counts["tie"],
        "inconsistent": counts["inconsistent"],
        "missing": counts["missing"],
        "win_rate": float(points.mean()) if len(points) else np.nan,
        "low": low,
        "high": high,
        "decided_win_rate": wins / decided if decided else np.nan,
        "wilson_low": float(wilson[0]),
        "wilson_high": float(wilson[1]),
        "p_value": float(test.pvalue) if test else np.nan,
        "first_preferred": _share(each, lambda judgement: judgement.a_first),
        "alpha_preferred": _share(each, lambda judgement: judgement.a_alpha),
    }


def _bootstrap(points: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    if not len(points):
        return np.nan, np.nan
    counts = random.multinomial(len(points), [np.mean(points == value) for value in (0.0, 0.5, 1.0)], _RESAMPLES)
    low, high = np.quantile(counts @ [0.0, 0.5, 1.0] / len(points), [0.025, 0.975])
    return float(low), float(high)


def _share(judgements: Sequence[Judgement], side_of_a: Callable[[Judgement], bool | None]) -> float:
    """Return how often the preferred one was on the side that `side_of_a` asks about."""
    there = [side_of_a(own) == (own.verdict == 1) for own in judgements if side_of_a(own) is not None]
    return float(np.mean(there)) if there else np.nan
