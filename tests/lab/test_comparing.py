"""Runs side by side, and probes of a run, through the commands."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from toys import small

from groundthink.cli import main
from groundthink.data.config import DataConfig
from groundthink.diagnose.balance import Balance
from groundthink.train.config import TrainConfig, TrainRun
from groundthink.train.loop import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Twice the same run, and one of another seed."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("runs")
    words = ["state", "more", "mamba", "plan", "stone", "tone", "ore", "mate"]
    documents = (" ".join(rng.choices(words, k=200)) for _ in range(20))
    text = folder / "words.txt"
    text.write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    data = DataConfig(corpus=str(text), cache_dir=str(folder / "cache"), val_fraction=0.5)
    for name, seed in (("a", 0), ("again", 0), ("other", 1)):
        settings = TrainConfig(
            **{"steps": 6, "batch_size": 4, "seq_len": 32, "log_every": 1, "eval_every": 6},
            **{"sample_every": 0, "save_every": 3, "device": "cpu", "tensorboard": False},
            seed=seed,
        )
        run = TrainRun(model=small("gf-mh"), data=data, train=settings, out=str(folder / name))
        train(run, observers=[Balance(1)], log=lambda line: None)
    return folder


def compare(runs, a: str, b: str, *words: str) -> int:
    return main(["compare", str(runs / a), str(runs / b), "--device", "cpu", "--samples=8", *words])


def test_equal_runs_are_equal_and_a_difference_is_named(runs, capsys):
    assert compare(runs, "a", "again", "--assert-equal") == 0
    assert "equal: every training record and every weight" in capsys.readouterr().out
    assert compare(runs, "a", "other", "--assert-equal") == 1
    assert "training differs from step 1 on" in capsys.readouterr().out
    earlier = next(path.name for path in (runs / "a" / "checkpoints").glob("step-*3"))
    assert compare(runs, "a", f"a/checkpoints/{earlier}", "--assert-equal") == 1
    assert "embed.weight differs" in capsys.readouterr().out


def test_a_run_beside_itself_differs_by_nothing(runs, capsys):
    assert compare(runs, "a", "again") == 0
    lines = (runs / "a" / "results" / "compare.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    differences = [[row[key] for key in ("value", "low", "high")] for row in rows if "low" in row]
    assert differences == [[0, 0, 0]] * 2  # of the loss and of the share
    likeness = [row["cka"] for row in rows if row["kind"] == "likeness"]
    assert likeness == pytest.approx([1] * len(likeness)) and len(likeness) == 4
    assert "B - A" in capsys.readouterr().out


def test_what_cannot_be_compared_or_probed_is_one_line(runs, capsys):
    cases = {
        ("compare", str(runs / "a")): "give two runs",
        ("compare", str(runs / "a"), str(runs / "none")): "is not a run",
        ("probe", str(runs / "a"), "balanse"): "did you mean balance?",
        ("probe",): "which one? give its folder",
    }
    for words, message in cases.items():
        assert main([*words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_probe_leaves_records_and_a_page_and_refuses_an_untrained_model(runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs / "a", run)
    words = ["probe", str(run), "drift", "--device=cpu", "--samples=8"]
    assert main(words) == 0
    assert "p of no drift over turns" in capsys.readouterr().out
    assert "Inside" in (run / "probe.html").read_text()
    before = (run / "results" / "drift.jsonl").read_bytes()
    for meta in run.glob("checkpoints/*/meta.json"):
        meta.write_text(json.dumps({**json.loads(meta.read_text()), "step": 0}))
    assert main(words) == 2
    assert "the model is untrained" in capsys.readouterr().err
    assert (run / "results" / "drift.jsonl").read_bytes() == before
    assert main([*words, "--allow-untrained"]) == 0
    assert "untrained model" in (run / "results" / "drift.jsonl").read_text()
