"""The study's matrix: one change at a time against one baseline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from groundthink.bench import contestants, memory, stability, work
from groundthink.bench.config import BenchModel
from groundthink.bench.measure import Lap, race, ratio, speed
from groundthink.bench.output import Results, Say, first_line
from groundthink.bench.work import MakeStep
from groundthink.data.corpora import Corpus

BASELINE = {"batch_size": 8, "seq_len": 64, "precision": "fp32", "compile": False}
CHANGES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "batch 16": {"batch_size": 16},
    "batch 32": {"batch_size": 32},
    "batch 64": {"batch_size": 64},
    "bf16": {"precision": "bf16"},
    "compile": {"compile": True},
}


def run(
    config: BenchModel, corpus: Corpus, device: torch.device, make_step: MakeStep,
    results: Results, say: Say,
) -> bool:  # fmt: skip
    """Speed and memory of every change that passes B3; whether the baseline is one of them."""
    laps: dict[str, Lap] = {}
    configs = {name: replace(config, **BASELINE | change) for name, change in CHANGES.items()}
    for name, changed in configs.items():
        say(f"{name}, B3")
        try:
            outcome = stability.train(changed, corpus, device, make_step)
        except RuntimeError as error:  # a compiler that is missing, memory that does not suffice
            results.add(
                f"{name}, B3", "", {"value": None, "n": 0}, f"cannot run: {first_line(error)}"
            )
            continue
        results.add(f"{name}, B3 loss change", "nats", outcome.fields, outcome.note)
        if outcome.fields["verdict"] == "PASS":
            batch = work.random_batch(config.vocab_size, changed.batch_size, changed.seq_len)
            model = contestants.make(config.model, changed, device)
            step = make_step(model, device, changed.precision)
            laps[name] = work.training_lap(step, batch, device)
    if not laps:
        return False
    say("training")
    seconds = race(laps, config.repeats, device, seconds=config.seconds)
    for name in laps:
        changed = configs[name]
        tokens = changed.batch_size * changed.seq_len
        results.add(f"{name}, training", "tok/s", speed(seconds[name], tokens))
        if "baseline" in laps and name != "baseline":
            gain = tokens / (BASELINE["batch_size"] * BASELINE["seq_len"])
            each = ratio([s / gain for s in seconds[name]], seconds["baseline"])
            results.add(f"{name}, training over baseline", "x", each)
        found = memory.record(config.model, True, changed, make_step)
        results.add(f"{name}, training memory", "MiB", *found)
    return "baseline" in laps
