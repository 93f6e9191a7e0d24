"""Checks of single values that users write into files."""

import math
from typing import Any

from utils.errors import UserError


def check_whole(key: str, value: Any, least: int) -> None:
    """Refuse what is not a whole number of at least so much.

    Raises:
        UserError: that.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{key}: must be a whole number of at least {least}, not {value!r}")


def check_number(key: str, value: Any, least: float, most: float = math.inf) -> None:
    """Refuse what is not a finite number within limits.

    Raises:
        UserError: that.
    """
    if not _is_finite(value) or not least <= value <= most:
        limits = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise UserError(f"{key}: must be a number {limits}, not {value!r}")


def check_positive(key: str, value: Any) -> None:
    """Refuse what is not a finite number above 0.

    Raises:
        UserError: that.
    """
    if not _is_finite(value) or value <= 0:
        raise UserError(f"{key}: must be a positive number, not {value!r}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
