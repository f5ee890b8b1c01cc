"""`groundthink bench decode`: one token at a time, from a state at some position."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.bench import contestants, gpu
from groundthink.bench.config import BenchDecode, BenchModel
from groundthink.bench.measure import Lap, race, ratio, spread, stopwatch, within
from groundthink.bench.output import (
    Results,
    Say,
    Screen,
    first_line,
    number,
    provenance,
    with_spread,
)
from groundthink.bench.peers import forget_tuning
from groundthink.device import pick_device
from groundthink.errors import UserError
from groundthink.layers.state import State
from groundthink.models.decode import Decoder
from groundthink.ops.testing import relative_rms
from groundthink.ops.wkv6 import BACKENDS
from groundthink.verdicts.statistics import exact
from groundthink.verdicts.thresholds import THRESHOLDS
from groundthink.verdicts.verdict import Verdict, decide

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCHES = {"cuda": (1, 64), "cpu": (1, 8)}
POSITIONS = {"cuda": (100, 100_000), "cpu": (100, 2000)}
"""By device, where none are asked for."""

Step = Callable[[Tensor], Tensor]
"""The next token of every text, int64 [B], to logits [B, V]."""


class Plain:
    """Steps of a model without a graph, each through Python."""

    def __init__(self, model: nn.Module, state: State):
        self.model, self.state = model, state

    @torch.inference_mode()
    def __call__(self, tokens: Tensor) -> Tensor:
        logits, self.state = self.model(tokens[:, None], self.state)
        return logits[:, -1]


def run(config: BenchDecode) -> int:
    """Measure, show one table and append the records; 1 if the model cannot run or a form of it is
    wrong."""
    check(config)
    device = pick_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    on = "cuda" if device.type == "cuda" else "cpu"
    precision = config.precision or ("bf16" if on == "cuda" else "fp32")
    results = Results(config.out, provenance(config, device) | {"precision": precision})
    screen = Screen()
    screen.title(f"{config.model}, weights in {precision}, on", device)
    rows: list[dict[str, Any]] = []
    with screen.busy("") as say:
        models: dict[str, nn.Module] = {}
        for name in names(config):
            with results.attempt(f"decode {name}", {"who": name}, config.patience):
                models[name] = make(name, config, device, DTYPES[precision])
        failed = [f"{row['who']}: {row['note']}" for row in results.rows]
        places = product(config.batches or BATCHES[on], config.positions or POSITIONS[on])
        for batch, position in places if config.model in models else ():
            rows += measure(models, batch, position, config, results, say)
    evenness(rows, results)
    headings = ["", "batch", "position", "ms a token", "tok/s", "ours faster", "launches", ""]
    screen.table("", headings, map(cells, rows))
    screen.lines(failed)
    screen.records(config.out)
    timed = any(row["value"] for row in rows if row["who"] == config.model)
    ours = (row for row in rows if row["who"] != contestants.PEERS)
    return int(not timed or any(row["verdict"] == Verdict.FAIL for row in ours))


def names(config: BenchDecode) -> list[str]:
    """The contestants, the model itself first."""
    return list(dict.fromkeys((config.model, *config.against)))


def check(config: BenchDecode) -> None:
    """Raise UserError for values that no bench can have and contestants that cannot run."""
    for name in ("vocab_size", "tokens", "repeats"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; it must be at least 1")
    for name in ("batches", "positions"):
        if min(getattr(config, name), default=1) < 1:
            raise UserError(f"{name}: every one must be at least 1")
    for name in names(config):
        contestants.require(name)
        if name == "gpt2" or name.endswith(contestants.COMPILE):
            raise UserError(f"bench decode cannot run {name}; name a model of ours, as gpt2-5m")


def make(name: str, config: BenchDecode, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A contestant with noise on its weights, so that no mixer is silent."""
    longest = max(config.positions or POSITIONS["cuda"]) + 64 * config.tokens
    spec = BenchModel(
        model=config.model,
        vocab_size=config.vocab_size,
        seq_len=longest,
        seed=config.seed,
    )
    model = contestants.make(name, spec, device)
    contestants.add_noise(model)
    return model.to(dtype).eval()


