"""What steering did: means with intervals, effect against strength, quality against effect."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figure_style import legend_below, line_style, new_figure

_RESAMPLES = 1_000
_NOT_MEASURES = ("prompt_id", "alpha", "prompt", "completion")


def summarise(table: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """Return mean and 95 % bootstrap interval of each measure at each strength; texts without it count as missing.

    Where all are missing there is no value.
    """
    random = np.random.default_rng([seed, 5])
    measures = [name for name in table.columns if name not in _NOT_MEASURES]
    rows: list[dict[str, Any]] = []
    for alpha, own in table.groupby("alpha"):
        rows += [{"alpha": alpha, "measure": name} | _mean(own[name].to_numpy(float), random) for name in measures]
    return rows


def _mean(values: np.ndarray, random: np.random.Generator) -> dict[str, Any]:
    there = values[~np.isnan(values)]
    count = {"n": len(values), "missing": len(values) - len(there)}
    if not len(there):
        return {"value": None, "low": None, "high": None} | count
    means = there[random.integers(0, len(there), (_RESAMPLES, len(there)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(there.mean()), "low": float(low), "high": float(high)} | count


def show(table: pd.DataFrame, effect: str) -> str:
    """Return the screen's table: effect and quality by strength."""
    columns = [effect, "log_perplexity", "repetition", "distinct_2", "empty"]
    own = table[table["measure"].isin(columns)]
    values = own.pivot_table(index=["label", "alpha"], columns="measure", values="value", sort=False)
    return str(values.reindex(columns=columns).round(3).to_string())


def effect_figure(table: pd.DataFrame, effect: str, title: str) -> Figure:
    """Draw the effect against the strength, with intervals."""
    return _lines(table[table["measure"] == effect], f"{effect}, mean and 95 % interval", title)


def transition_figure(table: pd.DataFrame, title: str) -> Figure:
    """Draw the log-perplexity of the next sentence against the strength, a panel for each pair of styles."""
    measures = [name for name in table["measure"].unique() if str(name).startswith("next_")]
    figure = new_figure(9, 6.4)
    panels = figure.subplots(2, 2, sharex=True, squeeze=False).ravel()
    for axes, measure in zip(panels, measures, strict=False):
        _draw(axes, table[table["measure"] == measure])
        axes.set_title(measure.removeprefix("next_").replace("_", " "), loc="left", fontsize=9)
        axes.set_xlabel("alpha")
        axes.set_ylabel("log-perplexity")
    figure.suptitle(title, fontsize=9)
    legend_below(figure)
    return figure


def pareto_figure(table: pd.DataFrame, effect: str, title: str) -> Figure:
    """Draw fluency against the effect; each point is a strength."""
    figure = new_figure(6, 4.4)
    draw_pareto(figure.subplots(), table, effect, f"{title}: quality against effect")
    legend_below(figure)
    return figure


def draw_pareto(axes: Axes, table: pd.DataFrame, effect: str, title: str) -> None:
    """Draw one panel of that."""
    for number, (label, own) in enumerate(table.groupby("label", sort=False)):
        values = own.pivot_table(index="alpha", columns="measure", values="value")
        if not {effect, "log_perplexity"} <= set(values.columns):
            continue
        axes.plot(values[effect], values["log_perplexity"], label=label, **line_style(number))
        for alpha in (values.index.min(), values.index.max()):
            point = (values[effect][alpha], values["log_perplexity"][alpha])
            axes.annotate(f"{alpha:g}", point, textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set_xlabel(effect)
    axes.set_ylabel("log-perplexity under the unsteered model")
    axes.set_title(title, loc="left", fontsize=9)


def _lines(rows: pd.DataFrame, what: str, title: str) -> Figure:
    figure = new_figure(6, 4.4)
    axes = figure.subplots()
    _draw(axes, rows)
    axes.set_xlabel("alpha")
    axes.set_ylabel(what)
    axes.set_title(title, loc="left", fontsize=9)
    legend_below(figure)
    return figure


def _draw(axes: Any, rows: pd.DataFrame) -> None:
    for number, (label, own) in enumerate(rows.sort_values("alpha").groupby("label", sort=False)):
        look = line_style(number)
        axes.plot(own["alpha"], own["value"], label=label, **look)
        axes.fill_between(own["alpha"], own["low"], own["high"], color=look["color"], alpha=0.2, lw=0)


def at_equal(table: pd.DataFrame, effect: str, quality: str, given: float) -> pd.DataFrame:
    """Return, for each label, the quality where the effect is `given`, and the strength that is needed.

    Strengths between those that were tried are interpolated; of several the one nearest to 0 counts. NaN where no
    strength reaches it.
    """
    rows = []
    for label, own in table.groupby("label", sort=False):
        values = own.pivot_table(index="alpha", columns="measure", values="value").sort_index()
        alpha = _crossing(values.index.to_numpy(float), values[effect].to_numpy(float), given)
        at = np.interp(alpha, values.index, values[quality]) if alpha is not None else np.nan
        rows.append({"label": label, "alpha": np.nan if alpha is None else alpha, effect: given, quality: float(at)})
    return pd.DataFrame(rows)


def _crossing(alphas: np.ndarray, values: np.ndarray, given: float) -> float | None:
    found = []
    for i in range(len(alphas) - 1):
        low, high = sorted((values[i], values[i + 1]))
        if low <= given <= high:
            share = 0.0 if high == low else (given - values[i]) / (values[i + 1] - values[i])
            found.append(alphas[i] + share * (alphas[i + 1] - alphas[i]))
    return float(min(found, key=abs)) if found else None
