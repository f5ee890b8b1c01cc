"""`groundthink bench ops`: forward and backward of our operators, beside other ones.

Every contestant gets the same operands and must agree with fp64 before it is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from groundthink.bench import gpu
from groundthink.bench.cases import Case, cases
from groundthink.bench.config import BenchOps
from groundthink.bench.measure import Lap, race, ratio, spread, stopwatch, within
from groundthink.bench.memory import MIB, peak
from groundthink.bench.output import (
    Results,
    Say,
    Screen,
    first_line,
    number,
    provenance,
    with_spread,
)
from groundthink.bench.peers import PEERS, SOURCES, Op, forget_tuning, missing
from groundthink.device import pick_device
from groundthink.errors import UserError, unknown
from groundthink.ops import ssd, wkv6
from groundthink.ops.dispatch import able
from groundthink.ops.ssd import BACKENDS as SSD_BACKENDS
from groundthink.ops.testing import relative_rms
from groundthink.ops.wkv6 import BACKENDS as WKV6_BACKENDS
from groundthink.verdicts.statistics import exact
from groundthink.verdicts.thresholds import THRESHOLDS
from groundthink.verdicts.verdict import Verdict, decide

OURS = {"wkv6": (wkv6, WKV6_BACKENDS), "ssd": (ssd, SSD_BACKENDS)}
COMPILED = "chunked+compile"
KINDS = ("forward", "both")
ASKING = ("reference", "chunked")
"""Forms that may ask the host in between, which a CUDA graph cannot record."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_STATES = 1 << 28
"""Numbers in the states that the reference loop may keep for its gradient in fp64; above, the
oracle is the chunked form in fp64, which tests hold to the loop."""


@dataclass(frozen=True)
class Context:
    """What all cases of a run share."""

    config: BenchOps
    device: torch.device
    dtype: torch.dtype
    copy: float
    """Bytes a second of a large copy; 0 where it was not measured."""


def run(config: BenchOps) -> int:
    """Measure, show a table a case and append the records; 1 if a form of ours is wrong."""
    device = pick_device(config.device)
    chosen = cases(config.shapes, device)
    against, lines = rivals(config.against, device)
    if config.threads:
        torch.set_num_threads(config.threads)
    precision = config.precision or ("bf16" if device.type == "cuda" else "fp32")
    results = Results(config.out, provenance(config, device) | {"precision": precision})
    screen = Screen()
    screen.title(f"{precision} on", device)
    screen.lines(lines)
    right = True
    with gpu.empty_caches() if config.cold else nullcontext():
        copy = gpu.bandwidth(device) if device.type == "cuda" else 0.0
        if copy:
            results.add("copy", "TB/s", {"value": copy / 1e12, "n": 12})
            screen.lines([f"a large copy moves {copy / 1e12:.2f} TB/s: the memory limit"])
        context = Context(config, device, DTYPES[precision], copy)
        for case in chosen:
            with screen.busy(case.name) as say:
                rows = measure(case, against, context, results, say)
            screen.table(case.name, columns(device), [cells(row, device) for row in rows])
            right &= all(row["verdict"] != Verdict.FAIL for row in rows if row["ours"])
    if device.type == "cuda":
        report_registers(results, screen)
    screen.records(config.out)
    return 0 if right else 1


def rivals(names: Sequence[str], device: torch.device) -> tuple[list[str], list[str]]:
    """Contestants beside ours, and a line for each project of peers that is not here.

    Raises:
        UserError: nothing has the name, or nothing that was asked for can run here.
    """
    asked = names or (
        ("chunked", COMPILED, "fla", "mamba") if device.type == "cuda" else ("reference",)
    )
    found, lines = [], []
    for name in asked:
        if name in SOURCES:
            obstacle = missing(name) or (device.type != "cuda" and f"{name}: runs on a GPU only")
            if obstacle:
                lines.append(obstacle)
            else:
                found += [peer for peer, entry in PEERS.items() if entry.source == name]
        elif name in PEERS or name == COMPILED or any(name in table for _, table in OURS.values()):
            found.append(name)
        else:
            raise unknown("contestant", name, [*WKV6_BACKENDS, COMPILED, *SOURCES, *PEERS])
    if lines and not found:
        raise UserError("; ".join(lines))
    return found, lines