def measure(
    models: dict[str, nn.Module], batch: int, position: int, config: BenchDecode,
    results: Results, say: Say,
) -> list[dict[str, Any]]:  # fmt: skip
    """One record a contestant and mode; those that disagree with the plain step have no time."""
    laps: dict[str, Lap] = {}
    rows: dict[str, dict[str, Any]] = {}
    state, oracle = None, None
    forget_tuning()
    for name, model in models.items():
        say(f"batch {batch}, position {position:,}: {name}")
        same = name == config.model or name == contestants.PEERS or name in BACKENDS
        where = {"who": name, "batch_size": batch, "position": position, "verdict": Verdict.PASS}
        try:
            with within(config.patience):
                if state is None or not same:
                    start, tokens = read(model, batch, position, config)
                if state is None:
                    state = start
                contest = steps(model, batch, state if same else start)
                for mode, step in contest.items():
                    row = rows[f"{name} {mode}"] = where | {"mode": mode, "value": None, "n": 0}
                    logits = step(tokens).float()
                    oracle = logits if oracle is None else oracle
                    if same and not agrees(logits, oracle, row):
                        continue
                    if tokens.is_cuda:
                        row["launches"] = gpu.launches(partial(step, tokens))
                    laps[f"{name} {mode}"] = lap(step, tokens, config.tokens)
        except Exception as error:  # memory that does not suffice for keys and values, a peer's own
            rows[f"{name} eager"] = where | {"mode": "eager", "value": None, "n": 0}
            rows[f"{name} eager"]["note"] = f"cannot run: {first_line(error)}"
            if name == config.model:  # nothing to agree with
                break
    device = next(next(iter(models.values())).parameters()).device
    seconds = race(laps, config.repeats, device, seconds=config.seconds)
    best = next((key for key in laps if key == f"{config.model} graph"), f"{config.model} eager")
    for key, row in rows.items():
        if key in seconds:
            row |= spread([1e3 * s / config.tokens for s in seconds[key]])
            row["tok_per_s"] = 1e3 * batch / row["value"]
            if key != best and best in seconds:
                row["ours_faster"] = ratio(seconds[best], seconds[key])
        name = f"decode {key}, batch {batch}, position {position}"
        results.add(name, "ms", row, row.get("note", ""))
    return list(rows.values())


def read(model: nn.Module, batch: int, position: int, config: BenchDecode) -> tuple[State, Tensor]:
    """The state after `position` random tokens, and one token more for every text."""
    generator = torch.Generator().manual_seed(config.seed)
    decoder = Decoder(model, batch)  # pyright: ignore
    device = next(model.parameters()).device
    left = position
    while left:
        count = min(left, 1024)
        tokens = torch.randint(config.vocab_size, (batch, count), generator=generator)
        decoder.read(tokens)
        left -= count
    return decoder.state, tokens[:, -1].to(device)


def steps(model: nn.Module, batch: int, state: State) -> dict[str, Step]:
    """The ways to take a step from a state: through Python, and on a GPU as a graph."""
    found: dict[str, Step] = {"eager": Plain(model, state.clone())}
    if model.recurrent and next(model.parameters()).is_cuda:
        found["graph"] = Decoder(model, batch, state).step  # pyright: ignore
    return found


def agrees(logits: Tensor, oracle: Tensor, row: dict[str, Any]) -> bool:
    """Whether a step gives the logits of the first contestant; the error goes into the row."""
    half = row["who"] == contestants.PEERS or logits.dtype != torch.float32
    limit = THRESHOLDS[("parity", "half logits") if half else ("G1", "pieces against whole")]
    row["error"] = relative_rms(logits, oracle)
    row["verdict"] = decide(exact(row["error"]), limit)
    if row["verdict"] == Verdict.FAIL:
        row["note"] = f"wrong: error {row['error']:.0e}, not timed"
    return row["verdict"] != Verdict.FAIL


def lap(step: Step, tokens: Tensor, count: int) -> Lap:
    """`count` steps a lap."""

    def decode() -> None:
        for _ in range(count):
            step(tokens)

    return lambda: stopwatch(decode, tokens.device)


def evenness(rows: list[dict[str, Any]], results: Results) -> None:
    """How many times a token at the last position takes what one at the first does."""
    by_contest: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if row["value"]:
            key = row["who"], row["mode"], row["batch_size"]
            by_contest.setdefault(key, []).append(row)
    for (who, mode, batch), found in by_contest.items():
        if len(found) > 1:
            fields = {"who": who, "mode": mode, "batch_size": batch, "what": "late over early"}
            fields |= {"value": found[-1]["value"] / found[0]["value"], "n": len(found)}
            results.add(f"late over early, {who} {mode}, batch {batch}", "", fields)


def cells(row: dict[str, Any]) -> list[str]:
    """The row of a contestant."""
    timed, faster = row["value"] is not None, row.get("ours_faster")
    return [
        f"{row['who']} {row['mode']}",
        str(row["batch_size"]),
        f"{row['position']:,}",
        with_spread({"all": row}, "all") if timed else "",
        f"{row['tok_per_s']:,.0f}" if timed else "",
        f"{number(faster['value'], 3)} x" if faster else "",
        str(row.get("launches", "")),
        row.get("note", ""),
    ]
