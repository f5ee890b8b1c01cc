"""What a probe is: a measurement that looks inside a trained model and gives records."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from groundthink.diagnose.subject import Subject

Row = tuple[str, dict[str, Any]]
"""Kind and fields of a record; kind "finding" holds a `Finding`, the others what pages draw."""
Run = Callable[[Subject], list[Row]]


class Probe:
    """A measurement; called with a subject it gives rows. Its docstring is its function's."""

    def __init__(self, id: str, title: str, run: Run):
        self.id, self.title, self.run = id, title, run
        functools.update_wrapper(self, run)

    def __call__(self, subject: Subject) -> list[Row]:
        return self.run(subject)


def probe(id: str, title: str) -> Callable[[Run], Probe]:
    """Make a function `(subject) -> rows` a `Probe`."""
    return lambda run: Probe(id, title, run)
