"""The operations on a state: what they change, what they share, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from toys import small

from groundthink import State, build
from groundthink.errors import UserError

pytestmark = pytest.mark.tiny
PARTS = ("rwkv6.wkv", "rwkv6.shift", "mamba2.ssm", "mamba2.conv", "ffn.shift")


def noise(seed: int, variant: str = "gf", batch: int = 2) -> State:
    """A state of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    config = small(variant, ffn="rwkv") if variant == "gf" else small(variant)
    zeros = build(config).init_state(batch)
    return zeros.map(lambda x: torch.randn(x.shape, generator=generator))


def differing(a: State, b: State) -> set[str]:
    mine, theirs = dict(a.items()), dict(b.items())
    assert mine.keys() == theirs.keys()
    return {name for name, x in mine.items() if not torch.equal(x, theirs[name])}


def test_all_that_the_layers_carry_is_in_the_tree():
    names = [name for name, _ in noise(0).items()]
    assert names == [f"blocks.{i}.{part}" for i in range(2) for part in PARTS]


@pytest.mark.parametrize(
    ("layers", "parts", "expected"),
    [
        (None, None, {f"blocks.{i}.{part}" for i in range(2) for part in PARTS}),
        ([1], ["rwkv6"], {"blocks.1.rwkv6.wkv", "blocks.1.rwkv6.shift"}),
        (None, ["mamba2.conv"], {"blocks.0.mamba2.conv", "blocks.1.mamba2.conv"}),
        ((0,), {"ffn", "rwkv6.shift"}, {"blocks.0.ffn.shift", "blocks.0.rwkv6.shift"}),
    ],
)
def test_every_operation_changes_the_selected_parts_and_no_other(layers, parts, expected):
    a, b = noise(0), noise(1)
    before = a.clone(), b.clone()
    chosen = {"layers": layers, "parts": parts}
    for changed in (a.zero(**chosen), a.patch(b, **chosen), State.mix(a, b, 0.5, **chosen)):
        assert differing(a, changed) == expected
        kept = dict(changed.items())
        assert all(kept[name] is x for name, x in a.items() if name not in expected)
    assert differing(before[0], a) | differing(before[1], b) == set()


def test_values():
    a, b = noise(0), noise(1)
    for (_, x), (_, y), (_, z) in zip(a.items(), b.items(), a.mix(b, 0.25).items(), strict=True):
        torch.testing.assert_close(z, 0.25 * x + 0.75 * y)
    assert not differing(a.mix(b, 1), a) and not differing(a.mix(b, 0), b)
    assert all(not x.any() for _, x in a.zero().items())
    first, second = a.swap(b, parts=["mamba2"])
    assert not differing(first, a.patch(b, parts=["mamba2"]))
    assert not differing(second, b.patch(a, parts=["mamba2"]))


def test_forks_share_nothing():
    state = noise(0)
    a, b, c = state.fork(3)
    for _, x in a.items():
        x.zero_()
    assert not differing(state, b) and not differing(state, c)


def test_a_reset_begins_the_chosen_rows_anew():
    state = noise(0)
    poisoned = state.map(lambda x: torch.stack((torch.full_like(x[0], torch.nan), x[1])))
    begun = poisoned.reset(torch.tensor([True, False]))
    for (_, x), (_, y) in zip(begun.items(), state.items(), strict=True):
        assert not x[0].any() and torch.equal(x[1], y[1])


@pytest.mark.parametrize("variant", ["gpt2", "gf"])
def test_after_a_reset_the_model_begins_anew(variant):
    layout = {"layout": "P A"} if variant == "gf" else {}
    model = build(small(variant, **layout))
    tokens = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))
    _, state = model(tokens[:, :7])
    again, _ = model(tokens[:, 7:], state.reset(torch.tensor([True, False])))
    torch.testing.assert_close(again[:1], model(tokens[:1, 7:])[0])
    torch.testing.assert_close(again[1:], model(tokens[1:])[0][:, 7:])


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"parts": ["rwkv"]}, "unknown part of the state 'rwkv'; did you mean rwkv6"),
        ({"parts": ["mamba2.wkv"]}, "did you mean mamba2"),
        ({"layers": [2]}, "no layer 2; the state has 0 to 1"),
        ({"layers": []}, "nothing selected"),
    ],
)
def test_a_wrong_selection_is_one_line(selection, message):
    with pytest.raises(UserError, match=message):
        noise(0).zero(**selection)


def test_states_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="one of them has no blocks.0.ffn"):
        noise(0).patch(noise(0, "mamba2"))
    with pytest.raises(UserError, match=r"rwkv6.wkv is \(2, 2, 16, 16\) in one, \(1, "):
        noise(0).mix(noise(0, batch=1))
    model = build(small("gpt2"))
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    fresh = model(tokens)[1]
    begun = fresh.reset(torch.tensor([True]))
    assert not differing(fresh.patch(begun), begun), "caches of one size are exchanged"
    with pytest.raises(UserError, match="different tokens cannot be mixed"):
        fresh.mix(begun)
    with pytest.raises(UserError, match="do not fit: blocks.0.attention.k"):
        fresh.patch(model(tokens[:, :3])[1])


def test_a_file_without_a_state_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"blocks.0.rwkv6.key.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds no state"):
        State.load(tmp_path / "model.safetensors")
    noise(0).save(tmp_path / "session.safetensors", extra=torch.ones(2))
    state, extra = State.read(tmp_path / "session.safetensors")
    assert not differing(state, noise(0)) and extra["extra"].sum() == 2
    assert not differing(State.load(tmp_path / "session.safetensors"), noise(0))
