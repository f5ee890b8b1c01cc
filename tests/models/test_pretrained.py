"""Model folders: exact round trips, and damage is named."""

from __future__ import annotations

import json

import pytest
import torch
from toys import randomized, small

from groundthink import build, load
from groundthink.data.tokenizers import ByteTokenizer
from groundthink.errors import UserError
from groundthink.models.pretrained import save

X = torch.arange(20)[None]


def test_round_trip_is_exact(variant, tmp_path):
    model = randomized(build(small(variant)))
    save(tmp_path, model, None, {})
    loaded, tokenizer = load(tmp_path)
    assert tokenizer is None and loaded.config == model.config and not loaded.training
    assert torch.equal(loaded(X)[0], model(X)[0])
    tied = model.config.tie_embeddings
    assert (loaded.head.weight is loaded.embed.weight) == tied


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "m", build(small("gf", vocab_size=300)), ByteTokenizer(), {})
    return tmp_path / "m"


def test_the_tokenizer_travels_with_the_model(folder):
    assert load(folder)[1].decode(ByteTokenizer().encode("hé")) == "hé"


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing"])
def test_damaged_weights_are_named(folder, damage):
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "missing":
        weights.unlink()
    elif damage == "truncate":
        weights.write_bytes(data[:-100])
    else:
        data[-5] ^= 1
        weights.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors is missing or damaged"):
        load(folder)


def test_weights_of_another_model_are_refused(folder, tmp_path):
    save(tmp_path / "other", build(small("gf", d_model=64, vocab_size=300)), None, {})
    config = (folder / "config.yaml").read_text()
    (tmp_path / "other" / "config.yaml").write_text(config)
    with pytest.raises(UserError, match="is of another model"):
        load(tmp_path / "other")


def test_a_tokenizer_that_is_too_large_is_refused(tmp_path):
    save(tmp_path, build(small("gf")), ByteTokenizer(), {})
    with pytest.raises(UserError, match="belongs to another checkpoint"):
        load(tmp_path)


def test_a_run_loads_its_last_or_best_checkpoint(tmp_path):
    models = {name: randomized(build(small("gf")), seed) for seed, name in enumerate(("a", "b"))}
    for name, model in models.items():
        save(tmp_path / "checkpoints" / name, model, None, {})
    index = tmp_path / "checkpoints" / "index.json"
    index.write_text(json.dumps({"last": "b", "best": "a"}))
    assert torch.equal(load(tmp_path)[0](X)[0], models["b"](X)[0])
    assert torch.equal(load(tmp_path, which="best")[0](X)[0], models["a"](X)[0])
    index.write_text("{")
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        load(tmp_path)


def test_what_is_no_model_is_answered_in_one_line(tmp_path):
    with pytest.raises(UserError, match="not a run or a model folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="no checkpoint yet"):
        load(tmp_path)
