"""`groundthink compare`: two runs or checkpoints side by side, or proof that they are equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from groundthink.diagnose.config import Compare
from groundthink.errors import UserError
from groundthink.lab.probing import save

if TYPE_CHECKING:
    from groundthink.diagnose.probes.registry import Row
    from groundthink.diagnose.subject import Subject


def run(config: Compare) -> int:
    """Print both with paired intervals and write A/results/compare.jsonl; with `assert_equal` say
    what differs instead, 1 if anything does.

    Raises:
        UserError: not two runs, or one that cannot be read.
    """
    from groundthink.diagnose.compare import compare, differences
    from groundthink.diagnose.subject import subject_of

    if not config.a or len(config.b) != 1:
        raise UserError("give two runs or checkpoints: groundthink compare runs/A runs/B")
    a, b = (
        subject_of(path, config.device, data=config.data, samples=config.samples)
        for path in (config.a, *config.b)
    )
    if config.assert_equal:
        found = list(differences(a, b))
        print("\n".join(found) or "equal: every training record and every weight")
        return int(bool(found))
    rows = [*budgets(a, b), *compare(a, b)]
    show(rows, config.a, config.b[0])
    print(f"-> {save(a, 'compare', [('compared', {'a': config.a, 'b': config.b[0]}), *rows])}")
    return 0


def budgets(a: Subject, b: Subject) -> list[Row]:
    """What both models cost, counted from the built modules, and how long they were trained."""
    from groundthink.models.count import count

    counts = [{**count(subject.model), "training_steps": subject.steps} for subject in (a, b)]
    keys = ("total", "non_embedding", "flops_per_token", "state_bytes", "training_steps")
    named = ((key.replace("_", " "), *(each[key] for each in counts)) for key in keys)
    return [("budget", {"name": name, "a": of_a, "b": of_b}) for name, of_a, of_b in named]


def show(rows: Sequence[Row], a: str, b: str) -> None:
    """Print the rows as one table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table("", "A", "B", "B - A [95 %]", "", box=SIMPLE_HEAD)
    print(f"A  {a}\nB  {b}")
    for kind, row in rows:
        if kind == "budget":
            table.add_row(row["name"], *(f"{row[side]:,.0f}" for side in "ab"))
        if kind == "comparison":
            low, high = row["low"], row["high"]
            said = "unresolved" if low <= 0 <= high else "B is lower" if high < 0 else "B is higher"
            interval = f"{row['value']:+.4f} [{low:+.4f}, {high:+.4f}]"
            name = f"{row['name']} {row['unit']}".rstrip()
            table.add_row(name, *(f"{row[side]:.4f}" for side in "ab"), interval, said)
    likeness = [row["cka"] for kind, row in rows if kind == "likeness"]
    if likeness:
        spread = f"{min(likeness):.3f} .. {max(likeness):.3f}"
        table.add_row("debiased CKA of states", "", "", spread, f"{len(likeness)} states")
    Console(highlight=False).print(table)
