"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math

import pytest
import torch

from groundthink.models.build import build
from groundthink.models.components import branch
from groundthink.models.config import ModelConfig
from groundthink.train.config import TrainConfig
from groundthink.train.optim import (
    adamw,
    decays,
    factor,
    parameter_groups,
    set_lr,
    step_unless,
)

pytestmark = pytest.mark.tiny
CPU = torch.device("cpu")


def model(**kwargs):
    return build(ModelConfig(d_model=32, n_layers=2, **kwargs))


@pytest.mark.parametrize("layout", ["P", "R", "M", "R A", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_in_exactly_one_group(layout, tied):
    net = model(layout=layout, tie_embeddings=tied, ffn="gelu")
    grouped = [p for g in parameter_groups(net, TrainConfig()) for p in g["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, net.parameters()))


def test_decay_holds_for_matrices_only():
    net = model(ffn="rwkv", embed_norm=True)
    decayed = {name.split(".")[-2] for name, p in net.named_parameters() if decays(name, p)}
    assert decayed == {
        *("embed", "receptance", "key", "value", "gate", "output"),
        *("in_proj", "conv1d", "out_proj", "proj"),
    }


def test_learning_rates_follow_component_and_decay_base():
    config = TrainConfig(
        lr=1e-3, schedule="constant", warmup_steps=0, rwkv_lr_mult=3, mamba_lr_mult=0.5
    )
    net = model()
    optimizer = adamw(net, config, CPU)
    assert set_lr(optimizer, 1, config) == 1e-3
    lr = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"rwkv6": 3e-3, "mamba2": 5e-4, "other": 1e-3}
    for name, p in net.named_parameters():
        twofold = 2 if name.endswith("time_decay") else 1
        assert lr[id(p)] == pytest.approx(twofold * expected[branch(name)]), name


def test_cosine_reaches_peak_and_floor():
    config = TrainConfig(steps=100, warmup_steps=10, lr=1.0, min_lr=0.1, schedule="cosine")
    assert [factor(s, config) for s in (1, 5, 10)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(55, config) == pytest.approx(0.55)
    assert factor(100, config) == pytest.approx(0.1)
    rates = [factor(s, config) for s in range(10, 101)]
    assert rates == sorted(rates, reverse=True)


def test_wsd_is_stable_then_falls_linearly():
    config = TrainConfig(
        steps=100, warmup_steps=10, lr=1.0, min_lr=0.0, schedule="wsd", decay_fraction=0.2
    )
    assert {factor(s, config) for s in range(10, 81)} == {1.0}
    assert [factor(s, config) for s in (85, 90, 100)] == pytest.approx([0.75, 0.5, 0.0])


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_schedule_of_a_run_shorter_than_its_warmup(schedule):
    config = TrainConfig(steps=3, warmup_steps=10, schedule=schedule)
    assert all(math.isfinite(factor(s, config)) and factor(s, config) <= s / 10 for s in (1, 2, 3))


def test_a_longer_warmup_differs_in_the_warmup_only():
    config = TrainConfig(steps=100, warmup_steps=10)
    assert factor(10, config, 2.0) == pytest.approx(0.5 * factor(10, config))
    assert all(factor(s, config, 2.0) == factor(s, config) for s in range(20, 101))


def test_weight_decay_moves_decayed_weights_alone():
    config = TrainConfig(lr=0.1, weight_decay=0.5, schedule="constant", warmup_steps=0)
    net = model()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer = adamw(net, config, CPU)
    set_lr(optimizer, 1, config)
    optimizer.step()
    for name, p in net.named_parameters():
        expected = before[name] * (1 - 0.05 if decays(name, p) else 1)
        torch.testing.assert_close(p.detach(), expected)


def test_a_step_that_the_device_decides_on_clips_or_leaves_all_as_it_is():
    def learner():
        torch.manual_seed(0)
        linear = torch.nn.Linear(3, 2)
        linear(torch.randn(5, 3)).square().sum().backward()
        return linear, adamw(linear, TrainConfig(lr=1e-2), CPU)

    (one, first), (two, second) = learner(), learner()
    norm = torch.nn.utils.clip_grad_norm_(one.parameters(), 0.1)
    first.step()
    before = [p.detach().clone() for p in two.parameters()]
    step_unless(torch.ones(()), second)
    assert all(torch.equal(p, q) for p, q in zip(two.parameters(), before, strict=True))
    step_unless(torch.zeros(()), second, (norm / 0.1).clamp(min=1))
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    assert not hasattr(second, "found_inf")
