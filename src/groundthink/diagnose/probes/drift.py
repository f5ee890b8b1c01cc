"""Drift: change in the course of training, of the states over turns, between checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from groundthink.diagnose.components import branches, parallel
from groundthink.diagnose.measures import sketch
from groundthink.diagnose.probes.change import CALM, WIDE, debiased_cka, detector, energy_test
from groundthink.diagnose.probes.information import SHARD
from groundthink.diagnose.probes.registry import Row, probe
from groundthink.diagnose.states import matrices
from groundthink.diagnose.subject import Subject
from groundthink.errors import UserError
from groundthink.layers.state import State
from groundthink.models import pretrained
from groundthink.models.base import LanguageModel
from groundthink.verdicts.statistics import Interval, wilson
from groundthink.verdicts.verdict import judge, skipped

SERIES = {
    "training loss": ("train", "loss", False),
    "gradient norm": ("train", "grad_norm", False),
    "mean gate": ("balance", "gate", True),
    "gradient R/M": ("balance", "grad_ratio", True),
}
"""Name -> kind and field of the record, and whether a fall is a change as much as a rise."""
POINTS = 1000
"""Most points of a series; of a longer one each point is a mean."""
TURNS, ROWS, PERMUTATIONS = 4, 8, 1999


@probe("drift", "change over training, turns and checkpoints")
def drift(subject: Subject) -> list[Row]:
    """Page-Hinkley on the records of training, two-sample tests on the states of later turns,
    debiased CKA of the states of this checkpoint and the others of the run."""
    return [*_training(subject), *_turns(subject), *_checkpoints(subject)]


def _training(subject: Subject) -> Iterator[Row]:
    for name, (kind, field, both) in SERIES.items():
        steps, values = series(subject, kind, field)
        if len(values) < CALM + WIDE:
            if kind == "train" or parallel(subject.model):
                reason = f"{len(values)} records, {CALM + WIDE} are needed"
                yield (
                    "finding",
                    skipped("drift", f"p of no change in training, {name}", reason).record(),
                )
            continue
        found = detector(values, both=both)
        p = wilson(found.reached, found.stationary)
        alarm = None if found.alarm is None else steps[found.alarm]
        stride = (steps[-1] - steps[0]) / (len(steps) - 1)
        rate = wilson(found.false_alarms, found.stationary)
        said = "no alarm" if alarm is None else f"alarm at step {alarm}"
        note = f"{said}; stationary series raise one in {rate.value:.0%} of cases"
        delay = None if found.delay is None else found.delay * stride
        if delay is not None:
            note += f", a shift by {found.seen:.2g} is seen after {delay:.0f} steps"
        yield (
            "finding",
            judge("drift", "p of no change in training", p, note, name, "made-up series").record(),
        )
        yield (
            "series",
            {
                "name": name,
                "steps": steps,
                "values": values.tolist(),
                "statistic": found.statistic.tolist(),
                "threshold": found.threshold,
                "alarm": alarm,
                "false_alarm_rate": rate.value,
                "seen": found.seen,
                "delay": delay,
            },
        )


def series(subject: Subject, kind: str, field: str) -> tuple[list[int], np.ndarray]:
    """Steps and finite values of a record field (the mean over layers of a list) after the first
    tenth of training, binned."""
    points = {}
    for record in subject.records:
        value = record.get(field) if record["kind"] == kind else None
        layers = value if isinstance(value, list) else [value]
        if numbers := [x for x in layers if x is not None]:
            points[record["step"]] = float(np.mean(numbers))
    known = np.array([p for p in sorted(points.items()) if np.isfinite(p[1])]).reshape(-1, 2)
    bins = np.array_split(known, max(1, min(POINTS, len(known))))
    steps, values = np.array([each.mean(0) for each in bins if len(each)]).reshape(-1, 2).T
    settled = len(steps) // 10  # the first tenth is warm-up
    return [int(step) for step in steps[settled:]], values[settled:]


def _turns(subject: Subject) -> Iterator[Row]:
    """States at the end of the last turn against those at the end of the second."""
    name, length = "p of no drift over turns", subject.train_length
    if not subject.model.recurrent:
        yield "finding", skipped("drift", name, "the model has no recurrent state").record()
        return
    try:
        text, _ = subject.stretches(min(SHARD, subject.samples), TURNS * length)
    except UserError as error:
        yield "finding", skipped("drift", name, str(error)).record()
        return
    turns = list(turn_states(subject.model, text, length))
    counts = {}
    for where in turns[0]:
        distance, reached = energy_test(turns[1][where], turns[-1][where], PERMUTATIONS)
        counts[where] = (reached, wilson(reached + 1, PERMUTATIONS + 1))
        moved = [energy_test(turns[1][where], turn[where], 0)[0] for turn in turns]
        yield "turn", {"where": where, "distance": moved, "p": counts[where][1].value}
    ordered = sorted(counts, key=lambda where: counts[where][0])
    floor = Interval(0, 0, 0, 0)
    for rank, where in enumerate(ordered):  # Holm 1979, of the estimate and of both its ends
        many, p = len(ordered) - rank, counts[where][1]
        floor = Interval(
            max(floor.value, min(1.0, many * p.value)),
            max(floor.low, min(1.0, many * p.low)),
            max(floor.high, min(1.0, many * p.high)),
            p.n,
        )
        note = f"turns 2 and {TURNS} of {length} tokens, {len(text)} texts"
        yield "finding", judge("drift", name, floor, note, where, "permutations").record()


@torch.inference_mode()
def turn_states(model: LanguageModel, text: Tensor, length: int) -> Iterator[dict[str, Tensor]]:
    """Sketches of the matrix states after each turn of `length` tokens, by module, [texts, .]."""
    states: list[State | None] = [None] * len(text.split(ROWS))
    for turn in text.split(length, dim=1):
        found: dict[str, list[Tensor]] = {}
        for i, rows in enumerate(turn.split(ROWS)):
            _, after = model.features(rows, states[i])
            states[i] = after
            for where, state in matrices(after).items():
                found.setdefault(where, []).append(sketch(state).cpu())
        yield {where: torch.cat(parts) for where, parts in found.items()}


def _checkpoints(subject: Subject) -> Iterator[Row]:
    """CKA of the states of the other checkpoints of the run with those of the subject."""
    if subject.folder is None or not branches(subject.model):
        return
    found = {f: pretrained.read_meta(f)["step"] for f in subject.folder.glob("checkpoints/step-*")}
    others = {folder: step for folder, step in sorted(found.items()) if step != subject.steps}
    text, _ = subject.stretches(min(SHARD, subject.samples), subject.train_length)
    mine = next(turn_states(subject.model, text, subject.train_length))
    for folder, step in others.items():
        model, _ = pretrained.load(folder, device=subject.device)
        theirs = next(turn_states(model, text, subject.train_length))
        for where, states in mine.items():
            yield (
                "checkpoint",
                {"step": step, "where": where, "cka": debiased_cka(states, theirs[where])},
            )
