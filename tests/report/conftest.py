"""A made-up but realistic run, written through the same records that training writes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from groundthink import config
from groundthink.data.config import DataConfig
from groundthink.models.config import ModelConfig
from groundthink.records import Records
from groundthink.train.config import TrainConfig, TrainRun

LAYERS = 8
COUNTS = {
    "total": 5_224_960,
    "non_embedding": 5_212_544,
    "embedding": 12_416,
    "rwkv6": 2_178_048,
    "mamba2": 939_104,
    "attention": 0,
    "fusion": 2_056,
    "ffn": 2_089_000,
    "other": 4_336,
    "flops_per_token": 11_400_000,
    "state_bytes": 1_376_256,
}
GPT2_COUNTS = COUNTS | {"rwkv6": 0, "mamba2": 0, "fusion": 0, "attention": 3_119_208}
HOSTILE = "</script><img src=x onerror=alert(1)><!--\x00\u202e&<b>\"'"
"""Text that would break a page that trusts it."""


def write_run(
    folder: Path,
    *,
    steps: int = 2000,
    planned: int | None = None,
    layout: str = "parallel",
    end: str | None = "finished",
    text: str = "returns the number of items in the container",
    states: bool = False,
    gpu: bool = False,
) -> Path:
    """Write the records of a run of `steps` steps; `planned` are the steps it set out to take."""
    planned, rng = planned or steps, random.Random(0)
    cadence = {"log_every": max(1, planned // 200), "eval_every": max(1, planned // 10)}
    name = "gpt2-5m" if layout == "gpt2" else "gf-mh-5m"
    run = TrainRun(
        model=ModelConfig(name=name, layout=layout, n_layers=LAYERS, gate_init=0.3),
        data=DataConfig(),
        train=TrainConfig(steps=planned, warmup_steps=planned // 20, log_states=states, **cadence),
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save(run, folder / "config.yaml")
    env = {"groundthink": "0.1.0", "python": "3.11.2", "platform": "Linux-6.1-x86_64"}
    (folder / "env.json").write_text(json.dumps(env), encoding="utf-8")
    out = Records(folder / "metrics.jsonl", _provenance(run, planned))
    out.append("event", what="started", step=0)
    out.append("baseline", split="val", uniform=4.5747, unigram=3.1021, bigram=2.6114)
    for step in range(1, steps + 1):
        _step(out, step, planned, rng)
        observed = step == 1 or step % run.train.log_every == 0
        if observed and layout == "parallel":
            _balance(out, step, planned, rng)
        if observed and states:
            _states(out, step, rng)
        if gpu and step % 20 == 0:
            out.append("gpu", step=step, util=88 + 8 * rng.random(), memory_mib=9200, **_heat(rng))
        if step % run.train.eval_every == 0:
            _validate(out, step, planned, rng)
        if step % (2 * run.train.eval_every) == 0:
            out.append("sample", step=step, prompt="The function ", text=text)
    if end:
        out.append("event", what=end, step=steps)
    return folder


def _provenance(run: TrainRun, steps: int) -> dict:
    about = {"source": "python-docs", "documents": 1480, "bytes": 2_104_331, "tokens": 2_102_877}
    return {
        "config_hash": config.digest(run),
        "data_hash": "5d0c2b9a41fe",
        "git": "6a95651f0c1d",
        "seed": 0,
        "device": "x86_64, 2 threads",
        "torch": "2.13.0",
        "model": run.model.name,
        "counts": GPT2_COUNTS if run.model.layout == "gpt2" else COUNTS,
        "data": about,
        "steps": steps,
        "argv": ["groundthink", "train", run.model.name],
    }


def _loss(step: int, planned: int) -> float:
    return 2.24 + 2.33 * math.exp(-9 * step / planned) + 0.28 * math.exp(-1.8 * step / planned)


def _step(out: Records, step: int, planned: int, rng: random.Random) -> None:
    loss = _loss(step, planned) + rng.gauss(0, 0.06)
    decay = 0.5 * (1 + math.cos(math.pi * step / planned))
    norm = 0.55 * math.exp(rng.gauss(0, 0.25)) + 2.5 * math.exp(-50 * step / planned)
    out.append(
        "train",
        step=step,
        loss=loss,
        bpb=loss / math.log(2) / 1.004,
        lr=2e-3 * min(20 * step / planned, 0.1 + 0.9 * decay),
        grad_norm=norm * (6 if rng.random() < 0.001 else 1),
        tok_per_s=rng.gauss(18_600, 500) * (0.45 if step % 200 == 1 < step else 1),
        tokens=2048 * step,
        seconds=0.11 * step,
    )


def _validate(out: Records, step: int, planned: int, rng: random.Random) -> None:
    loss = _loss(step, planned) + 0.05 + rng.gauss(0, 0.006)
    bits = loss / math.log(2) / 1.004
    error = {"se": 0.011, "perplexity": math.exp(loss), "tokens": 210_287}
    out.append("val", step=step, split="val", loss=loss, bpb=bits, best=True, **error)


def _balance(out: Records, step: int, planned: int, rng: random.Random) -> None:
    part = step / planned
    rwkv, mamba = (base * math.exp(rng.gauss(0, 0.15)) for base in (3.1e-4, 5.2e-4))
    gates = [0.3 + 0.16 * part * math.sin(i - 1.5) + rng.gauss(0, 0.003) for i in range(LAYERS)]
    rms = {
        "rwkv6": [(0.4 + 0.5 * part) * (1 + 0.2 * i) for i in range(LAYERS)],
        "mamba2": [(0.9 + 0.2 * part) * (1 - 0.06 * i) for i in range(LAYERS)],
    }
    pairs = zip(gates, rms["rwkv6"], rms["mamba2"], strict=True)
    out.append(
        "balance",
        step=step,
        grad_rms={"rwkv6": rwkv, "mamba2": mamba, "other": 4.0e-4 * math.exp(rng.gauss(0, 0.1))},
        grad_ratio=rwkv / mamba,
        gate=gates,
        share=[g * r / (g * r + (1 - g) * m) for g, r, m in pairs],
        branch_rms=rms,
        update_ratio={"rwkv6": 1.1e-3, "mamba2": 0.8e-3, "other": 1.4e-3},
    )


def _states(out: Records, step: int, rng: random.Random) -> None:
    names = ("rwkv_state_norm", "mamba_state_norm", "state_ratio", "gate", "rwkv_state_var")
    more = ("mamba_state_var", "activation_ratio", "state_entropy", "update_magnitude")
    scales = (41, 6.2, 6.6, 0.31, 0.8, 0.09, 2.4, 0.71, 0.21, 0.08)
    columns = zip((*names, *more, "norm_stability"), scales, strict=True)
    out.append("states", step=step, **{k: v * math.exp(rng.gauss(0, 0.08)) for k, v in columns})


def _heat(rng: random.Random) -> dict[str, float]:
    return {"temperature_c": 61 + 4 * rng.random(), "power_w": 310 + 30 * rng.random()}


def write_gates(folder: Path) -> None:
    """Findings of every verdict, with bounded, unbounded and missing intervals."""
    out = Records(folder / "results" / "gates.jsonl", {"seed": 0})

    def add(
        id: str, name: str, verdict: str, value: float, low: float, high: float, **more
    ) -> None:
        out.append(
            "gate", id=id, name=name, verdict=verdict, value=value, low=low, high=high, **more
        )

    inf, nan = math.inf, math.nan
    add("G0", "fp32 error, wkv6", "PASS", 3e-7, 3e-7, 3e-7, threshold="0..0.001", unit="", n=1)
    add("G0", "fp32 error, ssd", "PASS", 2e-7, 2e-7, 2e-7, threshold="0..0.001", unit="", n=1)
    add("G1", "future leak", "PASS", 0, 0, 0, threshold="0", unit="logits", n=4)
    entropy = {"threshold": "0.9..1 (warn 0.75..1)", "unit": "", "n": 1024}
    add("G2", "init entropy / ln V", "PASS", 0.992, 0.991, 0.993, **entropy)
    add("G3", "loss slope", "PASS", -0.61, -0.63, -0.59, threshold="<= 0", unit="nats", n=1000)
    spikes = {"threshold": "0..0.01 (warn 0..0.05)", "unit": "", "note": "2 of 2000 steps"}
    add("G3", "gradient spikes", "WARN", 0.021, 0.0151, 0.0291, n=2000, **spikes)
    for layer in range(LAYERS):
        where = f"effective rank, blocks.{layer}.rwkv6"
        rank = 0.34 + 0.04 * layer
        threshold = {"threshold": "0.05..0.95 (warn 0.02..1)", "unit": "", "n": 64}
        add("G3.5", where, "PASS", rank, rank - 0.05, rank + 0.05, **threshold)
    frozen = {"threshold": "-1..0.99", "unit": "", "n": 64, "note": "the state no longer turns"}
    add("G3.5", "cosine at lag 64, blocks.7.mamba2", "FAIL", 0.996, 0.994, 0.998, **frozen)
    band = {"threshold": "0.3..3 (warn 0.1..10)", "unit": ""}
    add("G4", "gradient R/M", "PASS", 0.604, 0.571, 0.655, n=20, **band)
    few = {"threshold": "-0.3..0.3 (warn -0.9..0.9)", "unit": "", "n": 4}
    add("independence", "branch cosine", "INCONCLUSIVE", 0.12, -inf, inf, **few)
    skipped = {"threshold": "", "unit": "", "n": 0, "note": "skipped: no checkpoint was written"}
    add("checkpoint", "logit difference", "INCONCLUSIVE", nan, nan, nan, **skipped)


def write_bench(folder: Path) -> None:
    """Three measured figures."""
    out = Records(folder / "results" / "bench.jsonl", {"seed": 0})
    out.append(
        "bench", name="B1 training", value=18_420, unit="tok/s", low=18_100, high=18_700, n=20
    )
    out.append("bench", name="B2 peak memory", value=412.5, unit="MiB", n=1)
    out.append("bench", name="B3 final loss", value=3.21, unit="nats", low=3.18, high=3.24, n=5)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writer of synthetic runs under the test's own folder."""
    return lambda name="gf-mh-5m-python-docs", **options: write_run(tmp_path / name, **options)


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every kind of record; its samples hold hostile text."""
    folder = tmp_path_factory.mktemp("runs") / "gf-mh-5m-python-docs"
    write_run(folder, states=True, gpu=True, text=f"returns {HOSTILE} items\n" * 3)
    write_gates(folder)
    write_bench(folder)
    return folder
