"""A run that was stopped and resumed is the run that was not, to the last bit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from groundthink import config as configs
from groundthink import records
from groundthink.errors import UserError
from groundthink.train.config import TrainRun
from groundthink.train.loop import train
from groundthink.train.stop import Interrupted, StopSignal


def quiet(line: str) -> None:
    """A log that nobody reads."""


class Interrupt:
    """Observer that sends a signal to its own process in step `step`."""

    def __init__(self, step, signum=signal.SIGINT):
        self.every, self.signum, self.calls = step, signum, 0

    def start(self, model):
        """Nothing to prepare."""

    def finish(self, model):
        self.calls += 1
        if self.calls == 2:
            signal.raise_signal(self.signum)
        return []


def measured(folder):
    """Everything that a run measured but not how long it took, and its last training state."""
    timing = ("time", "tok_per_s", "seconds", "path")
    rows = [
        {key: value for key, value in record.items() if key not in timing}
        for record in records.read(folder / "metrics.jsonl")
        if record["kind"] not in ("provenance", "event", "checkpoint")
    ]
    last = json.loads((folder / "checkpoints" / "index.json").read_text())["last"]
    stored = torch.load(folder / "checkpoints" / last / "train.pt", weights_only=True)
    stored["progress"].pop("seconds")
    weights = (folder / "checkpoints" / last / "model.safetensors").read_bytes()
    return rows, stored, weights


def assert_same(a, b):
    """Equal trees of tensors and plain values."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        assert_same(list(a.values()), list(b.values()))
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def assert_same_run(one, two):
    for a, b in zip(measured(one), measured(two), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"grad_accum": 2, "sample_every": 8},
        {"carry_state": False},
        {"data": {"order": "windows"}, "schedule": "wsd"},
        {"model": {"layout": "gpt2"}},
        {"precision": "bf16"},
    ],
    ids=["lanes", "accumulation", "no-carry", "windows", "gpt2", "bf16"],
)
def test_four_steps_and_four_more_are_eight(make_run, change):
    straight = train(make_run("straight", **change), log=quiet)
    with pytest.raises(Interrupted) as caught:
        train(make_run("stopped", **change), observers=[Interrupt(4)], log=quiet)
    assert caught.value.code == 130
    stopped = caught.value.folder
    assert [r["step"] for r in records.read(stopped / "metrics.jsonl", "train")] == [1, 2, 3, 4]
    train(make_run("stopped", **change), resume=stopped, log=quiet)
    assert_same_run(straight, stopped)
    what = [r["what"] for r in records.read(stopped / "metrics.jsonl", "event")]
    assert what == ["started", "interrupted", "resumed", "finished"]


def test_interrupted_between_two_saves(make_run):
    change = {"save_every": 100, "eval_every": 5}
    straight = train(make_run("straight", **change), log=quiet)
    with pytest.raises(Interrupted):
        train(make_run("stopped", **change), observers=[Interrupt(3)], log=quiet)
    stopped = train(make_run("stopped", **change), resume=make_run("stopped").out, log=quiet)
    assert_same_run(straight, stopped)


def test_a_run_that_was_killed_repeats_what_it_had_not_saved(make_run):
    change = {"save_every": 4, "eval_every": 4}
    straight = train(make_run("straight", **change), log=quiet)
    killed = train(make_run("killed", **change), log=quiet)
    resumed = killed / "checkpoints" / "step-00000004"
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 9, "lo')
    train(make_run("killed", **change), resume=resumed, log=quiet)
    assert_same_run(straight, killed)


def test_going_back_to_where_the_best_is_gone(make_run):
    folder = train(make_run(), log=quiet)
    checkpoints = folder / "checkpoints"
    older = sorted(checkpoints.glob("step-*"))[-2]
    stored = torch.load(older / "train.pt", weights_only=True)
    assert stored["progress"]["best"] == older.name
    shutil.move(older, checkpoints / "step-00000005")
    train(make_run(steps=6), resume=checkpoints / "step-00000005", log=quiet)
    index = json.loads((checkpoints / "index.json").read_text())
    assert index == {"last": "step-00000005", "best": "step-00000005"}


SCRIPT = """
import sys
from pathlib import Path
from groundthink import config
from groundthink.train.config import TrainRun
from groundthink.train.loop import train
from groundthink.train.stop import Interrupted
try:
    train(config.load(TrainRun, sys.argv[1]), log=lambda line: None)
except Interrupted as stop:
    print(stop)
    sys.exit(stop.code)
"""


@pytest.mark.slow
def test_sigterm_in_another_process(make_run, tmp_path):
    change = {"steps": 20, "save_every": 100, "eval_every": 10}
    straight = train(make_run("straight", **change), log=quiet)
    run = make_run("stopped", **change)
    configs.save(run, tmp_path / "run.yaml")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run.yaml")],
        stdout=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    while len(records.read(metrics, "train")) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "--resume" in said
    assert 5 <= len(records.read(metrics, "train")) < 20
    own = replace(configs.load(TrainRun, tmp_path / "stopped" / "config.yaml"))
    assert_same_run(straight, train(own, resume=tmp_path / "stopped", log=quiet))


@pytest.mark.tiny
def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signum == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_more_steps_go_on_from_the_end(make_run):
    folder = train(make_run(schedule="constant"), log=quiet)
    train(make_run(schedule="constant", steps=10), resume=folder, log=quiet)
    longer = train(make_run("longer", schedule="constant", steps=10), log=quiet)
    a, b = measured(folder), measured(longer)
    assert_same(a[1], b[1])
    assert a[2] == b[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"d_model": 64}}, "model.d_model was 32 and is 64 now"),
        ({"data": {"tokenizer": "byte"}}, "model.vocab_size was"),
        ({"data": {"val_fraction": 0.4}}, "data was"),
        ({"batch_size": 2}, "train.batch_size was 3 and is 2 now"),
    ],
)
def test_resume_with_something_else_is_refused(make_run, change, message):
    folder = train(make_run(steps=2), log=quiet)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=message):
        train(make_run(**change), resume=folder, log=quiet)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_resume_without_a_checkpoint_is_refused(make_run):
    folder = train(make_run(checkpoints=False), log=quiet)
    with pytest.raises(UserError, match="no checkpoint"):
        train(make_run(), resume=folder, log=quiet)
