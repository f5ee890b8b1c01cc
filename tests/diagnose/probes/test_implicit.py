"""The implicit attention of a layer: it adds up to the layer, and has the reach that was set."""

from __future__ import annotations

import pytest
import torch
from toys import randomized, small

from groundthink import build
from groundthink.diagnose.probes.context import reach
from groundthink.diagnose.probes.implicit import implicit
from groundthink.models.names import VARIANTS

T = 40
TOKENS = torch.randint(50, (T,), generator=torch.Generator().manual_seed(0))
RESET = torch.zeros(T, dtype=torch.bool)
RESET[[17, 18]] = True
OTHERS = {
    "direct": {"mamba_direct": 0.1},
    "mixed": {"layout": "P A R M", "n_layers": 4},
    "no-norm": {"branch_norm": "none"},
    "groups": {"mamba_groups": 2, "mamba_conv": 3, "ffn": "rwkv"},
}


def model_of(name: str):
    config = small("gf", **OTHERS[name]) if name in OTHERS else small(name)
    return randomized(build(config)).eval()


def planted(variant: str, **weights):
    """One layer of one mixer whose named parameters are set."""
    model = randomized(build(small(variant, n_layers=1))).eval()
    (mixer,) = [getattr(model.blocks[0], name) for name in model.blocks[0].mixers]
    with torch.no_grad():
        for name, value in weights.items():
            mixer.get_parameter(name.replace("__", ".")).copy_(torch.as_tensor(value))
    return model


def weights_of(model, tokens, reset=None):
    (layer,) = implicit(model, tokens, reset)
    (branch,) = layer.parts
    return layer.weights(branch)


@pytest.mark.parametrize("name", [*VARIANTS, *OTHERS])
def test_the_summands_add_up_to_the_layer(name):
    model = model_of(name).double()
    for reset in (None, RESET):
        layers = list(implicit(model, TOKENS, reset))
        assert [layer.layer for layer in layers] == list(range(model.config.n_layers))
        assert max(layer.error for layer in layers) < 1e-12
    text = RESET.cumsum(0)
    unseen = (text[:, None] != text) | torch.ones(T, T, dtype=torch.bool).triu(1)
    for layer in layers:
        for branch in layer.parts:
            weights = layer.weights(branch)
            assert not weights[unseen].any(), "nothing comes from later, or over a reset"
            assert weights[~unseen].all()


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_set_decay_has_its_distance(keep):
    """On one token repeated, all writes are alike and sum_d d keep^d / sum_d keep^d is left."""
    same = torch.full((200,), 7)
    log_rate = torch.tensor(keep).log().neg().log()
    nothing = {"time_maa": 0.0, "time_maa_w2": 0.0, "time_decay_w2": 0.0, "time_faaaa": 0.0}
    rwkv = planted("rwkv6", time_decay=log_rate, **nothing)
    assert reach(weights_of(rwkv, same)).distance == pytest.approx(1 / (1 - keep), rel=1e-3)
    newest = torch.tensor([0.0, 0.0, 0.0, 1.0])
    mamba = planted("mamba2", conv1d__weight=newest, conv1d__bias=0.0, D=0.0)
    mixer = mamba.blocks[0].mamba2
    with torch.no_grad():
        mixer.in_proj.weight[-mixer.heads[0] :] = 0
        mixer.dt_bias.fill_(0.0)  # steps of ln 2
        mixer.A_log.copy_(log_rate - torch.tensor(2.0).log().log())
    expected = keep / (1 - keep)
    assert reach(weights_of(mamba, same)).distance == pytest.approx(expected, rel=1e-3)


def test_each_path_is_given_to_the_token_that_it_starts_from():
    """A convolution of one tap reads one token; a full token shift makes each write its
    predecessor's."""
    taps = torch.tensor([1.0, 0.0, 0.0, 0.0])  # three tokens ago
    still = planted("mamba2", conv1d__weight=taps, conv1d__bias=0.0, dt_bias=-1e3, D=1.0)
    weights = weights_of(still, TOKENS)
    assert weights.diagonal(-3).all() and weights.count_nonzero() == T - 3
    shifted = planted("rwkv6", time_maa=1.0, time_maa_w2=0.0, time_decay=9.0, time_decay_w2=0.0)
    weights = weights_of(shifted, TOKENS)  # by the bonus, and by a state of one write
    assert weights.diagonal(-1).all() and weights.diagonal(-2).all()
    assert weights.count_nonzero() == (T - 1) + (T - 2)


@pytest.mark.tiny
def test_the_reach_of_known_weights():
    weights = torch.zeros(8, 8)
    weights.diagonal(-1).fill_(3.0)
    weights.diagonal().fill_(1.0)
    found = reach(weights)
    assert found.distance == pytest.approx(0.75)
    assert found.beyond[:2].tolist() == [0.75, 0.0]
    assert reach(torch.zeros(8, 8)).distance == 0
