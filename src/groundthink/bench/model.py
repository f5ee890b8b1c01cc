"""`groundthink bench model`: B1 throughput, B2 memory, B3 stability."""

from __future__ import annotations

from dataclasses import replace

import torch
from rich.console import Console

from groundthink import config as configs
from groundthink import records
from groundthink.bench import contestants, matrix, memory, stability, work
from groundthink.bench.config import BenchModel
from groundthink.bench.measure import Results, Say, race, ratio, speed
from groundthink.data.corpora import prepare
from groundthink.device import pick_device
from groundthink.errors import UserError
from groundthink.models.build import as_config
from groundthink.models.count import count_config
from groundthink.verdicts.verdict import Verdict

STUDY = {"batch_size": 8, "seq_len": 64}


def run(config: BenchModel) -> int:
    """Measure, show one table and append the records; 1 if parity or B3 does not pass."""
    check(config)
    device = pick_device(config.device)
    if config.precision == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a GPU, this is cpu; use bf16 or fp32")
    if config.threads:
        torch.set_num_threads(config.threads)
    console = Console(highlight=False)
    results = Results(config.out, provenance(config, device))
    with console.status("") as status:
        passed = measure(config, device, results, status.update)
    console.print(results.table(f"{config.model} on {device}, {torch.get_num_threads()} threads"))
    if config.out:
        console.print(f"records: {config.out}")
    return 0 if passed else 1


def check(config: BenchModel) -> None:
    """Raise UserError for values that no bench can have and contestants that cannot run."""
    for name in ("vocab_size", "batch_size", "seq_len", "repeats", "steps"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; it must be at least 1")
    if config.threads < 0:
        raise UserError(f"threads is {config.threads}; 0 leaves torch's choice")
    for name in names(config):
        contestants.require(name)


def provenance(config: BenchModel, device: torch.device) -> records.Record:
    """Where the records come from."""
    model = replace(as_config(config.model), vocab_size=config.vocab_size)
    return records.environment() | {
        "device": str(device),
        "config_hash": configs.digest(config),
        "config": configs.to_dict(config),
        "model": model.name,
        "counts": count_config(model),
        "seed": config.seed,
    }


def measure(config: BenchModel, device: torch.device, results: Results, say: Say) -> bool:
    """Parity, then the matrix or B1 to B3; whether parity and B3 passed.

    A model that does not agree with its reference loops has no speed.
    """
    say("parity with the reference loops")
    error, verdict = contestants.parity(config, device)
    results.add(
        "parity with the reference loops", "", {"value": error, "n": 1, "verdict": verdict}, verdict
    )
    if verdict is not Verdict.PASS:
        return False
    corpus = prepare(config.data, log=say)
    if config.matrix:
        return matrix.run(config, corpus, device, results, say)
    shapes = dict.fromkeys((replace(config, **STUDY), config))
    for shaped in shapes:
        throughput(shaped, device, results, say)
    for shaped in shapes:
        footprint(shaped, device, results, say)
    say("B3 stability")
    outcome = stability.train(config, corpus, device)
    results.add("B3 loss change", "nats", outcome.fields, outcome.note)
    return outcome.fields["verdict"] == Verdict.PASS


def throughput(config: BenchModel, device: torch.device, results: Results, say: Say) -> None:
    """B1: tokens a second in training, inference and decoding, and the ratios to the others."""
    batch = work.random_batch(config.vocab_size, config.batch_size, config.seq_len, device)
    shape = f"{config.batch_size}x{config.seq_len}"
    kinds = (
        (f"training {shape}", work.training_lap, batch.tokens.numel(), "step"),
        (f"inference {shape}", work.inference_lap, batch.tokens.numel(), "pass"),
        (f"decoding 1x1 after {config.seq_len}", work.decode_lap, work.DECODED, "token"),
    )
    for kind, make_lap, tokens, unit in kinds:
        say(f"B1 {kind}")
        laps = {}
        for name in names(config):
            model = contestants.make(name, config, device)
            laps[name] = make_lap(model, batch, device, config.precision)
        seconds = race(laps, config.repeats, seconds=config.seconds)
        for name in laps:
            rate = speed(seconds[name], tokens)
            ms = 1e3 * (1 if unit == "token" else tokens) / rate["value"]
            results.add(f"B1 {kind}, {name}", "tok/s", rate | {"ms": ms}, f"{ms:.1f} ms a {unit}")
        for name in names(config)[1:]:
            gain = ratio(seconds[config.model], seconds[name])
            results.add(f"B1 {kind}, {config.model} over {name}", "x", gain)


def footprint(config: BenchModel, device: torch.device, results: Results, say: Say) -> None:
    """B2: peak memory in training and in inference, but for the reference loops."""
    for kind in ("training", "inference"):
        for name in (name for name in names(config) if name != "reference"):
            what = f"B2 {kind} memory {config.batch_size}x{config.seq_len}, {name}"
            say(what)
            results.add(what, "MiB", *memory.record(name, kind == "training", config))


def names(config: BenchModel) -> list[str]:
    """The contestants, the model itself first."""
    return list(dict.fromkeys((config.model, *config.against)))
