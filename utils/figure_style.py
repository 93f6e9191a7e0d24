"""What all figures share: colours told apart without colour vision, hatches and markers told apart in grey print."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ["#999999", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442"]  # Okabe and Ito's
HATCHES = ["", "//", "..", "xx", "\\\\", "++", "oo", "--"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, at most 16 wide."""
    return Figure(figsize=(min(16.0, width), height), layout="constrained")


def bar_style(number: int) -> dict[str, Any]:
    """Return the look of the bars of a series."""
    look = {"color": COLOURS[number % len(COLOURS)], "hatch": HATCHES[number % len(HATCHES)]}
    return look | {"edgecolor": "white"}


def line_style(number: int) -> dict[str, Any]:
    """Return the look of the line of a series."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
        "lw": 1.5,
    }


def name_ticks(axes: Axes, names: list[str], places: list[float] | None = None) -> None:
    """Write names below the axis, slanted where there are many."""
    many = len(names) > 3
    axes.set_xticks(
        range(len(names)) if places is None else places,
        names,
        rotation=60 if many else 0,
        ha="right" if many else "center",
    )


def legend_below(figure: Figure) -> None:
    """Put the legend under the panels, where it hides nothing; labels of several panels count once."""
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = {label: handle for pair in found for handle, label in zip(*pair, strict=True)}
    n_columns = min(3, len(handles)) if max(map(len, handles), default=0) < 20 else 1  # long names go below each other
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=n_columns, frameon=False)
