"""SP: Shakespeare's sentences and their modern versions, aligned line by line."""

import http.client
import tempfile
import urllib.request
from pathlib import Path

from utils.atomic import sha256_file
from utils.errors import UserError
from utils.labelled_text import LabelledText, Text, whole

CONCEPT = "Shakespearean"
SPLITS = ("train", "valid", "test")
_STYLES = ("original", "modern")
_URL = "https://raw.githubusercontent.com/harsh19/Shakespearizing-Modern-English/master/data/"


def build(source: Path | None) -> LabelledText:
    """Read the `.nltktok` files of a folder, or download them.

    The two versions of a sentence follow each other, Shakespeare's first. Blank lines are dropped and counted.

    Raises:
        UserError: no pair of files, an unpaired file, files of different lengths, or no connection.
    """
    if source is not None:
        return _read(source)
    with tempfile.TemporaryDirectory() as folder:
        _download(Path(folder))
        return _read(Path(folder))


def _read(folder: Path) -> LabelledText:
    splits: dict[str, list[Text]] = {}
    checksums: dict[str, str] = {}
    blank = 0
    for split in SPLITS:
        files = [folder / f"{split}.{style}.nltktok" for style in _STYLES]
        present = [file for file in files if file.is_file()]
        if not present:
            continue
        if len(present) == 1:
            missing = next(file for file in files if file not in present)
            raise UserError(f"{missing}: missing, although its partner {present[0].name} is there")
        original, modern = (_lines(file) for file in files)
        if len(original) != len(modern):
            raise UserError(
                f"{files[0]} has {len(original)} lines, but {files[1].name} has {len(modern)}; they must pair up"
            )
        texts: list[Text] = []
        for pair in zip(original, modern, strict=True):
            for sentence, concept in zip(pair, (CONCEPT, None), strict=True):
                if sentence:
                    texts.append(whole(sentence, concept))
                else:
                    blank += 1
        splits[split] = texts
        checksums |= {file.name: sha256_file(file) for file in files}
    if not splits:
        raise UserError(f"--source {folder}: holds no {SPLITS[0]}.{_STYLES[0]}.nltktok (nor {', '.join(SPLITS[1:])})")
    return LabelledText("SP", [CONCEPT], splits, {"files": checksums}, {"blank_lines_dropped": blank})


def _lines(file: Path) -> list[str]:
    try:
        # Not splitlines(): it also breaks at form feeds and other characters that may stand inside a sentence.
        return [line.strip() for line in file.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: not UTF-8") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _download(folder: Path) -> None:
    for split in SPLITS:
        for style in _STYLES:
            name = f"{split}.{style}.nltktok"
            try:
                with urllib.request.urlopen(_URL + name, timeout=20) as response:  # noqa: S310 - a constant https address
                    (folder / name).write_bytes(response.read())
            except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
                reason = getattr(error, "reason", error)
                raise UserError(
                    f"SP: {_URL}{name} cannot be downloaded ({reason}); give --source FOLDER with its files"
                ) from None
