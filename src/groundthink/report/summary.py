"""The outcome of a run in one sentence and a handful of numbers."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from groundthink.records import Record
from groundthink.report.run import Run
from groundthink.report.series import column, known
from groundthink.report.text import compact, count, duration, percent, sig

Status = Literal["finished", "interrupted", "diverged", "unfinished"]
_ENDS: dict[str, Status] = {
    "finished": "finished",
    "interrupted": "interrupted",
    "nonfinite": "diverged",
}
VERDICTS = ("FAIL", "WARN", "INCONCLUSIVE", "PASS")
"""Verdicts, the most urgent first."""


@dataclass(frozen=True)
class Tile:
    """One key figure."""

    label: str
    value: str
    unit: str = ""
    detail: str = ""


def name(run: Run) -> str:
    """What the run calls its model."""
    return run.provenance.get("model") or run.option("model", "name") or run.path.resolve().name


def mixers(run: Run) -> str:
    """The kind of model in words: "RWKV-6 + Mamba-2 hybrid"."""
    if run.option("model", "layout") == "gpt2":
        return "GPT-2 model"
    kinds = {"rwkv6": "RWKV-6", "mamba2": "Mamba-2", "attention": "attention"}
    found = [kind for key, kind in kinds.items() if run.counts.get(key)]
    return " + ".join(found) + (" hybrid" if len(found) > 1 else " model") if found else "model"


def step(run: Run) -> int:
    """The last training step on record; 0 before the first."""
    return run.last("train").get("step") or 0


def planned(run: Run) -> int | None:
    """The steps that the run set out to take."""
    return run.provenance.get("steps") or run.option("train", "steps")


def status(run: Run) -> Status:
    """How the run ended, as far as its records say."""
    last = run.last("event").get("what")
    if last in _ENDS:
        return _ENDS[last]
    return "finished" if step(run) and step(run) == planned(run) and not last else "unfinished"


def outcome(run: Run) -> str:
    """One true sentence: what was trained, for how long, and what it reached."""
    total = run.counts.get("total")
    subject = f"{compact(total)}-parameter {mixers(run)}" if total else mixers(run)
    corpus = run.option("data", "corpus")
    on = f" on {corpus}" if corpus else ""
    of = (
        f"{count(step(run))} of {count(planned(run))} steps"
        if planned(run)
        else f"step {step(run)}"
    )
    progress = {
        "finished": f"trained {count(step(run))} steps{on}",
        "interrupted": f"interrupted after {of}{on}",
        "diverged": f"stopped after {of}{on} because the loss was not finite",
        "unfinished": f"has taken {of}{on} and records no end yet",
    }[status(run)]
    sentence = f"{subject} {progress}: {_result(run)}."
    return sentence[0].upper() + sentence[1:]


def _result(run: Run) -> str:
    val = latest(run)
    if val is None:
        losses = known(column(run.of("train"), "loss")[1])
        if not losses:
            return "no loss is recorded"
        recent = losses[-50:]
        steps = "step" if len(recent) == 1 else f"{len(recent)} steps"
        mean = sig(statistics.fmean(recent))
        return f"training loss {mean} nats per token over the last {steps}, not validated"
    bits = f" ({sig(val['bpb'])} bits per byte)" if val.get("bpb") is not None else ""
    stale = f" at step {count(val['step'])}" if val["step"] < step(run) else ""
    return f"validation {sig(val['loss'])} nats per token{bits}{stale}{_comparison(run, val)}"


def latest(run: Run) -> Record | None:
    """The newest validation with a loss."""
    return next((row for row in reversed(run.val()) if row.get("loss") is not None), None)


def _comparison(run: Run, val: Record) -> str:
    """Against the bigram baseline, as far as the standard error allows a claim."""
    bigram = run.baseline().get("bigram")
    if bigram is None:
        return ""
    gap, reach = val["loss"] - bigram, 1.96 * (val.get("se") or 0)
    if abs(gap) <= reach:
        return f", not told apart from the bigram baseline ({sig(bigram)})"
    return f", {'below' if gap < 0 else 'above'} the bigram baseline ({sig(bigram)})"


def tiles(run: Run) -> list[Tile]:
    """Key figures; those that were not recorded are left out."""
    return [*_quality(run), *_cost(run), *_health(run)]


def _quality(run: Run) -> list[Tile]:
    val = latest(run)
    if val is None:
        return []
    error = f"± {sig(val['se'], 1)} standard error" if val.get("se") else ""
    out = [Tile("Validation loss", sig(val["loss"]), "nats/token", error)]
    best = min(
        (row for row in run.val() if row.get("loss") is not None), key=lambda row: row["loss"]
    )
    if best is not val:
        out.append(
            Tile("Best validation", sig(best["loss"]), "nats/token", f"step {count(best['step'])}")
        )
    if val.get("bpb") is not None:
        out.append(
            Tile("Bits per byte", sig(val["bpb"]), "", f"perplexity {sig(val.get('perplexity'))}")
        )
    bigram = run.baseline().get("bigram")
    if bigram is not None:
        gap = val["loss"] - bigram
        sign = "+" if gap > 0 else ""
        out.append(
            Tile("Against bigram", sign + sig(gap, 2), "nats/token", f"bigram {sig(bigram)}")
        )
    return out


def _cost(run: Run) -> list[Tile]:
    counts, last = run.counts, run.last("train")
    out = []
    if counts.get("total"):
        inner = f"{count(counts.get('non_embedding'))} without embeddings"
        out.append(Tile("Parameters", compact(counts["total"]), "", inner))
    if last.get("tokens"):
        out.append(Tile("Tokens seen", compact(last["tokens"]), "", f"{count(last['step'])} steps"))
    if last.get("seconds"):
        device = str(run.provenance.get("device") or "")
        out.append(Tile("Training time", duration(last["seconds"]), "", device))
    speeds = known(column(run.of("train"), "tok_per_s")[1])
    if speeds:
        out.append(
            Tile("Throughput", compact(statistics.median(speeds)), "tokens/s", "median step")
        )
    return out


def _health(run: Run) -> list[Tile]:
    tally = Counter(gate["verdict"] for gate in run.gates)
    if not tally:
        return []
    rest = [f"{tally[v]} {v.lower()}" for v in VERDICTS[:-1] if tally[v]]
    passed = f"{tally['PASS']}/{tally.total()}"
    return [Tile("Checks passed", passed, "", ", ".join(rest) or percent(1))]
