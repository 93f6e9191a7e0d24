"""Files and folders that are either whole or absent, and their checksums."""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UserError


def fsync_path(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success the file is flushed and renamed, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: libraries choose a format (png, csv) by it.
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it is renamed, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            fsync_path(file)
        temporary.rename(path)
        fsync_path(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def lock_file(path: Path) -> Path:
    """Return the file that locks `path`: in the system's temporary folder, so that no lock is left beside results."""
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"guided-monosemanticity-{name}.lock"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is no JSON; the message names it and, where known, the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except RecursionError:
        raise UserError(f"{path}: not valid JSON (nested too deeply)") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON, line {error.lineno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def read_json_object(path: Path, required: Iterable[str] = (), newest_format: int | None = None) -> dict[str, Any]:
    """Read a JSON file that must hold an object with certain keys.

    Args:
        path: the file.
        required: keys that must be there.
        newest_format: the largest value of its key `format` that this program knows.

    Raises:
        UserError: as `read_json`; no object; a missing key; a newer format.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    if missing := sorted(set(required) - value.keys()):
        raise UserError(f"{path}: missing key(s) {', '.join(missing)}")
    if newest_format is not None and not (isinstance(value.get("format"), int) and value["format"] <= newest_format):
        raise UserError(f"{path}: format {value.get('format')!r} is not one this program knows (up to {newest_format})")
    return value


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Name the keys whose values differ, as `key: found -> wanted`, comma-separated; empty where none does."""
    keys = [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
    return ", ".join(f"{key}: {_short(found.get(key))} -> {_short(wanted.get(key))}" for key in keys)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
