"""A small real corpus and runs on it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from groundthink.data.config import DataConfig
from groundthink.models.config import ModelConfig
from groundthink.train.config import TrainConfig, TrainRun

WORDS = [f"{a}{b}" for a in ("st", "m", "t", "pl") for b in ("ate", "ore", "one", "an")]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A text file of 24 documents, about 20 KB."""
    rng = random.Random(0)
    documents = (" ".join(rng.choices(WORDS, k=200)) + ".\n" for _ in range(24))
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text("<|endoftext|>\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture
def make_run(corpus, tmp_path):
    """A tiny run of 8 steps that validates and saves at every second one; keywords change it."""

    def make(out: str = "run", model=None, data=None, **train) -> TrainRun:
        cache = str(corpus.parent / "cache")
        run = TrainRun(
            model=ModelConfig(name="tiny", d_model=32, n_layers=2, rwkv_head_size=16),
            data=DataConfig(corpus=str(corpus), cache_dir=cache, val_fraction=0.2),
            train=TrainConfig(
                **{
                    **{"steps": 8, "batch_size": 3, "seq_len": 12, "lr": 1e-2, "min_lr": 1e-3},
                    **{"warmup_steps": 2, "log_every": 2, "eval_every": 2, "save_every": 2},
                    **{
                        "sample_every": 0,
                        "eval_tokens": 100,
                        "device": "cpu",
                        "tensorboard": False,
                    },
                    **train,
                }
            ),
            out=str(tmp_path / out),
        )
        return replace(
            run, model=replace(run.model, **(model or {})), data=replace(run.data, **(data or {}))
        )

    return make
