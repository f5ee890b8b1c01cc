"""`bench ops` times what agrees with fp64, and nothing else."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from groundthink import records
from groundthink.bench import gpu, ops, peers
from groundthink.bench.cases import CPU, GPU, KERNEL, Case, cases
from groundthink.bench.config import BenchOps
from groundthink.errors import UserError
from groundthink.ops import wkv6
from groundthink.ops.wkv6 import BACKENDS

HOST = torch.device("cpu")
CHUNKED = BACKENDS["chunked"]
TINY = "wkv6-1x40x2x8-strong"


@pytest.fixture
def bench(tmp_path) -> BenchOps:
    return BenchOps(
        shapes=(TINY,), repeats=6, warmup=1, device="cpu", out=str(tmp_path / "b.jsonl")
    )


def found(bench: BenchOps) -> dict[str, dict]:
    return {row["who"]: row for row in records.read(bench.out, "bench") if "who" in row}


def test_a_wrong_peer_has_no_time_and_a_wrong_form_of_ours_is_an_error(bench, monkeypatch):
    def planted(*operands):
        y, state = wkv6(*operands)
        return y * 1.001, state

    def broken(*args):
        y, state = CHUNKED(*args)
        return y, state * 1.001

    peer = peers.Peer("wkv6", "", lambda: planted)
    monkeypatch.setitem(peers.PEERS, "planted", peer)
    assert ops.run(replace(bench, against=("planted", "reference"))) == 0
    rows = found(bench)
    assert rows["planted"]["value"] is None and "wrong" in rows["planted"]["note"]
    assert not any("eager" in key for key in rows["planted"])
    assert rows["planted"]["error"]["forward"] == pytest.approx(1e-3, rel=0.1)
    assert rows["chunked"]["value"] > 0 and rows["reference"]["n"] == 6
    monkeypatch.setitem(BACKENDS, "broken", broken)
    assert ops.run(replace(bench, against=("broken",))) == 1
    assert found(bench)["broken"]["value"] is None


def test_the_ratio_is_that_of_the_same_rounds(bench):
    assert ops.run(replace(bench, against=("reference",), repeats=8)) == 0
    rows = found(bench)
    faster = rows["reference"]["ours_faster"]
    quotient = rows["reference"]["value"] / rows["chunked"]["value"]
    assert faster["q1"] / 2 < quotient < faster["q3"] * 2
    assert "ours_faster" not in rows["chunked"]


def test_a_peer_that_fails_is_a_line_and_not_an_end(bench, monkeypatch):
    def failing(*operands):
        raise ValueError("no such device\nand more")

    monkeypatch.setitem(peers.PEERS, "failing", peers.Peer("wkv6", "", lambda: failing))
    assert ops.run(replace(bench, against=("failing",))) == 0
    assert found(bench)["failing"]["note"] == "cannot run: no such device"


def test_what_is_not_installed_is_a_line_unless_nothing_else_was_asked_for(bench, capsys):
    assert ops.run(replace(bench, against=("fla", "reference"))) == 0
    assert "fla: " in capsys.readouterr().out
    with pytest.raises(UserError, match="^fla: "):
        ops.run(replace(bench, against=("fla",)))


def test_mamba_is_found_where_the_variable_points(tmp_path, monkeypatch):
    monkeypatch.setenv(peers.FOLDER, str(tmp_path))
    assert "no mamba_ssm in" in peers.missing("mamba")
    (tmp_path / "mamba_ssm").mkdir()
    assert peers.missing("mamba") == ""


def test_what_a_peer_chose_for_one_shape_is_forgotten(monkeypatch):
    triton = pytest.importorskip("triton")

    def double(x):
        pass

    configs = [triton.Config({}), triton.Config({}, num_warps=8)]
    tuned = triton.autotune(configs, key=[])(triton.jit(double))
    tuned.cache["a shape"] = configs[1]
    module = ModuleType("fla.doubling")
    module.kernel = triton.heuristics({})(tuned)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    peers.forget_tuning()
    assert not tuned.cache


@pytest.mark.tiny
def test_cases_are_named_as_they_are_read():
    for name in (*CPU, *GPU, *KERNEL, TINY):
        assert Case.parse(name.removesuffix("-initial")).name == name.removesuffix("-initial")
    assert [case.name for case in cases(("kernel",), HOST)] == list(KERNEL)
    for wrong in ("wkv6-4x4", "ssd-1x2x3x4", "wkv6-1x0x2x8", "wkv6-1x2x3x4-storng", "gla-1x2x3x4"):
        with pytest.raises(UserError, match="unknown case"):
            Case.parse(wrong)


@pytest.mark.tiny
def test_the_least_traffic_is_that_of_the_operands():
    """bf16 WKV6 moves 10 N and 28 N bytes a token and head, as counted by hand."""
    b, t, h, n = 64, 256, 2, 64
    heads = b * t * h
    assert Case.parse("wkv6-64x256x2x64").traffic(2) == (heads * 10 * n, heads * 28 * n)
    x, dt, _, B, C, _ = Case.parse("ssd-2x8x4x16x32").operands(0, torch.bfloat16, HOST)
    forward = sum(each.nbytes for each in (x, x, dt, B, C))
    gradient = sum(each.nbytes for each in (x, x, x, dt, dt, B, B, C, C))
    assert Case.parse("ssd-2x8x4x16x32").traffic(2) == (forward, forward + gradient)


@pytest.mark.tiny
def test_empty_caches_are_there_for_a_while(monkeypatch):
    import os

    monkeypatch.setenv("TRITON_CACHE_DIR", "before")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with gpu.empty_caches():
        assert os.environ["TRITON_CACHE_DIR"] != "before"
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert os.environ["TRITON_CACHE_DIR"] == "before"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_a_contestant_nobody_knows_is_answered_with_near_names(bench):
    with pytest.raises(UserError, match="did you mean chunked"):
        ops.run(replace(bench, against=("chunkd",)))


@pytest.mark.gpu
def test_a_graph_computes_the_same_and_counts_its_kernels():
    device = torch.device("cuda")
    x = torch.ones(1 << 20, device=device)
    replay = gpu.graphed(lambda: x.mul_(2))
    before = x[0].item()
    replay()
    assert x[0].item() == 2 * before
    assert gpu.launches(replay) == 1
    assert 0 < gpu.event_seconds(replay, device) < 0.1  # other tests share the GPU
    assert gpu.bandwidth(device) > 1e10
