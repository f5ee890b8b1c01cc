"""`groundthink bench model`: B1 throughput, B2 memory, B3 stability."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from groundthink.bench import contestants, gpu, grid, matrix, memory, stability, work
from groundthink.bench.config import BenchModel
from groundthink.bench.output import Results, Say, Screen, provenance
from groundthink.bench.work import MakeStep
from groundthink.data.corpora import prepare
from groundthink.device import pick_device
from groundthink.errors import UserError, unknown
from groundthink.models.build import as_config
from groundthink.models.count import count_config
from groundthink.verdicts.verdict import Verdict

STUDY = {"batch_size": 8, "seq_len": 64}
PARTS = ("B1", "B2", "B3")


def run(config: BenchModel, make_step: MakeStep) -> int:
    """Measure, show one table and append the records; 1 if parity or B3 does not pass."""
    check(config)
    device = pick_device(config.device)
    if device.type == "cpu" and "fp16" in (config.precision, *config.precisions):
        raise UserError("precision fp16 needs a GPU, this is cpu; use bf16 or fp32")
    if config.threads:
        torch.set_num_threads(config.threads)
    model = replace(as_config(config.model), vocab_size=config.vocab_size)
    about = {"model": model.name, "counts": count_config(model)}
    results, screen = Results(config.out, provenance(config, device) | about), Screen()
    screen.title(f"{config.model}, {config.vocab_size:,} token ids, {config.precision}, on", device)
    with screen.busy("") as say:
        passed = measure(config, device, make_step, results, say)
    screen.results("", results.rows)
    screen.records(config.out)
    return 0 if passed else 1


def check(config: BenchModel) -> None:
    """Raise UserError for values that no bench can have and contestants that cannot run."""
    for name in ("vocab_size", "batch_size", "seq_len", "repeats", "steps"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; it must be at least 1")
    if config.threads < 0:
        raise UserError(f"threads is {config.threads}; 0 leaves torch's choice")
    for part in config.only:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
    grid.check(config)
    for name in names(config):
        contestants.require(name)


def measure(
    config: BenchModel, device: torch.device, make_step: MakeStep, results: Results, say: Say
) -> bool:
    """Parity, then the matrix, a grid or B1 to B3; whether parity and B3 passed.

    A model that does not agree with its reference loops has no speed.
    """
    for name in (config.model, contestants.PEERS):
        if name in names(config) and not agrees(name, config, device, results, say):
            if name == config.model:
                return False
            config = replace(config, against=_without(config.against, name))
    if grid.asked(config):
        grid.run(config, names(config), device, make_step, results, say)
        return True
    if config.matrix:
        corpus = prepare(config.data, log=say)
        return matrix.run(config, corpus, device, make_step, results, say)
    parts = config.only or PARTS
    study = [] if device.type == "cuda" else [replace(config, **STUDY)]
    shapes = list(dict.fromkeys((*study, config)))
    if "B1" in parts:
        for shaped in shapes:
            grid.race_at(shaped, names(config), device, make_step, results, say)
        if device.type == "cuda":
            launches(config, device, make_step, results, say)
    if "B2" in parts:
        for shaped in shapes:
            footprint(shaped, make_step, results, say)
    return "B3" not in parts or stable(config, device, make_step, results, say)


def agrees(name: str, config: BenchModel, device: torch.device, results: Results, say: Say) -> bool:
    """Whether a form of the model computes what its reference loops do."""
    what = f"parity with the reference loops, {name}"
    say(what)
    verdict = Verdict.FAIL
    with results.attempt(what, {"who": name, "verdict": verdict}, config.patience):
        error, verdict = contestants.parity(name, config, device)
        results.add(what, "", {"who": name, "value": error, "n": 1, "verdict": verdict}, verdict)
    return verdict != Verdict.FAIL


def launches(
    config: BenchModel, device: torch.device, make_step: MakeStep, results: Results, say: Say
) -> None:
    """Kernels that one block more adds to a training step, its channel mixing left out."""
    batch = work.random_batch(config.vocab_size, config.batch_size, config.seq_len)
    for name in (config.model, contestants.PEERS):
        if name not in names(config) or as_config(config.model).layout != "parallel":
            continue
        what = f"launches of a block, {name}"
        say(what)
        fields = {"what": "launches", "who": name}
        with results.attempt(what, fields, config.patience):
            few, more = (
                make_step(contestants.blocks(name, n, config, device), device, config.precision)
                for n in (2, 3)
            )
            count = gpu.launches(partial(more, batch)) - gpu.launches(partial(few, batch))
            note = "in a training step, without its channel mixing"
            results.add(what, "", fields | {"value": count, "n": 1}, note)


def footprint(config: BenchModel, make_step: MakeStep, results: Results, say: Say) -> None:
    """B2: peak memory in training and in inference, but for the reference loops."""
    shape = f"{config.batch_size}x{config.seq_len}"
    for kind in ("training", "inference"):
        for name in _without(names(config), "reference"):
            what = f"B2 {kind} memory {shape}, {name}"
            say(what)
            fields = grid.where(f"{kind} memory", config) | {"who": name}
            with results.attempt(what, fields, config.patience):
                found, words = memory.record(name, kind == "training", config, make_step)
                results.add(what, "MiB", fields | found, words)


def stable(
    config: BenchModel, device: torch.device, make_step: MakeStep, results: Results, say: Say
) -> bool:
    """B3: whether a short run on real text stays finite and learns."""
    corpus = prepare(config.data, log=say)
    say("B3 stability")
    outcome = stability.train(config, corpus, device, make_step)
    results.add("B3 loss change", "nats", outcome.fields, outcome.note)
    return outcome.fields["verdict"] == Verdict.PASS


def names(config: BenchModel) -> list[str]:
    """The contestants, the model itself first."""
    return list(dict.fromkeys((config.model, *config.against)))


def _without(names: list[str] | tuple[str, ...], dropped: str) -> tuple[str, ...]:
    return tuple(name for name in names if name != dropped)
