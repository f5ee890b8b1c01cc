"""`groundthink check`: from a run folder to a subject, and from findings to lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.text import Text

from groundthink import config as configs
from groundthink import records
from groundthink.data.config import DataConfig
from groundthink.data.corpora import prepare
from groundthink.data.stream import Windows
from groundthink.device import pick_device
from groundthink.diagnose.config import Check
from groundthink.diagnose.gates import GATES
from groundthink.diagnose.registry import Subject
from groundthink.errors import UserError
from groundthink.models import pretrained
from groundthink.verdicts.thresholds import MIN_BATCHES
from groundthink.verdicts.verdict import Finding, Verdict

ROWS, LENGTH = 2, 256
"""Shape of the batches that the gates read."""
GRAVITY = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.WARN, Verdict.PASS)
COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "INCONCLUSIVE": "cyan"}


def subject_of(check: Check) -> Subject:
    """The last checkpoint of a run with its records and its validation text.

    Raises:
        UserError: no run there, a damaged file, or too little validation text.
    """
    folder = Path(check.run)
    checkpoint = pretrained.model_folder(folder)
    values = configs.read_yaml(folder / "config.yaml")
    if "train" not in values:
        raise UserError(f"{folder} is a model without its run; check a folder of runs/ instead")
    train = values["train"]
    model, tokenizer = pretrained.load(
        checkpoint, device=pick_device(check.device), backend=train["backend"]
    )
    data = configs.from_dict(DataConfig, values["data"], str(folder / "config.yaml"), "data.")
    corpus = prepare(data, tokenizer=tokenizer, lanes=train["batch_size"], log=lambda _: None)
    text = corpus.splits.get("val")
    if text is None or len(text.tokens) <= ROWS * LENGTH:
        found = 0 if text is None else len(text.tokens)
        raise UserError(
            f"{data.corpus} has {found} validation tokens and the gates read {ROWS * LENGTH + 1}; "
            "train on more text or with a larger data.val_fraction"
        )
    stream = Windows(text, ROWS, LENGTH)
    return Subject(
        model=model,
        batches=[stream.next() for _ in range(min(MIN_BATCHES, stream.steps_per_epoch))],
        steps=pretrained.read_meta(checkpoint)["step"],
        seed=train["seed"],
        train_tokens=train["batch_size"] * train["seq_len"],
        records=records.read(folder / "metrics.jsonl"),
    )


def lines(findings: Sequence[Finding]) -> Iterator[Text]:
    """One line for each quantity of each gate, of the gravest finding, for 80 columns; what is not
    a PASS says why below it."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.id, finding.name.partition(", ")[0]), []).append(finding)
    last = None
    for (id, quantity), group in groups.items():
        if id != last:
            yield Text(f"{id}  {GATES[id].title}", style="bold")
            last = id
        worst = min(group, key=lambda finding: GRAVITY.index(finding.verdict))
        verdict = Text(f"  {worst.verdict:<13}", style=COLOURS[worst.verdict])
        wanted = f"{worst.threshold.partition(' (')[0]} {worst.unit}"
        yield verdict + f"{quantity:<26} {measured(worst, group):<22} {wanted}".rstrip()
        if worst.verdict is not Verdict.PASS:
            yield Text(" " * 15 + remark(worst, group), style="dim")


def measured(worst: Finding, group: Sequence[Finding]) -> str:
    """The gravest value with its interval; from the lowest to the highest if all verdicts agree."""
    if worst.n == 0:
        return ""
    if len(group) > 1 and all(finding.verdict is worst.verdict for finding in group):
        values = [finding.value for finding in group]
        return f"{min(values):.3g} .. {max(values):.3g}"
    exact = worst.low == worst.high
    interval = "" if exact else f" [{worst.low:.3g}, {worst.high:.3g}]"
    return f"{worst.value:.3g}{interval}"


def remark(worst: Finding, group: Sequence[Finding]) -> str:
    """Where the gravest finding was, how many modules got each verdict, and its note."""
    counts = {verdict: sum(f.verdict is verdict for f in group) for verdict in GRAVITY}
    said = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    if len(group) == 1:
        return worst.note
    if len({f.verdict for f in group}) == 1:
        return said
    return "; ".join(filter(None, (worst.name.partition(", ")[2], said, worst.note)))
