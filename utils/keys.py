"""Keys of services: from the environment alone, and never shown."""

import os

from utils.errors import UserError


def key_from_environment(name: str, why: str) -> str:
    """Return a key.

    Raises:
        UserError: it is not set, or cannot be sent as it is.
    """
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"{name} is not set; {why}")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{name}: holds characters that no key has, such as a line break")
    return key
