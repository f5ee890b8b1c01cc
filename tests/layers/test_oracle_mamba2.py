"""Our Mamba-2 model against the PyTorch path of transformers' Mamba2ForCausalLM."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")

from groundthink.models.build import empty  # noqa: E402
from groundthink.models.convert import mamba2_from_hf  # noqa: E402
from groundthink.ops.testing import relative_rms  # noqa: E402

SHAPES = {
    "plain": {"hidden_size": 64, "num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1},
    "groups": {"hidden_size": 96, "num_heads": 12, "head_dim": 16, "state_size": 24, "n_groups": 3},
    "untied": {"hidden_size": 32, "num_heads": 3, "head_dim": 32, "expand": 3, "conv_kernel": 3}
    | {"state_size": 64, "n_groups": 1, "tie_word_embeddings": False},
}


@pytest.fixture(params=SHAPES, scope="module")
def pair(request, tmp_path_factory):
    """Their model and ours, of the same folder; random weights, of sizes at which all tell."""
    torch.manual_seed(0)
    shape = {
        "tie_word_embeddings": True,
        "num_hidden_layers": 3,
        "vocab_size": 120,
        "chunk_size": 16,
    }
    theirs = transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(**shape | SHAPES[request.param])
    ).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p), alpha=0.2 if p.dim() == 1 else 0.1)
    folder = tmp_path_factory.mktemp("mamba2")
    theirs.save_pretrained(folder)
    config, weights = mamba2_from_hf(folder)
    ours = empty(config, "auto", "cpu")
    ours.load_state_dict(weights)
    return ours, theirs, torch.randint(120, (2, 70))


@torch.no_grad()
def test_logits_of_a_text(pair):
    ours, theirs, tokens = pair
    assert relative_rms(ours(tokens)[0], theirs(tokens).logits) < 1e-4


@torch.no_grad()
def test_logits_token_by_token(pair):
    ours, theirs, tokens = pair
    cache, state = None, None
    for t in range(40):
        out = theirs(tokens[:, t : t + 1], cache_params=cache, use_cache=True)
        cache = out.cache_params
        logits, state = ours(tokens[:, t : t + 1], state)
        assert relative_rms(logits, out.logits) < 1e-4
