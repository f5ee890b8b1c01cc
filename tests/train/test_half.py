"""Matrices cast once a pass give what autocast gives casting them one by one."""

from __future__ import annotations

import pytest
import torch
from toys import randomized, small

from groundthink.data.stream import Batch
from groundthink.models.build import build
from groundthink.ops.testing import relative_rms
from groundthink.train.config import TrainConfig
from groundthink.train.half import castable, halves
from groundthink.train.step import Stepper

pytestmark = pytest.mark.tiny


def test_copies_are_aligned_and_gradients_come_back_in_full():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2), torch.nn.Linear(2, 1))
    assert castable(model) == ["0.weight", "1.weight"]
    cast = halves(model, castable(model), torch.bfloat16)
    weight = cast["1.weight"]
    assert torch.equal(weight, model[1].weight.bfloat16())
    assert weight.data_ptr() - cast["0.weight"].data_ptr() == 128
    weight.square().sum().backward()
    expected = 2 * model[1].weight.bfloat16().float()
    torch.testing.assert_close(model[1].weight.grad, expected.detach())
    assert model[0].weight.grad is None


@pytest.mark.parametrize("name", ["gf-mh", "gpt2"])
def test_a_step_is_as_close_to_full_precision_as_that_of_autocast_alone(name):
    tokens = torch.randint(90, (2, 13), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.zeros(2, 12, dtype=torch.bool))

    def step(precision: str, once: bool) -> tuple[float, torch.Tensor]:
        model = randomized(build(small(name), vocab_size=90))
        config = TrainConfig(precision=precision)
        stepper = Stepper(model, config, torch.device("cpu"), name != "gpt2")
        if once:
            assert "blocks.0.norm1.weight" not in stepper.castable and stepper.castable
        else:
            stepper.castable = []
        outcome = stepper.step(1, [batch])
        return outcome.loss, torch.cat([p.grad.flatten() for p in stepper.model.parameters()])

    (loss, full), auto, once = step("fp32", False), step("bf16", False), step("bf16", True)
    assert once[0] == pytest.approx(loss, rel=4 * 2**-8)  # bf16 keeps 8 bits
    assert relative_rms(once[1], full) <= 1.25 * relative_rms(auto[1], full)
