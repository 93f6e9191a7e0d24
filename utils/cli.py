"""What every script shares: one-line errors, exit codes and an argument parser that teaches."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import datasets
import huggingface_hub.utils

from utils.errors import UserError
from utils.stopping import Stopped


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and whose help shows the defaults."""

    def __init__(self, description: str, epilog: str = "", **kwargs: Any) -> None:
        super().__init__(
            description=description, epilog=epilog, formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs
        )

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line on stderr."""
        self.exit(2, f"error: {message} (see --help)\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks of the examples; adds the defaults to every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, []) or action.required:
            return action.help
        return super()._get_help_string(action)


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1, for `type=` of an argument."""
    return int(_number(text, int, 1, float("inf"), "a whole number of at least 1"))


def non_negative_int(text: str) -> int:
    """Parse a whole number of at least 0, for `type=` of an argument."""
    return int(_number(text, int, 0, float("inf"), "a whole number of at least 0"))


def seed(text: str) -> int:
    """Parse a seed, a whole number from 0 to 2^32 - 1, for `type=` of an argument."""
    return int(_number(text, int, 0, 2**32 - 1, "a whole number from 0 to 4294967295"))


def non_negative_float(text: str) -> float:
    """Parse a finite number of at least 0, for `type=` of an argument."""
    return _number(text, float, 0, sys.float_info.max, "a number of at least 0")


def _number(text: str, kind: Callable[[str], float], low: float, high: float, wanted: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text}")
    return value


def run(main: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a script's `main` and exit: 0 on success, 2 with one line on bad input, 130 or 143 when interrupted."""
    # Before the first use of the libraries: their progress bars would tear ours, their notices hide our one line.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("utils").setLevel(logging.INFO)
    try:
        main(argv)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # a full disk, a file where a folder should be, no permission
        sys.stderr.write(f"error: {error.filename or 'input/output'}: {error.strerror or error}\n")
        sys.exit(2)
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}; the same command goes on from here\n")
        sys.exit(143)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        sys.exit(130)
    sys.exit(0)
