"""Our RWKV-6 model against the official inference code (`rwkv` package) on random weights."""

from __future__ import annotations

import os

import pytest
import torch

os.environ["RWKV_JIT_ON"] = os.environ["RWKV_CUDA_ON"] = "0"
oracle = pytest.importorskip("rwkv.model")

from groundthink.models.build import empty  # noqa: E402
from groundthink.models.convert import rwkv6_from_pth  # noqa: E402
from groundthink.ops.testing import relative_rms  # noqa: E402


def write_pth(path, width: int, layers: int, vocab: int, head: int = 64) -> None:
    """Random weights under the official names, of sizes at which every term tells."""
    torch.manual_seed(width)
    hidden = int(3.5 * width // 32 * 32)
    near = {"weight": 1.0, "bias": 0.0}
    weights = {"emb.weight": torch.randn(vocab, width)}

    def norm(name: str) -> None:
        for part, centre in near.items():
            weights[f"{name}.{part}"] = centre + 0.2 * torch.randn(width)

    def linear(name: str, out: int, into: int) -> None:
        weights[f"{name}.weight"] = torch.randn(out, into) / into**0.5

    norm("blocks.0.ln0")
    for i in range(layers):
        norm(f"blocks.{i}.ln1")
        norm(f"blocks.{i}.ln2")
        att, ffn = f"blocks.{i}.att", f"blocks.{i}.ffn"
        for q in "xwkvrg":
            weights[f"{att}.time_maa_{q}"] = torch.rand(1, 1, width)
        weights[f"{att}.time_maa_w1"] = torch.randn(width, 160) / width**0.5
        weights[f"{att}.time_maa_w2"] = torch.randn(5, 32, width) * 0.1
        weights[f"{att}.time_decay"] = torch.linspace(-6, 1, width).view(1, 1, width)
        weights[f"{att}.time_decay_w1"] = torch.randn(width, 64) / width**0.5
        weights[f"{att}.time_decay_w2"] = torch.randn(64, width) * 0.1
        weights[f"{att}.time_faaaa"] = torch.randn(width // head, head)
        for name in ("receptance", "key", "value", "gate", "output"):
            linear(f"{att}.{name}", width, width)
        norm(f"{att}.ln_x")
        for q in "kr":
            weights[f"{ffn}.time_maa_{q}"] = torch.rand(1, 1, width)
        linear(f"{ffn}.key", hidden, width)
        linear(f"{ffn}.receptance", width, width)
        linear(f"{ffn}.value", width, hidden)
    norm("ln_out")
    linear("head", vocab, width)
    torch.save(weights, path)


@pytest.fixture(params=[(128, 2, 101), (192, 3, 257)], ids=["C128-L2", "C192-L3"], scope="module")
def pair(request, tmp_path_factory):
    """The official model and ours, of the same file."""
    path = tmp_path_factory.mktemp("rwkv") / "model.pth"
    write_pth(path, *request.param)
    config, weights = rwkv6_from_pth(path)
    ours = empty(config, "auto", "cpu")
    ours.load_state_dict(weights)
    theirs = oracle.RWKV(model=str(path), strategy="cpu fp32", verbose=False)
    return ours, theirs, torch.randint(config.vocab_size, (2, 70))


@torch.no_grad()
def test_logits_of_a_text(pair):
    ours, theirs, tokens = pair
    logits, _ = ours(tokens)
    for row, text in zip(logits, tokens.tolist(), strict=True):
        expected, _ = theirs.forward(text, None, full_output=True)
        assert relative_rms(row, expected) < 1e-4


@torch.no_grad()
def test_logits_and_state_token_by_token(pair):
    ours, theirs, tokens = pair
    mine, state = None, None
    for token in tokens[0, :40].tolist():
        expected, state = theirs.forward([token], state)
        logits, mine = ours(torch.tensor([[token]]), mine)
        assert relative_rms(logits[0, 0], expected) < 1e-4
    for i, layer in enumerate(mine.layers):
        assert relative_rms(layer["rwkv6"]["shift"][0], state[3 * i]) < 1e-4
        assert relative_rms(layer["rwkv6"]["wkv"][0], state[3 * i + 1]) < 1e-4
        assert relative_rms(layer["ffn"]["shift"][0], state[3 * i + 2]) < 1e-4
