"""Tables of completions on disk, one row per prompt and strength, and pairs of two of them."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.atomic import atomic_file, differences, read_json_object, write_json
from utils.errors import UserError, first_line

TEXTS = ("prompt", "completion")


def write_completions(path: Path, table: pd.DataFrame, settings: dict[str, Any]) -> None:
    """Write a table as CSV, and beside it as JSON the settings that decide which prompts it is of."""
    write_json(path.with_suffix(".json"), {"settings": settings})
    write_csv(path, table)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table such that texts come back as they were, line breaks of every kind included."""
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC)


def read_completions(path: Path) -> pd.DataFrame:
    """Read a table; `prompt` and `completion` are texts as they were, all else are numbers, or NaN.

    Raises:
        UserError: no file, no CSV, or a column missing.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not a table of completions ({first_line(error)})") from None
    if lacking := [name for name in TEXTS if name not in table.columns]:
        raise UserError(f"{path}: not a table of completions (no column {', '.join(lacking)})")
    for name in table.columns.difference(list(TEXTS)):
        table[name] = pd.to_numeric(table[name], errors="coerce")
    return table


def paired(a: Path, b: Path, alphas: tuple[float, float]) -> pd.DataFrame:
    """Return the completions of two tables side by side, prompt by prompt; columns end in `_a` and `_b`.

    Args:
        a: a table.
        b: another, or the same.
        alphas: the strengths that are taken of them; a table without the column `alpha` is taken as it is.

    Raises:
        UserError: a bad table; one that lacks the strength; tables of different prompts or settings.
    """
    settings = [settings_beside(path) for path in (a, b)]
    if None not in settings and (differs := differences(*settings)):  # type: ignore[arg-type]
        raise UserError(f"{a} and {b} were made with different settings ({differs}); they cannot be compared")
    sides = [_of_strength(path, alpha) for path, alpha in zip((a, b), alphas, strict=True)]
    if sorted(sides[0].index) != sorted(sides[1].index):
        alone = len(sides[0].index.symmetric_difference(sides[1].index))
        raise UserError(f"{a} and {b} are of different prompts ({alone} are in one only); they cannot be compared")
    named = [side.add_suffix(f"_{name}") for side, name in zip(sides, "ab", strict=True)]
    pairs = named[0].merge(named[1], left_index=True, right_index=True)
    return pairs.reset_index(level="prompt")


def settings_beside(path: Path) -> dict[str, Any] | None:
    """Return the settings that lie beside a table, None where none do.

    Raises:
        UserError: no settings in that file.
    """
    beside = path.with_suffix(".json")
    if not beside.exists():
        return None
    settings = read_json_object(beside, ("settings",))["settings"]
    if not isinstance(settings, dict):
        raise UserError(f"{beside}: its settings must be an object")
    return settings


def _of_strength(path: Path, alpha: float) -> pd.DataFrame:
    """Return the rows of one strength, by prompt; equal prompts are told apart by their order."""
    table = read_completions(path)
    if "alpha" in table.columns:
        alphas = np.array(sorted(table["alpha"].dropna().unique()))
        near = alphas[np.isclose(alphas, alpha)]
        own = table[table["alpha"] == min(near, key=lambda value: abs(value - alpha))] if len(near) else table[:0]
        if not len(own):
            there = ", ".join(f"{value:g}" for value in alphas)
            raise UserError(f"{path}: no completions for alpha {alpha:g}; it has {there}; choose with --alpha")
        table = own
    if not len(table):
        raise UserError(f"{path}: no completions")
    return table.assign(again=table.groupby("prompt").cumcount()).set_index(["prompt", "again"])
