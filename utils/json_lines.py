"""Files of JSON lines that grow entry by entry and survive a kill: a line that was cut off is dropped."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError


def read_lines(path: Path, required: Iterable[str]) -> list[dict[str, Any]]:
    """Return the entries of a file, none where there is no file; a last line without an end is cut off the file.

    Args:
        path: the file.
        required: keys that every entry has.

    Raises:
        UserError: a damaged line.
    """
    if not path.exists():
        return []
    entries, whole, keys = [], 0, set(required)
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
        if not line.endswith(b"\n"):
            os.truncate(path, whole)
            break
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not keys <= entry.keys():
            raise UserError(f"{path}: line {number + 1} is damaged; remove that line, or the file")
        entries.append(entry)
        whole += len(line)
    return entries


def append_lines(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write entries through to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)
        file.flush()
        os.fsync(file.fileno())
