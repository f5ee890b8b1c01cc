"""Whole runs: what they write and what they refuse."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import pytest
import torch

from groundthink import config as configs
from groundthink import records
from groundthink.errors import UserError
from groundthink.models import pretrained
from groundthink.train.config import TrainRun
from groundthink.train.folder import run_folder
from groundthink.train.loop import train


def quiet(line: str) -> None:
    """A log that nobody reads."""


def steps(folder, kind):
    return [record["step"] for record in records.read(folder / "metrics.jsonl", kind)]


def test_a_run_writes_everything_it_should(make_run):
    lines: list[str] = []
    folder = train(make_run(steps=6, sample_every=3), log=lines.append)
    assert steps(folder, "train") == [1, 2, 3, 4, 5, 6]
    assert steps(folder, "val") == [2, 4, 6]
    assert steps(folder, "sample") == [3, 6]
    assert steps(folder, "checkpoint") == [2, 4, 6]
    first, *rest = records.read(folder / "metrics.jsonl")
    assert first["kind"] == "provenance" and first["counts"]["total"] > 0
    for key in ("config_hash", "data_hash", "git", "seed", "device", "torch", "python", "argv"):
        assert key in first
    assert [r["what"] for r in rest if r["kind"] == "event"] == ["started", "finished"]
    (baseline,) = records.read(folder / "metrics.jsonl", "baseline")
    assert baseline["bigram"] < baseline["unigram"] < baseline["uniform"]
    resolved = configs.load(TrainRun, folder / "config.yaml")
    assert resolved.model.vocab_size == first["data"]["vocab_size"] and resolved.out == ""
    assert json.loads((folder / "env.json").read_text())["torch"] == first["torch"]
    assert any("loss" in line and "tok/s" in line for line in lines)
    with (folder / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == list("123456")


def test_train_and_val_records_agree_with_themselves(make_run):
    folder = train(make_run(eval_tokens=0, eval_every=8), log=quiet)
    rows = records.read(folder / "metrics.jsonl", "train")
    assert rows[0]["loss"] > rows[-1]["loss"] + 0.3
    assert [row["tokens"] for row in rows] == [36 * step for step in range(1, 9)]
    assert all(a["seconds"] < b["seconds"] for a, b in zip(rows, rows[1:], strict=False))
    provenance = records.read(folder / "metrics.jsonl", "provenance")[0]
    for row in records.read(folder / "metrics.jsonl", "val"):
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
        assert 0 < row["se"] < 0.5
        assert row["tokens"] == provenance["data"]["splits"]["val"]["tokens"] - 1


def test_best_checkpoint_is_the_one_with_the_lowest_loss(make_run):
    folder = train(make_run(steps=6), log=quiet)
    rows = records.read(folder / "metrics.jsonl", "val")
    best = min(rows, key=lambda row: row["loss"])["step"]
    index = json.loads((folder / "checkpoints" / "index.json").read_text())
    assert index == {"last": "step-00000006", "best": f"step-{best:08d}"}
    model, tokenizer = pretrained.load(folder, which="best")
    assert tokenizer is not None and model.config.vocab_size == tokenizer.vocab_size


class Watcher:
    """Observer that hooks a module inside a block."""

    def __init__(self, every):
        self.every, self.seen = every, 0

    def start(self, model):
        assert model.training
        self.hook = model.blocks[0].ffn.register_forward_hook(self.see)

    def see(self, module, args, output):
        self.seen += 1

    def finish(self, model):
        self.hook.remove()
        return [("balance", {"grad_ratio": 0.5, "share": [0.5, None, 0.25]})]


def test_observers_come_at_their_cadence_first_and_last(make_run):
    lines: list[str] = []
    folder = train(make_run(steps=7), observers=[Watcher(3)], log=lines.append)
    assert steps(folder, "balance") == [1, 3, 6, 7]
    assert any("R/M 0.50" in line for line in lines)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"layout": "gpt2", "d_model": 32}},
        {"model": {"layout": "R M"}},
        {"data": {"tokenizer": "byte", "order": "windows"}},
        {"data": {"split": "track"}},
        {"data": {"val_fraction": 0.0}},
        {"precision": "bf16", "grad_accum": 2},
        {"checkpoints": False},
        {"carry_state": False, "schedule": "wsd"},
    ],
    ids=str,
)
def test_every_kind_of_run_trains(make_run, change):
    folder = train(make_run(steps=4, **change), log=quiet)
    rows = records.read(folder / "metrics.jsonl", "train")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert (folder / "checkpoints").exists() == change.get("checkpoints", True)


def test_a_folder_that_holds_a_run_is_refused(make_run):
    folder = train(make_run(steps=2), log=quiet)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="--resume"):
        train(make_run(steps=2), log=quiet)
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.tiny
def test_a_folder_names_model_corpus_and_config(make_run):
    run = replace(make_run(), out="")
    assert run_folder(run).as_posix().startswith("runs/tiny-words-")
    other = replace(run, train=replace(run.train, lr=1e-3))
    assert run_folder(other) != run_folder(run)
    resolved = replace(run, model=replace(run.model, vocab_size=1000))
    assert run_folder(resolved) == run_folder(run)


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "train.steps is 0"),
        ({"lr": 0.0}, "train.lr"),
        ({"lr": 1e-4}, "train.min_lr"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"model": {"d_model": 33}}, "33"),
    ],
)
def test_settings_that_cannot_work_leave_nothing(make_run, change, message):
    run = make_run(**change)
    with pytest.raises(UserError, match=message):
        train(run, log=quiet)
    assert not run_folder(run).exists()


class Poison:
    """Observer that breaks a weight before the forward pass of its step."""

    def __init__(self, step):
        self.every = step
        self.calls = 0

    def start(self, model):
        self.calls += 1
        if self.calls == 2:
            with torch.no_grad():
                model.blocks[1].mamba2.in_proj.weight[0, 0] = torch.nan

    def finish(self, model):
        return []


def test_a_loss_that_is_not_finite_stops_before_the_update(make_run):
    with pytest.raises(UserError) as caught:
        train(make_run(), observers=[Poison(5)], log=quiet)
    message = str(caught.value)
    assert "step 5" in message and "(mamba2)" in message and "step-00000004" in message
    folder = run_folder(make_run())
    assert steps(folder, "train") == [1, 2, 3, 4]
    event = records.read(folder / "metrics.jsonl", "event")[-1]
    assert (event["what"], event["step"]) == ("nonfinite", 5)
    model, _ = pretrained.load(folder)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_compiled_blocks_train_the_same_and_can_be_observed(make_run):
    watcher = Watcher(3)
    change = {
        **{"model": {"layout": "gpt2", "n_layers": 1}, "data": {"val_fraction": 0.0}},
        **{"steps": 4, "checkpoints": False},
    }
    plain = train(make_run("plain", **change), log=quiet)
    compiled = train(make_run("compiled", compile=True, **change), observers=[watcher], log=quiet)
    a, b = (records.read(folder / "metrics.jsonl", "train") for folder in (plain, compiled))
    assert [row["loss"] for row in b] == pytest.approx([row["loss"] for row in a], rel=1e-3)
    assert watcher.seen == 3
