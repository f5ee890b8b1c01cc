"""One optimizer step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from groundthink.data.stream import Batch
from groundthink.errors import UserError
from groundthink.models.build import build
from groundthink.models.config import ModelConfig
from groundthink.train.config import TrainConfig
from groundthink.train.step import NonFinite, Stepper

pytestmark = pytest.mark.tiny
CPU = torch.device("cpu")
MODEL = ModelConfig(d_model=32, n_layers=2, vocab_size=50)
CONFIG = TrainConfig(lr=1e-2, schedule="constant", warmup_steps=0)


def gpu(test):
    missing = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(missing, reason="needs a CUDA device")(test))


def batch(rows: int, length: int = 12, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, (rows, length + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = -100
    return Batch(tokens[:, :-1], targets, torch.zeros(rows, length, dtype=torch.bool))


def stepper(carry: bool = False, config: TrainConfig = CONFIG) -> Stepper:
    return Stepper(build(MODEL, seed=1), config, CPU, carry)


def joined(batches: list[Batch], dim: int) -> Batch:
    columns = zip(*((b.tokens, b.targets, b.reset) for b in batches), strict=True)
    return Batch(*(torch.cat(column, dim) for column in columns))


def test_accumulated_step_equals_one_big_batch():
    parts = [batch(2, seed=1), batch(3, seed=2)]
    one, two = stepper(), stepper()
    a, b = one.step(1, [joined(parts, 0)]), two.step(1, parts)
    assert b.loss == pytest.approx(a.loss, rel=1e-6)
    assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-5)
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-7)


def test_state_carries_across_micro_batches_and_steps():
    parts = [batch(2, seed=1), batch(2, seed=2)]
    carrying, whole = stepper(carry=True), stepper(carry=True)
    a, b = carrying.step(1, parts), whole.step(1, [joined(parts, 1)])
    assert a.loss == pytest.approx(b.loss, rel=1e-6)
    for (name, x), (_, y) in zip(carrying.state.items(), whole.state.items(), strict=True):
        assert not x.requires_grad
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6, msg=name)
    fresh = stepper()
    fresh.model.load_state_dict(carrying.model.state_dict())
    assert carrying.step(2, parts).loss != fresh.step(2, parts).loss
    assert fresh.state is None


def test_gradient_norm_is_measured_before_clipping():
    small = stepper(config=TrainConfig(grad_clip=1e-3))
    outcome = small.step(1, [batch(2)])
    assert outcome.grad_norm == stepper().step(1, [batch(2)]).grad_norm > 1e-3
    clipped = nn.utils.get_total_norm([p.grad for p in small.model.parameters()])
    assert clipped.item() == pytest.approx(1e-3, rel=1e-3)


class Norms:
    """Observer of the gradient norm."""

    every = 1

    def start(self, model):
        assert all(p.grad is None for p in model.parameters())

    def finish(self, model):
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
        return [("norm", {"value": norm.item()})]


def test_observers_see_gradients_unclipped():
    outcome = stepper(config=TrainConfig(grad_clip=1e-3)).step(1, [batch(2)], [Norms()])
    assert outcome.observed == [("norm", {"value": outcome.grad_norm})]


@pytest.mark.parametrize("component", ["rwkv6", "mamba2"])
def test_loss_that_is_not_finite_names_its_origin_and_stops(component):
    broken = stepper(carry=True)
    broken.step(1, [batch(2)])
    name = {"rwkv6": "receptance", "mamba2": "in_proj"}[component]
    with torch.no_grad():
        getattr(getattr(broken.model.blocks[1], component), name).weight[0, 0] = torch.nan
    before = {key: x.clone() for key, x in broken.model.state_dict().items()}
    with pytest.raises(NonFinite, match=rf"loss .* blocks.1.{component}\.\w+ \({component}\)"):
        broken.step(2, [batch(2)])
    for key, x in broken.model.state_dict().items():
        torch.testing.assert_close(x, before[key], rtol=0, atol=0, equal_nan=True)


def test_gradient_that_is_not_finite_names_its_origin():
    broken = stepper()
    weight = broken.model.blocks[0].mamba2.out_proj.weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFinite, match=r"gradient .* blocks.0.mamba2.out_proj.weight \(mamba2\)"):
        broken.step(1, [batch(2)])


def test_bf16_keeps_weights_in_fp32_and_stays_near_fp32():
    low, full = stepper(True, TrainConfig(precision="bf16")), stepper(True, TrainConfig())
    assert low.step(1, [batch(2)]).loss == pytest.approx(full.step(1, [batch(2)]).loss, rel=1e-2)
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    assert low.state.layers[0]["rwkv6"]["wkv"].dtype == torch.float32


def test_state_dict_goes_on_exactly():
    straight, stopped, resumed = stepper(True), stepper(True), stepper(True)
    for seed in range(3):
        straight.step(seed + 1, [batch(2, seed=seed)])
    for seed in range(2):
        stopped.step(seed + 1, [batch(2, seed=seed)])
    resumed.model.load_state_dict(stopped.model.state_dict())
    resumed.load_state_dict(stopped.state_dict())
    resumed.step(3, [batch(2, seed=2)])
    for p, q in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_moments_find_their_parameters_under_other_learning_rates():
    """The optimizer groups parameters by their rates, and numbers them by group."""
    one = stepper()
    one.step(1, [batch(2)])
    two = stepper(config=replace(CONFIG, rwkv_lr_mult=3, mamba_warmup_mult=2, weight_decay=0))
    two.load_state_dict(one.state_dict())
    assert len(two.optimizer.param_groups) != len(one.optimizer.param_groups)
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        for name, value in one.optimizer.state[p].items():
            assert torch.equal(two.optimizer.state[q][name], value)


def test_moments_of_other_parameters_are_refused():
    one = stepper()
    one.step(1, [batch(2)])
    stored = one.state_dict()
    stored["optimizer"] = dict(enumerate(stored["optimizer"].values()))
    with pytest.raises(UserError, match="training cannot go on"):
        stepper().load_state_dict(stored)


def test_step_repeats_bit_for_bit():
    runs = [stepper().step(1, [batch(3)]) for _ in range(2)]
    assert runs[0] == runs[1]


@gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_on_a_gpu(precision):
    device = torch.device("cuda")
    config = TrainConfig(lr=1e-2, schedule="constant", warmup_steps=0, precision=precision)
    runner = Stepper(build(MODEL, device=device), config, device, True)
    losses = [runner.step(i, [batch(4)]).loss for i in range(1, 31)]
    assert losses[-1] < losses[0] - 0.5
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}


@gpu
def test_fp16_overflow_leaves_the_step_out_and_lowers_the_scale():
    device = torch.device("cuda")
    config = TrainConfig(lr=1e-2, schedule="constant", warmup_steps=0, precision="fp16")
    runner = Stepper(build(MODEL, device=device), config, device, False)
    runner.scaler.load_state_dict(runner.scaler.state_dict() | {"scale": 2.0**40})
    before = [p.detach().clone() for p in runner.model.parameters()]
    runner.step(1, [batch(4)])
    assert all(torch.equal(p, q) for p, q in zip(before, runner.model.parameters(), strict=True))
    assert runner.scaler.get_scale() < 2.0**40


@gpu
def test_a_recorded_step_is_the_eager_one():
    """With clipping, AdamW and the schedule in it, on new batches and learning rates."""
    device, runs = torch.device("cuda"), []
    for recorded in (True, False):
        config = TrainConfig(lr=1e-2, warmup_steps=3, grad_clip=0.5, cuda_graph=recorded)
        runner = Stepper(build(MODEL, device=device, seed=1), config, device, True)
        outcomes = [runner.step(i, [batch(4, seed=i)]) for i in range(1, 6)]
        assert len(runner.graphs) == recorded
        state = [x for _, x in runner.state.items()]
        runs.append((outcomes, [*runner.model.parameters(), *state]))
    for a, b in zip(runs[0][0], runs[1][0], strict=True):
        assert (a.scored, a.lr) == (b.scored, b.lr)
        assert (a.loss, a.grad_norm) == pytest.approx((b.loss, b.grad_norm), rel=1e-4)
    for p, q in zip(runs[0][1], runs[1][1], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


@gpu
def test_a_recorded_step_that_is_not_finite_leaves_everything_as_it_was():
    device = torch.device("cuda")
    runner = Stepper(build(MODEL, device=device), TrainConfig(), device, True)
    runner.step(1, [batch(2)])
    with torch.no_grad():
        runner.model.blocks[1].mamba2.in_proj.weight[0, 0] = torch.nan
    kept = [*runner.model.parameters(), *(x for _, x in runner.state.items())]
    moments = [x for s in runner.optimizer.state.values() for x in s.values()]
    before = [x.detach().clone() for x in (*kept, *moments)]
    with pytest.raises(NonFinite, match=r"loss .* blocks.1.mamba2"):
        runner.step(2, [batch(2)])
    now = [*runner.model.parameters(), *(x for _, x in runner.state.items()), *moments]
    for x, y in zip(now, before, strict=True):
        torch.testing.assert_close(x.detach(), y, rtol=0, atol=0, equal_nan=True)
