"""Results of an experiment: a folder with pieces that are computed once, a tidy table, its settings and a figure."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

matplotlib.use("Agg")  # no screen is needed to write a file
from matplotlib.figure import Figure

from utils.atomic import atomic_file, differences, read_json, write_json
from utils.errors import UserError


class Results:
    """The folder of one experiment.

    Each piece (one SAE's measurement, say) is stored with the settings that made it, as soon as it is done. Asked for
    again, a piece of the same settings is read back; one of other settings is never overwritten.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def piece(
        self, name: str, settings: dict[str, Any], compute: Callable[[], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """Return the rows of a piece, computing them where they are not stored yet.

        Raises:
            UserError: the piece is stored with other settings.
        """
        path = self.folder / "pieces" / f"{re.sub(r'[^A-Za-z0-9._-]+', '__', name)}.json"
        if path.exists():
            found = read_json(path)
            if differs := differences(found["settings"], settings):
                raise UserError(
                    f"{path} holds results of other settings ({differs}); remove it or choose another --out"
                )
            rows: list[dict[str, Any]] = found["rows"]
            return rows
        rows = compute()
        write_json(path, {"settings": settings, "rows": rows})
        return rows

    def write(self, name: str, table: pd.DataFrame, settings: dict[str, Any], figure: Figure) -> None:
        """Write `name`.csv, `name`.json and `name`.png."""
        with atomic_file(self.folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
        write_json(self.folder / f"{name}.json", settings)
        with atomic_file(self.folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=150)
