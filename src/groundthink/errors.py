"""Errors that a user can act on, and near-name suggestions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot work; the message is one line that says what to do next.

    The command line prints it without a traceback and exits with code 2.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that no table holds: near names first, then every known one."""
    known = sorted(known)
    lookup = {k.lower(): k for k in known}
    near = [lookup[k] for k in difflib.get_close_matches(name.lower(), lookup, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(f"unknown {kind} {name!r}; {hint}known: {', '.join(known)}")
