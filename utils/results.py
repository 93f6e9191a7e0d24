"""Results of an experiment: a folder with pieces that are computed once, a tidy table, its settings and a figure."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from filelock import FileLock, Timeout

from utils.atomic import atomic_file, differences, lock_file, read_json_object, sha256_json, write_json
from utils.errors import UserError

matplotlib.use("Agg")  # no screen is needed to write a file
from matplotlib.figure import Figure

Rows = list[dict[str, Any]]


def readable(label: str) -> str:
    """Return a label as the name of a file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "__", label).strip("_")


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Let no other process write into a folder of results meanwhile.

    Raises:
        UserError: one does already.
    """
    try:
        with FileLock(lock_file(folder), timeout=0):
            yield
    except Timeout:
        raise UserError(f"{folder}: another process is writing there; wait for it, or choose another --out") from None


class Results:
    """The folder of one experiment: `<name>.csv`, `<name>.json`, figures and `pieces/`.

    A piece (one SAE's measurement, say) is stored as soon as it is done, under its label and a hash of what made it;
    asked for again, it is read back. The table holds the latest piece of every label that was ever asked for here. What
    other settings of the experiment itself have made is never overwritten.

    Raises:
        UserError: the folder holds the experiment with other settings.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        self.folder, self.name, self.settings = folder, name, settings
        self._pieces: dict[str, dict[str, Any]] = {}
        path = folder / f"{name}.json"
        if path.exists():
            found = read_json_object(path, ("settings", "pieces"))
            if differs := differences(found["settings"], settings):
                raise UserError(f"{folder} holds results of other settings ({differs}); choose another --out")
            there = {label: made_of for label, made_of in found["pieces"].items() if self.path(label, made_of).exists()}
            self._pieces = there

    def piece(
        self,
        label: str,
        made_of: dict[str, Any],
        compute: Callable[[], Rows],
        retry: Callable[[Rows], bool] = lambda rows: False,
    ) -> None:
        """Add a piece to the table, computing it where it is not stored yet, or `retry` tells to do so again."""
        path = self.path(label, made_of)
        if not path.exists() or retry(read_json_object(path, ("rows",))["rows"]):
            rows = compute()
            write_json(path, {"label": label, "made_of": made_of, "settings": self.settings, "rows": rows})
        self._pieces[label] = made_of

    def path(self, label: str, made_of: dict[str, Any]) -> Path:
        """Return where a piece lies, or will."""
        digest = sha256_json([label, made_of, self.settings])[:8]
        return self.folder / "pieces" / f"{readable(label)}-{digest}.json"

    def rows(self, label: str) -> Rows:
        """Return the rows of a label's latest piece."""
        path = self.path(label, self._pieces[label])
        rows: Rows = read_json_object(path, ("rows",))["rows"]
        return rows

    def made_of(self, label: str) -> dict[str, Any] | None:
        """Return what made a label's latest piece, None where there is none."""
        return self._pieces.get(label)

    @property
    def labels(self) -> list[str]:
        """The labels of the table, in the order they came."""
        return list(self._pieces)

    def write(self, table: pd.DataFrame, figures: dict[str, Figure], versions: dict[str, str]) -> None:
        """Write the table, the settings, and each figure as PNG and SVG."""
        with atomic_file(self.folder / f"{self.name}.csv") as temporary:
            table.to_csv(temporary, index=False)
        for name, figure in figures.items():
            for kind in ("png", "svg"):
                with atomic_file(self.folder / f"{name}.{kind}") as temporary:
                    figure.savefig(temporary, dpi=150, format=kind, metadata={"Date": None} if kind == "svg" else None)
        about = {"settings": self.settings, "pieces": self._pieces, "versions": versions}
        write_json(self.folder / f"{self.name}.json", about)
