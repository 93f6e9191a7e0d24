"""What every script shares: one-line errors, exit codes and an argument parser that teaches."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import datasets

from utils.errors import UserError


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
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def non_negative_float(text: str) -> float:
    """Parse a finite number of at least 0, for `type=` of an argument."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text}")
    return value


def run(main: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a script's `main` and exit: 0 on success, 2 with one line on bad input, 130 when interrupted."""
    # Before the first use of the libraries: their progress bars would tear ours, their notices hide our one line.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    datasets.disable_progress_bars()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("utils").setLevel(logging.INFO)
    try:
        main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    sys.exit(0)
