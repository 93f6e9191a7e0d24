"""A page of sample completions, side by side over the strengths: one file, which works offline and runs nothing."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from utils.atomic import atomic_file
from utils.scorers.base import Scorer

_PROMPTS = 20
_STRENGTHS = 5
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 90rem; padding: 1rem; color: #111; }}
  h1 {{ font-size: 1.1rem; }} h2 {{ font-size: 1rem; margin: 2rem 0 .3rem; white-space: pre-wrap; }}
  div {{ overflow-x: auto; }}
  table {{ border-collapse: collapse; width: 100%; }}
  th, td {{ border: 1px solid #bbb; padding: .3rem .5rem; vertical-align: top; text-align: left; }}
  td {{ white-space: pre-wrap; overflow-wrap: anywhere; min-width: 9rem; }}
  mark {{ background: #f6d8b8; border-bottom: 2px solid #D55E00; }}
  small {{ color: #555; display: block; }} i {{ color: #555; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>What was written after each prompt, by strength (alpha 0: unsteered). Marked: what speaks for {effect}.</p>
{body}
</body>
</html>
"""


def write_completion_view(
    path: Path,
    title: str,
    tables: Mapping[str, pd.DataFrame],
    effect: str,
    scorer: Scorer,
) -> None:
    """Write the page.

    Args:
        path: where to.
        title: its heading.
        tables: completions of the same prompts, by label, see `utils.completions`.
        effect: the measure that is shown beside each.
        scorer: marks words.
    """
    first = next(iter(tables.values()))
    prompts = first.drop_duplicates("prompt_id").set_index("prompt_id")["prompt"]
    chosen = prompts.iloc[np.unique(np.linspace(0, len(prompts) - 1, _PROMPTS).astype(int))]
    body = []
    for prompt_id, prompt in chosen.items():
        rows = []
        for label, table in tables.items():
            own = table[table["prompt_id"] == prompt_id].set_index("alpha")
            if not len(own):  # too short for this one's tokens
                continue
            cells = [
                _cell(cast(pd.Series, own.loc[alpha]), effect, scorer)
                for alpha in _strengths(own.index.to_numpy(float))
            ]
            rows.append(f"<tr><th>{escape(label)}</th>{''.join(cells)}</tr>")
        body.append("\n".join([f"<h2>{escape(str(prompt))}</h2>", "<div><table>", *rows, "</table></div>"]))
    page = _PAGE.format(title=escape(title), effect=escape(effect), body="\n".join(body))
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _strengths(alphas: np.ndarray) -> list[float]:
    """Choose some, from the lowest to the highest, with 0."""
    ordered = np.sort(alphas)
    places = np.unique(np.linspace(0, len(ordered) - 1, _STRENGTHS).round().astype(int))
    return sorted({*ordered[places].tolist(), *ordered[ordered == 0].tolist()})


def _cell(row: pd.Series, effect: str, scorer: Scorer) -> str:
    text = str(row["completion"])
    value = "" if pd.isna(row[effect]) else f", {effect} {row[effect]:.2f}"
    shown = _marked(text, scorer.marks(text)) if text.strip() else "<i>nothing</i>"
    return f"<td><small>alpha {row.name:g}{escape(value)}</small>{shown}</td>"


def _marked(text: str, marks: list[tuple[int, int]]) -> str:
    pieces, done = [], 0
    for start, end in sorted(marks):
        if start < done:
            continue
        pieces.append(f"{escape(text[done:start])}<mark>{escape(text[start:end])}</mark>")
        done = end
    return "".join(pieces) + escape(text[done:])
