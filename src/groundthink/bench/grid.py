"""B1: speed and memory of training and inference, at one point or over a grid of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from groundthink.bench import contestants, profile, work
from groundthink.bench.config import BenchModel
from groundthink.bench.measure import Lap, race, ratio, speed
from groundthink.bench.memory import MIB, peak
from groundthink.bench.output import Results, Say
from groundthink.bench.work import MakeStep, Step
from groundthink.data.stream import Batch
from groundthink.errors import UserError, unknown

PRECISIONS = ("fp32", "bf16", "fp16")


def asked(config: BenchModel) -> bool:
    """Whether the config names a grid."""
    return bool(config.sweep or config.batches or config.precisions)


def check(config: BenchModel) -> None:
    """Raise UserError for a grid with points that no model can run."""
    if config.sweep and config.batches:
        raise UserError("sweep sets the batch size itself; give sweep or batches, not both")
    tokens = config.batch_size * config.seq_len
    for length in config.sweep:
        if length < 1 or tokens % length:
            raise UserError(
                f"sweep: length {length} does not divide the {tokens} tokens of a step "
                "(batch_size x seq_len)"
            )
    for batch in config.batches:
        if batch < 1:
            raise UserError(f"batches: {batch}; a batch size is at least 1")
    for precision in config.precisions:
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)


def points(config: BenchModel) -> list[BenchModel]:
    """The config at every point of its grid."""
    tokens = config.batch_size * config.seq_len
    shapes = [{"batch_size": tokens // t, "seq_len": t} for t in config.sweep]
    shapes = shapes or [{"batch_size": b} for b in config.batches or (config.batch_size,)]
    precisions = config.precisions or (config.precision,)
    return [replace(config, precision=p, **shape) for p, shape in product(precisions, shapes)]


def run(
    config: BenchModel, names: Sequence[str], device: torch.device, make_step: MakeStep,
    results: Results, say: Say,
) -> None:  # fmt: skip
    """Race the contestants in training and in inference at every point."""
    rates: dict[str, dict[int, float]] = {name: {} for name in names}
    for point in points(config):
        for name, rate in race_at(point, names, device, make_step, results, say).items():
            rates[name][point.seq_len] = rate
    if config.sweep:
        conclude(rates, results)


def race_at(
    config: BenchModel, names: Sequence[str], device: torch.device, make_step: MakeStep,
    results: Results, say: Say,
) -> dict[str, float]:  # fmt: skip
    """B1 at one point: tokens a second in training and in inference, ratios of the first to the
    others, and on a GPU the memory that training takes.

    Returns:
        Tokens a second of training, of the contestants that could run.
    """
    shape = f"{config.batch_size}x{config.seq_len}"
    if config.precisions:
        shape += f" {config.precision}"
    say(f"B1 {shape}")
    batch = work.random_batch(config.vocab_size, config.batch_size, config.seq_len)
    entrants: dict[str, Entrant] = {}
    for name in names:
        say(f"B1 {shape}, {name}")
        fields = where("training", config) | {"who": name}
        with results.attempt(f"B1 training {shape}, {name}", fields, config.patience):
            entrants[name] = Entrant(name, config, batch, device, make_step)
    if config.profile:
        for name, entrant in entrants.items():
            say(f"B1 {shape}, profile of {name}")
            path = Path(config.profile) / f"{Path(name).name} {shape}"
            profile.write(lambda e=entrant: e.step(batch), path)
    rates = {}
    for kind in ("training", "inference"):
        say(f"B1 {kind} {shape}")
        laps = {name: getattr(entrant, kind) for name, entrant in entrants.items()}
        warmup = 0 if kind == "training" else 2  # an entrant has trained
        seconds = race(laps, config.repeats, device, warmup=warmup, seconds=config.seconds)
        found = add_speeds(kind, shape, config, seconds, entrants, results)
        rates = rates or found
    entrants.clear()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rates


class Entrant:
    """A contestant: its step, its laps, and the MiB of a GPU that two training steps took."""

    step: Step
    training: Lap
    inference: Lap
    peak_mib = 0.0

    def __init__(
        self, name: str, config: BenchModel, batch: Batch, device: torch.device, make: MakeStep
    ):
        def start() -> None:
            model = contestants.make(name, config, device)
            self.step = make(model, device, config.precision)
            self.training = work.training_lap(self.step, batch, device)
            self.inference = work.inference_lap(model, batch, device, config.precision)
            self.training()

        if device.type == "cuda":
            self.peak_mib = peak(lambda: (start(), self.training()), device) / MIB
        else:
            start()


def add_speeds(
    kind: str, shape: str, config: BenchModel, seconds: dict[str, list[float]],
    entrants: dict[str, Entrant], results: Results,
) -> dict[str, float]:  # fmt: skip
    """Records of a race; the tokens a second of each contestant."""
    tokens = config.batch_size * config.seq_len
    rates = {}
    for name, laps in seconds.items():
        rate = speed(laps, tokens)
        rates[name] = rate["value"]
        ms = 1e3 * tokens / rate["value"]
        fields, note = where(kind, config) | rate | {"who": name, "ms": ms}, f"{ms:.1f} ms"
        if kind == "training" and entrants[name].peak_mib:
            fields["peak_mib"] = entrants[name].peak_mib
            note += f", {fields['peak_mib']:,.0f} MiB"
        results.add(f"B1 {kind} {shape}, {name}", "tok/s", fields, note)
    first, *others = seconds or [""]
    for name in others:
        fields = (
            where(kind, config)
            | ratio(seconds[first], seconds[name])
            | {"who": first, "over": name}
        )
        results.add(f"B1 {kind} {shape}, {first} over {name}", "x", fields)
    return rates


def where(what: str, config: BenchModel) -> dict[str, Any]:
    """Fields that tell the record of one point from those of others."""
    shape = {"batch_size": config.batch_size, "seq_len": config.seq_len}
    return {"what": what, "precision": config.precision} | shape


def conclude(rates: dict[str, dict[int, float]], results: Results) -> None:
    """What a sweep says: how even each contestant is, and from which length the first leads."""
    for name, by_length in rates.items():
        if len(by_length) > 1:
            worst = min(by_length.values()) / max(by_length.values())
            fields = {"what": "evenness", "who": name, "value": worst, "n": len(by_length)}
            results.add(f"slowest length over fastest, {name}", "", fields)
    (first, ours), *others = rates.items()
    for name, theirs in others:
        ahead = [t for t in sorted(ours) if t not in theirs or ours[t] >= theirs[t]]
        fields = {"what": "passes", "who": first, "over": name, "n": len(ours)}
        length = ahead[0] if ahead else None
        note = "" if ahead else "at none of these lengths"
        results.add(f"{first} passes {name} at length", "", fields | {"value": length}, note)
