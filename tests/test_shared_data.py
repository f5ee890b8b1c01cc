"""Real text from beside the project trains and is scored through the commands users type."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundthink import records
from groundthink.cli import main

DATA = Path(__file__).parents[1] / "../shared/data"
TEXTS = {"shakespeare.txt": "char", "books/val.txt.xz": "char", "wiki/val.txt.xz": "byte"}


@pytest.mark.parametrize("text", TEXTS)
def test_train_and_evaluate(text, tmp_path, capfd):
    if not (DATA / text).exists():
        pytest.skip("no shared data here")
    run = tmp_path / "run"
    options = {
        "data.corpus": DATA / text,
        "data.tokenizer": TEXTS[text],
        "data.cache_dir": tmp_path / "cache",
        "train.steps": 30,
        "train.batch_size": 4,
        "train.seq_len": 64,
        "train.warmup_steps": 5,
        "train.lr": 3e-3,
        "train.eval_tokens": 2000,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    assert main(["train", "gf-mh-tiny", f"--out={run}", *words]) == 0
    (baseline,) = records.read(run / "metrics.jsonl", "baseline")
    val = records.read(run / "metrics.jsonl", "val")[-1]
    assert val["loss"] < baseline["uniform"] - 0.5 and 2 < val["bpb"] < 8
    assert main(["generate", str(run), "--prompt", "The", "--tokens", "5"]) == 0
    assert "The" in capfd.readouterr().out
