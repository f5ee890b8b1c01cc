from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from groundthink.errors import UserError
from groundthink.models import convert, pretrained
from groundthink.models.build import build
from groundthink.models.config import ModelConfig

RWKV6 = ModelConfig(
    layout="rwkv6", d_model=64, n_layers=2, vocab_size=50, rwkv_head_size=16, ffn="rwkv",
    ffn_mult=3.5, norm="layer", norm_eps=1e-5, embed_norm=True, tie_embeddings=False,
)  # fmt: skip
HF = {
    "model_type": "mamba2", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2,
    "state_size": 8, "num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 2, "conv_kernel": 4,
    "hidden_act": "silu", "use_bias": False, "use_conv_bias": True, "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True, "time_step_limit": [0.0, {"__float__": "Infinity"}],
}  # fmt: skip
MAMBA2 = ModelConfig(
    layout="mamba2", d_model=32, n_layers=2, vocab_size=50, mamba_state_size=8, mamba_head_size=16,
    mamba_groups=2, ffn="none", norm_eps=1e-5, embed_norm=False,
)  # fmt: skip
TOKENS = torch.arange(20)[None]


def noisy(config: ModelConfig):
    model = build(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model.eval()


@pytest.fixture
def rwkv6():
    """A model and its weights under the official names and shapes."""
    model, weights = noisy(RWKV6), {}
    for name, weight in model.state_dict().items():
        keys = convert._sources(name, convert.RWKV6_NAMES)
        for key, part in zip(keys, weight if len(keys) > 1 else [weight], strict=True):
            weights[key] = part.view(1, 1, -1) if part.dim() == 1 and "time" in key else part
    return model, weights


@pytest.fixture
def mamba2():
    """A model and its weights under the Hugging Face names."""
    model, weights = noisy(MAMBA2), {}
    for name, weight in model.state_dict().items():
        if name != "head.weight":
            weights[convert._sources(name, convert.MAMBA2_NAMES)[0]] = weight
    return model, weights


def write_hf(folder, weights, changes=None, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(HF | settings))
    save_file(weights | (changes or {}), folder / "model.safetensors")
    return folder


@pytest.mark.tiny
def test_an_imported_rwkv6_speaks_as_its_source(rwkv6, tmp_path):
    model, weights = rwkv6
    torch.save({k: w.bfloat16() for k, w in weights.items()}, tmp_path / "small.pth")
    convert.import_rwkv6(tmp_path / "small.pth", tmp_path / "out")
    loaded, tokenizer = pretrained.load(tmp_path / "out")
    assert tokenizer is None
    assert loaded.config.name == "small" and loaded.config.ffn_mult == 3.5
    model.load_state_dict({k: w.bfloat16() for k, w in model.state_dict().items()})
    assert torch.equal(loaded(TOKENS)[0], model(TOKENS)[0])


@pytest.mark.tiny
@pytest.mark.parametrize("shards", [1, 3])
def test_an_imported_mamba2_speaks_as_its_source(mamba2, tmp_path, shards):
    model, weights = mamba2
    folder = write_hf(tmp_path / "hf", weights)
    if shards > 1:
        (folder / "model.safetensors").unlink()
        where = {key: f"model-{i % shards}.safetensors" for i, key in enumerate(weights)}
        for file in set(where.values()):
            save_file({k: w for k, w in weights.items() if where[k] == file}, folder / file)
        index = {"weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    convert.import_mamba2(folder, tmp_path / "out")
    loaded, _ = pretrained.load(tmp_path / "out")
    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(loaded(TOKENS)[0], model(TOKENS)[0])


@pytest.mark.tiny
@pytest.mark.parametrize("width", [49, 96, 128, 784])
def test_a_hidden_width_survives_its_quotient(width):
    for hidden in range(32, 5 * width, 32):
        assert int(convert._ratio(hidden, width) * width) == hidden


def test_rwkv6_files_that_do_not_fit_say_why(rwkv6, tmp_path):
    _, weights = rwkv6
    gate, blend = "blocks.1.att.gate.weight", "blocks.1.att.time_maa_g"
    for change, words in (
        ({"blocks.1.att.time_state": torch.ones(2)}, "holds the weight blocks.1.att.time_state"),
        ({gate: torch.ones(3, 3)}, rf"the weight {gate} has shape \[3, 3\]"),
        ({blend: torch.ones(7)}, rf"the weight {blend} has shape \[7\]"),
        ({gate: None}, f"lacks the weight {gate}"),
        ({blend: None}, f"lacks the weight {blend}"),
        ({"blocks.0.att.time_faaaa": None}, r"lacks .*time_faaaa; it is not an RWKV-6"),
        ({"emb.weight": torch.ones(3)}, r"emb.weight has shape \[3\], expected a matrix"),
    ):
        changed = {k: w for k, w in (weights | change).items() if w is not None}
        torch.save(changed, tmp_path / "model.pth")
        with pytest.raises(UserError, match=rf"model\.pth.*{words}"):
            convert.rwkv6_from_pth(tmp_path / "model.pth")


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_rwkv6_files_that_are_no_weights_are_refused_and_never_run(tmp_path):
    file, sprung = tmp_path / "model.pth", tmp_path / "sprung"
    with pytest.raises(UserError, match="cannot read .*model.pth: No such file"):
        convert.rwkv6_from_pth(file)
    torch.save({"emb.weight": Trap(sprung)}, file)
    with pytest.raises(UserError, match="model.pth is damaged or holds more than weights"):
        convert.rwkv6_from_pth(file)
    assert not sprung.exists()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="model.pth is damaged"):
        convert.rwkv6_from_pth(file)
    torch.save([torch.ones(2)], file)
    with pytest.raises(UserError, match="does not hold a table of weights"):
        convert.rwkv6_from_pth(file)


def test_mamba2_folders_that_do_not_fit_say_why(mamba2, tmp_path):
    _, weights = mamba2
    folder = tmp_path / "hf"
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        convert.mamba2_from_hf(folder)
    for settings, words in (
        ({"norm_before_gate": True}, "config.json: norm_before_gate is True; only False"),
        ({"time_step_limit": [0.0, 0.1]}, r"time_step_limit is \[0.0, 0.1\]; only \[0.0, inf\]"),
        ({"model_type": "mamba"}, "model_type is mamba; only mamba2"),
        ({"head_dim": "big"}, "config.json: mamba_head_size must be int"),
        ({"num_hidden_layers": 3}, "lacks the weight backbone.layers.2.norm.weight"),
        ({"num_hidden_layers": 1}, "holds the weight backbone.layers.1."),
        ({"state_size": 4}, "the weight backbone.layers.0.mixer.in_proj.weight has shape"),
        ({"tie_word_embeddings": False}, "lacks the weight lm_head.weight"),
    ):
        with pytest.raises(UserError, match=words):
            convert.mamba2_from_hf(write_hf(folder, weights, **settings))
    write_hf(folder, weights)
    (folder / "model.safetensors").write_bytes(b"0" * 50)
    with pytest.raises(UserError, match=r"cannot read .*model\.safetensors"):
        convert.mamba2_from_hf(folder)
    config = {key: value for key, value in HF.items() if key != "expand"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="config.json lacks the key expand"):
        convert.mamba2_from_hf(folder)
