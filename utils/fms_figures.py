"""The figures of FMS: scores with intervals, accuracy by depth and by removals, and a sweep over blocks."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.figure_style import bar_style, legend_below, line_style, name_ticks, new_figure
from utils.fms import N_REMOVED


def figures(table: pd.DataFrame, title: str) -> dict[str, Figure]:
    """Draw all figures that the table has something for.

    Args:
        table: tidy, one row per SAE, concept and measure; see `utils.fms_report`.
        title: of all of them.

    Returns:
        `fms`, `depth`, `removed`, and `blocks` where SAEs of several blocks were measured; by their file names.
    """
    drawn = {
        "fms": _bars(table, title),
        "depth": _curves(
            table, "accuracy_depth_", title, "splits of the tree", "accuracy, mean over concepts and seeds"
        ),
        "removed": _curves(
            table, "accs_", title, "best latents removed", "accuracy of the best latent left", range(N_REMOVED + 1)
        ),
    }
    if table["block"].nunique() > 1:
        drawn["blocks"] = _sweep(table, title)
    return drawn


def _bars(table: pd.DataFrame, title: str) -> Figure:
    """FMS@1 per concept, one bar per SAE name.

    Of one SAE with its bootstrap interval, of several seeds with their standard deviation.
    """
    names = table["name"].unique().tolist()
    values = table.pivot_table(index=["concept", "name", "sae"], columns="measure", values="value", sort=False)
    values = values[values["fms@1"].notna()]
    grouped = values.groupby(level=["concept", "name"], sort=False)
    means = grouped["fms@1"].mean().unstack("name")
    below = (grouped["fms@1"].mean() - grouped["fms@1_low"].mean()).unstack("name")
    above = (grouped["fms@1_high"].mean() - grouped["fms@1"].mean()).unstack("name")
    spread, n_seeds = grouped["fms@1"].std().unstack("name"), grouped.size().unstack("name")
    control = values.groupby(level="concept", sort=False)["shuffled_fms@1"].mean()
    figure = new_figure(max(5.0, 0.2 * len(means) * len(names) + 2), 4.5)
    axes = figure.subplots()
    width, places = 0.8 / len(names), np.arange(len(means))
    for number, name in enumerate(names):
        several = (n_seeds[name] > 1).to_numpy()
        errors = [np.where(several, spread[name], side[name]).clip(min=0) for side in (below, above)]
        offset = (number - (len(names) - 1) / 2) * width
        axes.bar(
            places + offset, means[name], width, yerr=errors, label=name, capsize=2, error_kw={"lw": 1},
            **bar_style(number),
        )  # fmt: skip
    axes.hlines(control.loc[means.index], places - 0.42, places + 0.42, color="black", lw=1.5, label="shuffled labels")
    name_ticks(axes, means.index.tolist())
    axes.set_ylabel("FMS@1")
    axes.set_title(f"{title}\n95 % bootstrap intervals; of several seeds, standard deviations", loc="left", fontsize=9)
    axes.margins(x=0.02)
    legend_below(figure)
    return figure


def _curves(
    table: pd.DataFrame, prefix: str, title: str, x_label: str, y_label: str, steps: range | None = None
) -> Figure:
    """Means over concepts and seeds; a tree that ends earlier stays as it is. The band holds the middle half."""
    own = table[table["measure"].str.fullmatch(f"{prefix}\\d+")].copy()
    own["step"] = own["measure"].str.removeprefix(prefix).astype(int)
    figure = new_figure(6, 4.2)
    axes = figure.subplots()
    for number, (name, rows) in enumerate(own.groupby("name", sort=False)):
        by_step = rows.pivot_table(index="step", columns=["sae", "concept"], values="value").sort_index().ffill()
        if steps is not None:
            by_step = by_step.loc[[step for step in steps if step in by_step.index]]
        x, mean = by_step.index.to_numpy(), by_step.mean(axis=1)
        axes.plot(x, mean, label=name, **line_style(number))
        low, high = by_step.quantile(0.25, axis=1), by_step.quantile(0.75, axis=1)
        axes.fill_between(x, low, high, color=line_style(number)["color"], alpha=0.2, lw=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, loc="left", fontsize=9)
    legend_below(figure)
    return figure


def _sweep(table: pd.DataFrame, title: str) -> Figure:
    """FMS@1 by block, one line for SAEs whose names differ in the block alone; means over concepts and seeds."""
    own = table[table["measure"] == "fms@1"].copy()
    own["family"] = own["name"].str.replace(r"@B\d+$|-b\d+(?=-)", "", regex=True)
    per_sae = own.groupby(["family", "block", "sae"])["value"].mean()
    figure = new_figure(6, 4.2)
    axes = figure.subplots()
    for number, (family, values) in enumerate(per_sae.groupby(level="family")):
        by_block = values.groupby(level="block")
        style = line_style(number)
        axes.errorbar(
            by_block.mean().index, by_block.mean(), yerr=by_block.std().fillna(0), capsize=2,
            label=family, **style,
        )  # fmt: skip
    axes.set_xlabel("block")
    axes.set_ylabel("FMS@1, mean over concepts")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, loc="left", fontsize=9)
    legend_below(figure)
    return figure
