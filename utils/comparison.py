"""Methods of steering side by side: each at the strength tuned for it, with effect, quality, win rates and cost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.completions import paired
from utils.figure_style import legend_below, new_figure
from utils.markdown import markdown_table
from utils.results import readable
from utils.steering_tables import draw_pareto
from utils.win_rate import TASKS, Judgement, score_pairs, tally

NAMES: Mapping[str, str] = {
    "g-sae": "G-SAE",
    "sae": "SAE",
    "icv": "ICV",
    "diffvec": "DiffVec",
    "preadd": "PreAdd",
    "model-arithmetic": "Model Arithmetic",
    "model-arithmetic-union": "Model Arithmetic, union",
}
MEASURES = ("log_perplexity", "repetition", "distinct_2")
JudgePairs = Callable[[str, pd.DataFrame], list[list[Judgement]]]


@dataclass(frozen=True)
class Contender:
    """One method on one data set.

    Attributes:
        method: a key of `NAMES`.
        label: in the table of completions.
        chosen: the strength for each direction, None where none keeps the language whole.
        costs: see `utils.steering_cost.cost`.
    """

    method: str
    label: str
    chosen: Mapping[str, float | None]
    costs: Mapping[str, float]


def compare(
    table: pd.DataFrame,
    contenders: list[Contender],
    tasks: Mapping[str, str],
    completions: Path,
    judge: JudgePairs | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return a row for each direction and method, unsteered first.

    Args:
        table: of a steering experiment: label, alpha, measure, value, low, high.
        contenders: what is compared.
        tasks: for each direction the task of `utils.win_rate.TASKS`, which names the effect, too.
        completions: folder of the completions, one file for each label.
        judge: decides pairs; the scorers where there is none.
        seed: of the intervals.
    """
    rows = []
    for direction, task in tasks.items():
        guided = next((own for own in contenders if own.method == "g-sae"), None)
        plain = _measured(table, contenders[0].label, 0.0, TASKS[task].effect)
        rows.append({"direction": direction, "method": "unsteered", "strength": 0.0} | plain)
        for own in contenders:
            strength = own.chosen.get(direction)
            row: dict[str, Any] = {"direction": direction, "method": NAMES[own.method], "strength": strength}
            if strength is not None:
                row |= _measured(table, own.label, strength, TASKS[task].effect)
                pair = _file(completions, own), _file(completions, own)
                row |= _won("won_unsteered", task, pair, (strength, 0.0), judge, seed)
                other = guided.chosen.get(direction) if guided is not None else None
                if guided is not None and guided is not own and other is not None:
                    pair = _file(completions, guided), _file(completions, own)
                    row |= _won("g_sae_won", task, pair, (other, strength), judge, seed)
            rows.append(row | dict(own.costs))
    return rows


def _file(completions: Path, contender: Contender) -> Path:
    return completions / f"{readable(contender.label)}.csv"


def _measured(table: pd.DataFrame, label: str, strength: float, effect: str) -> dict[str, float]:
    own = table[(table["label"] == label) & np.isclose(table["alpha"], strength)].set_index("measure")
    values, ends = own["value"].to_dict(), {end: own[end].to_dict()[effect] for end in ("low", "high")}
    found = {"effect": values[effect]} | {f"effect_{end}": value for end, value in ends.items()}
    return found | {name: values[name] for name in MEASURES}


def _won(
    name: str, task: str, pair: tuple[Path, Path], alphas: tuple[float, float], judge: JudgePairs | None, seed: int
) -> dict[str, float]:
    pairs = paired(*pair, alphas)
    judgements = score_pairs(TASKS[task], pairs) if judge is None else judge(task, pairs)
    result = tally(judgements, seed)
    return {name: result["win_rate"], f"{name}_low": result["low"], f"{name}_high": result["high"]}


HEADER = (
    "", "strength", "effect", "log-perplexity", "repetition", "won against unsteered", "lost to G-SAE",
    "s per 1,000 tokens", "times plain", "extra MB",
)  # fmt: skip


def shown(rows: pd.DataFrame, effect: str) -> pd.DataFrame:
    """Return the rows of one direction as texts, for Markdown and LaTeX."""
    frame = pd.DataFrame([_cells(row) for _, row in rows.iterrows()], columns=list(HEADER))
    return frame.rename(columns={"effect": effect.replace("_", " ")})


def _cells(row: pd.Series) -> list[str]:
    strength = row["strength"]
    return [
        row["method"],
        "none" if pd.isna(strength) else f"{strength:g}",
        _interval(row, "effect"),
        _number(row.get("log_perplexity"), 2),
        _number(row.get("repetition"), 2),
        _interval(row, "won_unsteered"),
        _interval(row, "g_sae_won"),
        _number(row.get("seconds_per_1000_tokens"), 1),
        _number(row.get("times_plain"), 2),
        _number(row.get("extra_megabytes"), 1),
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def _interval(row: pd.Series, name: str) -> str:
    if pd.isna(row.get(name, np.nan)):
        return ""
    return f"{row[name]:.2f} ({_number(row[f'{name}_low'], 2)} to {_number(row[f'{name}_high'], 2)})"


def as_markdown(frame: pd.DataFrame, title: str) -> str:
    """Return one table under its title."""
    return f"**{title}**\n\n{markdown_table(list(frame.columns), frame.to_numpy().tolist())}\n"


def as_latex(frame: pd.DataFrame, title: str) -> str:
    """Return one table for a paper."""
    escaped = frame.rename(columns=lambda name: str(name).replace("_", r"\_"))
    latex: str = escaped.to_latex(index=False, escape=False, caption=title, column_format="lr" + "l" * 8)
    return latex


def pareto(tables: Mapping[str, tuple[pd.DataFrame, str]]) -> Figure:
    """Draw quality against effect, a panel for each data set.

    Args:
        tables: for each title the table, labelled by methods, and the effect.
    """
    figure = new_figure(5.2 * len(tables), 4.6)
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (title, (table, effect)) in zip(panels, tables.items(), strict=True):
        draw_pareto(axes, table, effect, title)
    legend_below(figure)
    return figure
