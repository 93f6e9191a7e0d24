"""What an ablation shows: means over seeds with intervals, and FMS against reconstruction."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import t as student

from utils.figure_style import legend_below, line_style, new_figure
from utils.markdown import markdown_table

MEASURES = (
    "fms@1 paper", "fms@5 paper", "fms@1 heldout", "fms@5 heldout", "accs_0 paper", "local@1 paper", "global paper",
    "shuffled fms@1 paper", "nmse", "fvu", "ce_recovered", "detection f1", "leakage", "probe_auroc",
    "probe_steered", "dead_latents", "training FLOPs", "training seconds",
)  # fmt: skip


def summary(table: pd.DataFrame) -> str:
    """Return Markdown: for each data set a row per recipe, mean and half the 95 % interval over seeds (Student's t)."""
    parts = []
    for dataset, own in table.groupby("dataset", sort=False):
        measures = [name for name in MEASURES if name in own and own[name].notna().any()]
        rows = [
            [str(recipe), str(len(seeds)), *(_mean(seeds[name].to_numpy(float)) for name in measures)]
            for recipe, seeds in own.groupby("recipe", sort=False)
        ]
        parts.append(markdown_table([str(dataset), "seeds", *measures], rows))
    return "\n\n".join(parts) + "\n"


def _mean(values: np.ndarray) -> str:
    mean, n = float(values.mean()), len(values)
    text = f"{mean:.3g}" if abs(mean) >= 1000 else f"{mean:.3f}"
    if n < 2 or np.isnan(mean):
        return "" if np.isnan(mean) else text
    half = float(student.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5)
    return f"{text} ± {half:.2g}" if abs(mean) >= 1000 else f"{text} ± {half:.3f}"


def pareto(table: pd.DataFrame) -> Figure:
    """Draw FMS@1 against NMSE, a panel for each data set, a point for each seed; up and to the left is better."""
    datasets = list(table["dataset"].unique())
    figure = new_figure(4.6 * len(datasets), 4.2)
    panels = figure.subplots(1, len(datasets), squeeze=False)[0]
    recipes = list(table["recipe"].unique())
    for axes, dataset in zip(panels, datasets, strict=True):
        for recipe, own in table[table["dataset"] == dataset].groupby("recipe", sort=False):
            look = line_style(recipes.index(recipe)) | {"lw": 0, "markersize": 7}
            axes.plot(own["nmse"], own["fms@1 paper"], label=recipe, **look)
        axes.set_xlabel("NMSE, held-out texts")
        axes.set_ylabel("FMS@1, paper mode")
        axes.set_title(str(dataset), loc="left", fontsize=9)
    legend_below(figure)
    return figure
