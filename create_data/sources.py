"""Records of a corpus, from local files in the original schema or from the hub, each with the place it came from.

Local files: JSON lines (.jsonl, .json), Parquet, or plain text (.txt, .raw, .tokens: one text per line).
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from utils.atomic import sha256_file
from utils.errors import UserError, first_line

SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}


@dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
        where: file and line, for messages.
        split: the split that the file's name or folder, or the hub, gives it; None where they give none.
        fields: its columns.
    """

    where: str
    split: str | None
    fields: dict[str, Any]

    def get(self, column: str, kind: type | tuple[type, ...], schema: str) -> Any:
        """Return a column.

        Raises:
            UserError: it is missing or of another type, so the record is not in the original schema.
        """
        value = self.fields.get(column)
        if not isinstance(value, kind):
            raise UserError(f"{self.where}: no {column}; the original schema of {schema} is expected")
        return value


def read_records(
    name: str, source: Path | None, hub_id: str, subset: str | None = None
) -> tuple[dict[str, str], Iterator[Record]]:
    """Return what identifies the source (each file's checksum, or the hub's name), and its records in order.

    Raises:
        UserError: no such files, or no connection; while going through the records, an unreadable one (line given).
    """
    if source is None:
        return {hub_id: "hub"}, _from_hub(name, hub_id, subset)
    files = [source]
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix in _READERS)
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"--source {source}: no such file, or a folder without any of {', '.join(_READERS)}")
    root = source if source.is_dir() else source.parent
    return {file.relative_to(root).as_posix(): sha256_file(file) for file in files}, _from_files(files, root)


def _from_files(files: list[Path], root: Path) -> Iterator[Record]:
    for file in files:
        if file.suffix not in _READERS:
            raise UserError(f"--source {file}: a file of {', '.join(_READERS)} is expected")
        split = _split_of(file.relative_to(root))
        for where, fields in _READERS[file.suffix](file):
            if not isinstance(fields, dict):
                raise UserError(f"{where}: not a record (a JSON object)")
            yield Record(where, split, fields)


def _split_of(path: Path) -> str | None:
    """Return the split that is a word of a file's name, else of its nearest folder's."""
    for part in reversed(path.parts):
        words = re.split(r"[^a-z]+", part.lower())
        for word, split in SPLITS.items():
            if word in words:
                return split
    return None


def _json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield f"{file}, line {number}", json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
                raise UserError(f"{file}, line {number}: not valid JSON") from None


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
            for fields in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", fields
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable Parquet file ({first_line(error)})") from None


def _text_lines(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield f"{file}, line {number}", {"text": line.decode().rstrip("\r\n")}
            except UnicodeDecodeError:
                raise UserError(f"{file}, line {number}: not UTF-8") from None


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".parquet": _parquet,
    ".txt": _text_lines,
    ".raw": _text_lines,
    ".tokens": _text_lines,
}


def _from_hub(name: str, hub_id: str, subset: str | None) -> Iterator[Record]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        splits = load_dataset(hub_id, subset)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise UserError(
            f"{name}: {hub_id} cannot be fetched ({first_line(error)}); give --source with its files"
        ) from None
    for split, rows in splits.items():
        for number, fields in enumerate(rows):
            yield Record(f"{hub_id}, {split}, record {number}", SPLITS.get(split), fields)
