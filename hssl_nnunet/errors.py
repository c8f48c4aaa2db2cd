"""The one exception for a user's mistake, and what its messages share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SHOWN = 10  # names that one message lists


class HSSLError(RuntimeError):
    """A mistake the user can repair: the command line prints it without a traceback and exits with 1.

    The message says what was got, what was expected, where (file, case, key), and the command that repairs it.
    """


def listed(names: Sequence[str]) -> str:
    """Names for a message: the first ones, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def unknown_name(kind: str, name: str, known: Iterable[str]) -> HSSLError:
    """Build the error for a name that is not known, listing those that are."""
    return HSSLError(f"Unknown {kind} '{name}'. Known: {', '.join(sorted(known))}.")
