"""The one exception that stands for a mistake of the user's, and the words in which errors are told."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad usage or bad input, told in one sentence; the command line prints it and exits with status 2."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean "trades"?`` for the closest choice, or an empty string when none is close."""
    by_folded = {choice.lower().replace("_", "-"): choice for choice in choices}
    close = get_close_matches(name.lower().replace("_", "-"), by_folded, n=1, cutoff=0.5)
    return f' Did you mean "{by_folded[close[0]]}"?' if close else ""


def not_negative(name: str, value: float) -> None:
    """Refuse the setting ``name`` where its value is negative or NaN."""
    if not value >= 0:
        raise InputError(f"{name} must not be negative, not {value}.")


def reason(error: BaseException) -> str:
    """Return an error as part of a sentence: its type and its message, on one line and without a full stop."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
