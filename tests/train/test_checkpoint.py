"""Checkpoints: whole or not there, and never trusted blindly."""

from __future__ import annotations

import json
import os
import random
import resource

import numpy as np
import pytest
import torch

from groundthink.data.tokenizers import CharTokenizer
from groundthink.errors import UserError
from groundthink.models import pretrained
from groundthink.models.build import build
from groundthink.models.config import ModelConfig
from groundthink.train import checkpoint

pytestmark = pytest.mark.tiny
TOKENIZER = CharTokenizer("abc")
MODEL = ModelConfig(d_model=32, n_layers=1, vocab_size=TOKENIZER.vocab_size)
IDENTITY = {"model.d_model": 32}


def save(root, step, best=None, seed=0, **training):
    training = {"identity": IDENTITY, "x": torch.arange(5), **training}
    return checkpoint.save(
        root, step, build(MODEL, seed=seed), TOKENIZER, {"step": step}, training, best
    )


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_round_trip(tmp_path):
    path = save(tmp_path, 500, seed=7)
    model = build(MODEL, seed=0)
    stored = checkpoint.restore(path, model, IDENTITY)
    assert torch.equal(stored["x"], torch.arange(5))
    for a, b in zip(model.parameters(), build(MODEL, seed=7).parameters(), strict=True):
        assert torch.equal(a, b)
    loaded, tokenizer = pretrained.load(path)
    assert tokenizer is not None and tokenizer.digest == TOKENIZER.digest
    assert json.loads((path / "meta.json").read_text())["step"] == 500


def test_last_best_and_the_one_before_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, best="step-00000001")
    kept = ["step-00000001", "step-00000003", "step-00000004"]
    assert names(tmp_path) == ["index.json", *kept]
    assert checkpoint.read_index(tmp_path) == {"last": kept[2], "best": kept[0]}


def test_a_step_can_be_saved_again(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = save(tmp_path, 2, seed=5)
    assert checkpoint.damage(path) is None
    assert names(tmp_path) == ["index.json", "step-00000002"]


@pytest.mark.parametrize("file", ["train.pt", "model.safetensors", "tokenizer.json", "config.yaml"])
@pytest.mark.parametrize("harm", ["truncated", "altered", "missing"])
def test_a_damaged_file_is_named_with_the_checkpoint_before(tmp_path, file, harm):
    before, path = save(tmp_path, 1), save(tmp_path, 2)
    data = bytearray((path / file).read_bytes())
    if harm == "truncated":
        (path / file).write_bytes(data[: len(data) // 2])
    elif harm == "altered":
        data[len(data) // 2] ^= 1
        (path / file).write_bytes(data)
    else:
        (path / file).unlink()
    with pytest.raises(UserError) as caught:
        checkpoint.restore(path, build(MODEL), IDENTITY)
    assert str(path / file) in str(caught.value)
    assert f"--resume {before}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damage_without_an_older_checkpoint(tmp_path):
    path = save(tmp_path, 1)
    (path / "meta.json").write_text("{")
    with pytest.raises(UserError, match="meta.json is missing or damaged; train again"):
        checkpoint.restore(path, build(MODEL), IDENTITY)


def test_another_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="model.d_model was 32 and is 64 now"):
        checkpoint.restore(save(tmp_path, 1), build(MODEL), {"model.d_model": 64})


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_no_code_runs_on_loading(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "checkpoints", 1, harm=Harmful())
    with pytest.raises(UserError, match="train.pt"):
        checkpoint.restore(path, build(MODEL), IDENTITY)
    assert not (tmp_path / "harm").exists()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    before = save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (100, 20_000, 150_000):  # in meta and config, in the weights, in train.pt
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(UserError) as caught:
                save(tmp_path, 2, large=torch.zeros(100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(tmp_path) in str(caught.value) and f"{before} is whole" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert names(tmp_path) == ["index.json", "step-00000001"]
        assert checkpoint.damage(before) is None


def test_random_generators_go_on(tmp_path):
    def draw():
        return random.random(), np.random.rand(), torch.rand(3).tolist()

    path = save(tmp_path, 1, rng=checkpoint.rng_state())
    expected = draw()
    checkpoint.set_rng_state(checkpoint.restore(path, build(MODEL), IDENTITY)["rng"])
    assert draw() == expected


def test_find(tmp_path):
    path = save(tmp_path / "checkpoints", 3)
    assert checkpoint.find(tmp_path) == checkpoint.find(path) == path
    plain = tmp_path / "plain"
    pretrained.save(plain, build(MODEL), TOKENIZER, {})
    with pytest.raises(UserError, match="without training state"):
        checkpoint.find(plain)
    with pytest.raises(UserError):
        checkpoint.find(tmp_path / "nothing")
