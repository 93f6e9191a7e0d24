"""The figures of features: densities by class, and calibration against scores."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.concept_features import calibration
from utils.figure_style import COLOURS, legend_below, line_style, new_figure

_BINS = 40
_MOST_COLUMNS = 5


def densities(tables: Iterable[tuple[str, pd.DataFrame]], n_concepts: int, title: str) -> Figure:
    """Draw, concept by concept, how the pre-activation is distributed with and without the label.

    Args:
        tables: for each concept `label` and `pre`, over tokens or texts.
        n_concepts: how many there are.
        title: of the figure.
    """
    n_columns = min(_MOST_COLUMNS, n_concepts)
    n_rows = -(-n_concepts // n_columns)
    figure = new_figure(max(5.0, 2.6 * n_columns), 1.2 + 1.9 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for axes, (concept, table) in zip(panels, tables, strict=False):
        own = table[table["pre"].notna()]
        axes.set_title(concept, loc="left", fontsize=8)
        axes.set_yticks([])
        if own.empty:
            continue
        low, high = float(own["pre"].min()), float(own["pre"].max())
        edges = np.linspace(low, max(high, low + 1e-3), _BINS + 1)
        for label, name, filled in ((0, "without the label", True), (1, "with the label", False)):
            values = own["pre"][(own["label"] > 0) == bool(label)]
            if len(values):
                axes.hist(
                    values, edges, density=True, label=name, histtype="stepfilled" if filled else "step",
                    color=COLOURS[0] if filled else COLOURS[5], alpha=0.5 if filled else 1.0, lw=1.5,
                )  # fmt: skip
    for axes in panels[n_concepts:]:
        axes.set_visible(False)
    figure.suptitle(f"{title}\ndensity of the pre-activation", x=0.01, ha="left", fontsize=9)
    legend_below(figure)
    return figure


def calibration_curves(tables: dict[str, pd.DataFrame], title: str) -> Figure:
    """Draw the mean value, and its middle half, by score, one line per SAE.

    Args:
        tables: `score` and `value` of the texts, by the SAE's name.
        title: of the figure.
    """
    figure = new_figure(6, 4.2)
    axes = figure.subplots()
    for number, (name, table) in enumerate(tables.items()):
        bins = calibration(table)
        middle = bins["low"] + 0.025
        axes.plot(middle, bins["mean"], label=name, **line_style(number))
        axes.fill_between(middle, bins["q25"], bins["q75"], color=line_style(number)["color"], alpha=0.2, lw=0)
    axes.set_xlabel("score, in bins of 0.05")
    axes.set_ylabel("value of the concept's latent, mean over a text")
    axes.set_title(title, loc="left", fontsize=9)
    legend_below(figure)
    return figure