def contestants(case: Case, against: Sequence[str], device: torch.device) -> dict[str, Op]:
    """Operators by name, ours first: the form that `auto` picks on the device."""
    op, table = OURS[case.op]
    here = able(table, device)
    best = "triton" if device.type == "cuda" and "triton" in here else "chunked"
    found: dict[str, Op] = {best: partial(op, backend=best)}
    for name in against:
        if name in here:
            found[name] = partial(op, backend=name)
        elif name == COMPILED:
            found[name] = torch.compile(partial(op, backend="chunked"))  # pyright: ignore
        elif name in PEERS and PEERS[name].op == case.op:
            found[name] = PEERS[name].load()
    return found


def measure(
    case: Case, against: Sequence[str], context: Context, results: Results, say: Say
) -> list[dict[str, Any]]:
    """One record a contestant; those that do not agree with fp64 have no time in it."""
    config, device = context.config, context.device
    operands = case.operands(config.seed, context.dtype, device)
    forget_tuning()
    exactly = "reference" if case.states() <= MOST_STATES else "chunked"
    oracle_op = partial(OURS[case.op][0], backend=exactly)
    g = torch.Generator().manual_seed(config.seed)
    dy = torch.randn(operands[0].shape, generator=g).to(device, context.dtype)
    oracle = both(oracle_op, [x.double() for x in operands], dy.double())
    laps: dict[str, Lap] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, op in contestants(case, against, device).items():
        say(f"{case.name}, {name}")
        rows[name] = row = {"case": case.name, "who": name, "ours": name not in PEERS}
        graph = device.type == "cuda" and not name.startswith(ASKING)
        try:
            with within(config.patience):
                row |= examine(op, operands, dy, oracle, context)
                right = row["verdict"] != Verdict.FAIL
                times = timed(op, operands, dy, row, device, graph) if right else []
        except Exception as error:
            if row["ours"] and not isinstance(error, UserError):
                raise
            row |= {"verdict": Verdict.FAIL, "note": f"cannot run: {first_line(error)}"}
            continue
        laps |= {f"{name} {kind}": lap for kind, lap in times}
    del oracle
    say(f"{case.name}, race")
    seconds = race(laps, config.repeats, device, warmup=config.warmup, seconds=config.seconds)
    first = next(iter(rows))
    for name, row in rows.items():
        finish(row, first, name, seconds, case, context)
        results.add(f"{case.name} {name}", "ms", row, row.get("note", ""))
    return list(rows.values())


def examine(
    op: Op, operands: Sequence[Tensor], dy: Tensor, oracle: Sequence[Tensor], context: Context
) -> dict[str, Any]:
    """Seconds of the first call, errors against fp64 with their verdict, launches, memory."""
    device = context.device
    start = time.perf_counter()
    found = both(op, operands, dy)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    first = time.perf_counter() - start
    errors = [relative_rms(x, truth) for x, truth in zip(found, oracle, strict=True)]
    del found
    kind = "fp32" if context.dtype == torch.float32 else "half"
    error = {"forward": max(errors[:2]), "gradient": max(errors[2:])}
    verdicts = [decide(exact(error[x]), THRESHOLDS["parity", f"{kind} {x}"]) for x in error]
    worst = max(verdicts, key=list(Verdict).index)
    row = {"error": error, "verdict": worst, "first_s": first}
    if worst == Verdict.FAIL:
        return row | {"note": "wrong: not timed"}
    if device.type == "cuda":
        actions = passes(op, operands, dy)
        row["launches"] = {kind: gpu.launches(action) for kind, action in actions.items()}
        row["peak_mib"] = peak(actions["both"], device) / MIB
    return row


