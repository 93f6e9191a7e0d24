"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input: one line that names the file or flag, what is wrong and what to do.

    Scripts print it without a traceback and exit with code 2 (see `utils.cli.run`).
    """


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
