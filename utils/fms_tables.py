"""How FMS results are shown: tables for the screen and for Markdown."""

import numpy as np
import pandas as pd

HEADLINES = ["fms@1", "fms@5", "accs_0", "local@1", "local@5", "global", "shuffled_fms@1", "shuffled_fms@5"]
_LOCAL = [f"local@{p}" for p in range(1, 10)]


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
        columns = (
            values.reindex(columns=[*HEADLINES[:-1], "root_0"]).round(3).fillna({"root_0": -1}).astype({"root_0": int})
        )
        bounds = values["fms@1_low"].map("{:.3f}".format) + " to " + values["fms@1_high"].map("{:.3f}".format)
        columns.insert(1, "95 % of fms@1", bounds)
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
