"""What a gate is."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

from groundthink.diagnose.components import parallel
from groundthink.diagnose.subject import Subject
from groundthink.errors import UserError
from groundthink.verdicts.verdict import Finding, skipped

Run = Callable[[Subject], list[Finding]]


class Gate:
    """A test of a model; called with a subject it gives findings. Its docstring is its function's.

    Args:
        both: it compares the two branches and needs blocks that fuse them.
        trained: it means nothing on an untrained model.
        suite: the suite it belongs to.
    """

    def __init__(self, id: str, title: str, run: Run, both: bool, trained: bool, suite: str):
        self.id, self.title, self.run, self.both, self.trained = id, title, run, both, trained
        self.suite = suite
        functools.update_wrapper(self, run)

    def __call__(self, subject: Subject) -> list[Finding]:
        """The findings; a skipped one if the model has no block with both branches to compare, or
        there is too little text."""
        if self.both and not parallel(subject.model):
            return [skipped(self.id, self.title, "no block of this model fuses RWKV-6 and Mamba-2")]
        try:
            return self.run(subject)
        except UserError as error:
            return [skipped(self.id, self.title, str(error))]


def gate(
    id: str, title: str, *, both: bool = False, trained: bool = False, suite: str = "gates"
) -> Callable[[Run], Gate]:
    """Make a function `(subject) -> findings` a `Gate`."""
    return lambda run: Gate(id, title, run, both, trained, suite)


def worst(errors: Mapping[str, float]) -> tuple[str, float]:
    """Name and value of the largest error; a NaN is larger than any."""
    name = max(errors, key=lambda key: math.inf if math.isnan(errors[key]) else errors[key])
    return name, errors[name]
