from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from groundthink import records
from groundthink.bench import decode
from groundthink.bench.config import BenchDecode, BenchModel
from groundthink.errors import UserError


@pytest.fixture
def config(bench: BenchModel) -> BenchDecode:
    return BenchDecode(
        model=bench.model,
        vocab_size=50,
        batches=(2,),
        positions=(5, 40),
        tokens=2,
        repeats=6,
        device="cpu",
        out=bench.out,
    )


def test_every_contestant_is_timed_at_every_position(config: BenchDecode):
    assert decode.run(replace(config, against=("reference", "gpt2-tiny"))) == 0
    rows = {row["name"]: row for row in records.read(config.out, "bench")}
    for who in (config.model, "reference", "gpt2-tiny"):
        for position in (5, 40):
            row = rows[f"decode {who} eager, batch 2, position {position}"]
            assert row["value"] > 0 and row["tok_per_s"] == pytest.approx(2e3 / row["value"])
        assert rows[f"late over early, {who} eager, batch 2"]["value"] > 0
    assert rows["decode reference eager, batch 2, position 40"]["ours_faster"]["n"] == 6
    (origin,) = records.read(config.out, "provenance")
    assert origin["precision"] == "fp32"


def test_a_step_from_the_read_state_is_a_step_of_the_whole_text(config: BenchDecode):
    model = decode.make(config.model, config, torch.device("cpu"), torch.float32)
    state, token = decode.read(model, 2, 40, config)
    generator = torch.Generator().manual_seed(config.seed)
    text = torch.randint(50, (2, 40), generator=generator)
    assert torch.equal(token, text[:, -1])
    logits = decode.steps(model, 2, state)["eager"](token)
    with torch.no_grad():
        whole, _ = model(torch.cat((text, token[:, None]), dim=1))
    torch.testing.assert_close(logits, whole[:, -1], rtol=1e-4, atol=1e-4)


def test_a_contestant_of_ours_that_disagrees_has_no_time(config: BenchDecode, monkeypatch):
    made = decode.make

    def make(name, *args):
        model = made(name, *args)
        if name == "reference":
            model.blocks[0].rwkv6.time_faaaa.data += 1.0
        return model

    monkeypatch.setattr(decode, "make", make)
    assert decode.run(replace(config, against=("reference",), positions=(5,))) == 1
    rows = {row["name"]: row for row in records.read(config.out, "bench")}
    row = rows["decode reference eager, batch 2, position 5"]
    assert row["value"] is None and "wrong" in row["note"]


def test_what_cannot_run_is_a_line(config: BenchDecode, monkeypatch):
    def exhausted(*args):
        raise torch.OutOfMemoryError("out of memory\nand advice")

    monkeypatch.setattr(decode, "read", exhausted)
    assert decode.run(replace(config, against=("reference",), positions=(5,))) == 1
    (row,) = records.read(config.out, "bench")  # there is nothing that the other could agree with
    assert row["value"] is None and row["note"] == "cannot run: out of memory"


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"against": ("gpt2",)}, "cannot run gpt2; name a model of ours"),
        ({"batches": (0,)}, "batches: every one"),
        ({"model": "gf-mh-5"}, "unknown model 'gf-mh-5'"),
    ],
)
def test_wrong_values_get_one_line(config, change, message):
    if "gpt2" in change.get("against", ()):
        pytest.importorskip("transformers")
    with pytest.raises(UserError, match=message):
        decode.run(replace(config, **change))