def passes(op: Op, operands: Sequence[Tensor], dy: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed: the forward pass without gradients, and forward and backward."""

    def forward() -> None:
        with torch.no_grad():
            op(*operands)

    return {"forward": forward, "both": lambda: both(op, operands, dy)}


def both(op: Op, operands: Sequence[Tensor], dy: Tensor) -> list[Tensor]:
    """y, the state after, and the gradients of all operands for the gradient of y."""
    leaves = [x.detach().requires_grad_() for x in operands]
    y, state = op(*leaves)
    return [y, state, *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def timed(
    op: Op, operands: Sequence[Tensor], dy: Tensor, row: dict[str, Any], device: torch.device,
    graph: bool,
) -> list[tuple[str, Lap]]:  # fmt: skip
    """Laps of both passes by the clock, and as replayed graphs by the clock of the device."""
    actions = passes(op, operands, dy)
    laps = [(f"{kind} eager", partial(stopwatch, act, device)) for kind, act in actions.items()]
    if graph:
        try:
            graphs = {kind: gpu.graphed(action) for kind, action in actions.items()}
        except RuntimeError as error:
            row["note"] = f"no CUDA graph: {first_line(error)}"
            return laps
        laps += [
            (f"{kind} graph", partial(gpu.event_seconds, replay, device))
            for kind, replay in graphs.items()
        ]
    return laps


def finish(
    row: dict[str, Any], first: str, name: str, seconds: dict[str, list[float]],
    case: Case, context: Context,
) -> None:  # fmt: skip
    """Times in milliseconds, how many times faster our first form is, shares of the limit."""
    mode = "graph" if f"{name} both graph" in seconds else "eager"
    row |= {"value": None, "n": 0}
    if f"{name} both {mode}" not in seconds:
        return
    row |= {
        each: spread([1e3 * s for s in laps])
        for key, laps in seconds.items()
        for who, _, each in [key.partition(" ")]
        if who == name
    }
    row |= row[f"both {mode}"] | {"mode": mode}
    ours = seconds.get(f"{first} both {mode}")
    if ours and name != first:
        row["ours_faster"] = ratio(ours, seconds[f"{name} both {mode}"])
    if context.copy and mode == "graph":
        size = torch.finfo(context.dtype).bits // 8
        least = dict(zip(KINDS, case.traffic(size), strict=True))
        row["of_limit"] = {
            kind: least[kind] / context.copy / (row[f"{kind} graph"]["value"] / 1e3)
            for kind in least
        }


def columns(device: torch.device) -> list[str]:
    """Headings of the table of a case."""
    if device.type != "cuda":
        return ["", "forward ms", "both ms", "ours faster", "error, gradient", "first s", ""]
    return [
        "", "forward ms", "both ms", "eager", "ours faster", "of limit", "launches", "MiB",
        "error, gradient", "first s", "",
    ]  # fmt: skip


def cells(row: dict[str, Any], device: torch.device) -> list[str]:
    """The row of a contestant under `columns`."""
    gain, notes = row.get("ours_faster"), [row.get("note", "")]
    if row["verdict"] == Verdict.WARN:
        notes.insert(0, "inexact")
    faster = f"{number(gain['value'], 3)} x" if gain else ""
    end = [
        pair(row.get("error"), "{:.0e}", ("forward", "gradient")),
        number(row["first_s"], 2) if "first_s" in row else "",
        ", ".join(filter(None, notes)),
    ]
    eager = [with_spread(row, f"{kind} eager") for kind in KINDS]
    if device.type != "cuda":
        return [row["who"], *eager, faster, *end]
    medians = {kind: row[f"{kind} eager"]["value"] for kind in KINDS if f"{kind} eager" in row}
    return [
        row["who"],
        *(with_spread(row, f"{kind} graph") for kind in KINDS),
        pair(medians, "{:.3g}"),
        faster,
        pair(row.get("of_limit"), "{:.0%}"),
        pair(row.get("launches"), "{}"),
        f"{row['peak_mib']:,.0f}" if "peak_mib" in row else "",
        *end,
    ]


def pair(found: dict[str, Any] | None, form: str, keys: tuple[str, str] = KINDS) -> str:
    """Two values of a nested record side by side; empty without it."""
    return " ".join(form.format(found[key]) for key in keys) if found else ""


def report_registers(results: Results, screen: Screen) -> None:
    """What the kernels that ran take of a multiprocessor."""
    found = gpu.registers()
    for i, row in enumerate(found):
        name = f"registers {row['kernel']}, form {i}"
        results.add(name, "", {"value": row["registers"], "n": 1, **row})
    headings = ["kernel", "registers", "spills", "warps", "shared KiB"]
    rows = [
        [str(row[key]) for key in ("kernel", "registers", "spills", "warps")]
        + [f"{row['shared'] / 1024:.1f}"]
        for row in found
    ]
    screen.table("kernels: registers of a thread", headings, rows)
