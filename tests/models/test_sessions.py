"""Laws of the whole state: whoever holds it holds the past, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from toys import randomized, small

from groundthink import State, build

CUTS = (1, 63, 64)
"""Around the edges of chunks."""
each_mixer = pytest.mark.parametrize("variant", ["gf", "rwkv6", "mamba2", "gpt2"])


@pytest.fixture
def model(variant):
    return randomized(build(small(variant))).eval()


@pytest.fixture
def texts() -> torch.Tensor:
    return torch.randint(50, (2, 1, 80), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_full_transplant_continues_the_donor_to_the_last_bit(model, variant, texts, tmp_path):
    """After any prefix; by way of the disk, into a model built anew that has read another text."""
    donor, other = texts
    twin = randomized(build(small(variant))).eval()
    for cut in CUTS:
        _, state = model(donor[:, :cut])
        expected, end = model(donor[:, cut:], state)
        state.save(tmp_path / "state.safetensors")
        _, host = twin(other[:, :cut])
        moved = host.patch(State.load(tmp_path / "state.safetensors"))
        found, arrived = twin(donor[:, cut:], moved)
        assert torch.equal(found, expected), cut
        ends = zip(arrived.items(), end.items(), strict=True)
        assert all(torch.equal(x, y) for (_, x), (_, y) in ends)


@each_mixer
@torch.no_grad()
def test_every_part_of_every_layer_carries_something(model, texts):
    """A transplant that leaves out any one part is another continuation: no part is idle."""
    donor, other = texts
    state, host = model(donor[:, :20])[1], model(other[:, :20])[1]
    expected = model(donor[:, 20:], state)[0]
    for layer in range(len(state.layers)):
        for part in {name.split(".", 2)[2] for name in state.select(layers=[layer])}:
            if part != "attention.start":  # equal in both: no text was reset
                partial = state.patch(host, layers=[layer], parts=[part])
                assert not torch.equal(model(donor[:, 20:], partial)[0], expected), (layer, part)


@each_mixer
@torch.no_grad()
def test_separate_sessions_leak_exactly_nothing(model, texts):
    mine, theirs = texts
    alone, state = [], None
    for piece in mine.split(20, 1):
        logits, state = model(piece, state)
        alone.append(logits)
    state, other = None, None
    for piece, between, expected in zip(mine.split(20, 1), theirs.split(20, 1), alone, strict=True):
        logits, state = model(piece, state)
        _, other = model(between, other)
        assert torch.equal(logits, expected)


@each_mixer
@torch.no_grad()
def test_pads_before_a_reset_change_nothing(model, texts):
    """The offered way to serve texts of two lengths at once: pad on the left, reset at the first
    token. Pads on the right would be read as text; serve equal lengths together instead."""
    model = model.double()
    text = texts[0][:, :30]
    expected, state = model(text[:, :20])
    after, _ = model(text[:, 20:], state)
    for pad in (1, 13):
        padded = torch.cat((torch.full((1, pad), 3), text[:, :20]), 1)
        batch = torch.cat((padded, torch.full_like(padded, 7)))
        reset = torch.zeros(batch.shape, dtype=torch.bool)
        reset[0, pad] = True
        logits, states = model(batch, None, reset)
        torch.testing.assert_close(logits[:1, pad:], expected)
        again, _ = model(text[:, 20:], states.map(lambda x: x[:1]))
        torch.testing.assert_close(again, after)
