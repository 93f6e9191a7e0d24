"""How FMS results are shown: tables for the screen and for Markdown, and the bar chart."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

HEADLINES = ["fms@1", "fms@5", "accs_0", "local@1", "local@5", "global", "shuffled_fms@1", "shuffled_fms@5"]
_LOCAL = [f"local@{p}" for p in range(1, 10)]
_COLOURS = ["#999999", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"]  # told apart without colour vision


def summary(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Average over concepts, then over SAEs of the same name (seeds): mean, and standard deviation where several."""
    per_sae = table[table["measure"].isin(columns)].groupby(["name", "sae", "measure"], sort=False)["value"].mean()
    grouped = per_sae.groupby(["name", "measure"], sort=False)
    text = grouped.mean().map("{:.3f}".format)
    spread = grouped.std().map(lambda value: "" if np.isnan(value) else f" ± {value:.3f}")
    return (text + spread).unstack("measure")[columns]


def show(table: pd.DataFrame, title: str) -> str:
    """Return the screen's tables: per SAE and concept, then the means over concepts, then what was left out."""
    parts = []
    for sae, own in table.groupby("sae", sort=False):
        scored = own[own["measure"] != "skipped"]
        values = scored.pivot_table(index="concept", columns="measure", values="value", sort=False)
        columns = values[[*HEADLINES[:-1], "root_0"]].round(3).astype({"root_0": int})
        parts.append(f"{sae} ({title})\n{columns.to_string()}\n")
    n_concepts = table[table["measure"] == "fms@1"]["concept"].nunique()
    parts.append(f"mean of {n_concepts} concept(s) ({title})\n{summary(table, HEADLINES).to_string()}\n")
    parts.append(f"local@p, what is lost when the p best latents are removed\n{summary(table, _LOCAL).to_string()}")
    skipped = table[table["measure"] == "skipped"].drop_duplicates(["concept", "note"])
    parts += [
        f"left out: {concept} ({note})" for concept, note in zip(skipped["concept"], skipped["note"], strict=True)
    ]
    return "\n".join(parts)


def markdown(table: pd.DataFrame, title: str) -> str:
    """Return the README's table of means."""
    columns = ["fms@1", "fms@5", "accs_0", "local@1", "global", "shuffled_fms@1"]
    rows = summary(table, columns)
    lines = [f"| {title} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    names = {name: "guided" if name.endswith("_s1") else "vanilla" for name in rows.index}
    lines += [f"| {names[name]} | {' | '.join(rows.loc[name, columns])} |" for name in rows.index]
    return "\n".join(lines)


def draw(table: pd.DataFrame, title: str) -> Figure:
    """Draw FMS@1 per concept, one bar per SAE name, with the seeds' standard deviation and the shuffled control."""
    scored = table[table["measure"] == "fms@1"]
    grouped = scored.groupby(["concept", "name"], sort=False)["value"]
    means, spreads = grouped.mean().unstack("name"), grouped.std().unstack("name").fillna(0.0)
    control = table[table["measure"] == "shuffled_fms@1"].groupby("concept", sort=False)["value"].mean()
    n_bars = len(means) * len(means.columns)
    figure = Figure(figsize=(min(16, max(5.0, 0.2 * n_bars + 2)), 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(means.columns)
    places = np.arange(len(means))
    for number, name in enumerate(means.columns):
        offset = (number - (len(means.columns) - 1) / 2) * width
        errors = spreads[name] if spreads[name].any() else None
        axes.bar(places + offset, means[name], width, yerr=errors, label=name, color=_COLOURS[number % len(_COLOURS)])
    axes.hlines(control.loc[means.index], places - 0.42, places + 0.42, color="black", lw=1.5, label="shuffled labels")
    many = len(means) > 3
    axes.set_xticks(places, means.index, rotation=60 if many else 0, ha="right" if many else "center")
    axes.set_ylabel("FMS@1")
    axes.set_title(title, loc="left")
    axes.margins(x=0.02)
    figure.legend(loc="outside lower center", ncols=3 if many else 1, frameon=False)
    return figure
