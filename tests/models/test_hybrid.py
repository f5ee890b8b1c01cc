"""Laws that every model obeys, whatever its layout and fusion."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from toys import randomized, small

from groundthink import State, build
from groundthink.errors import UserError
from groundthink.models.layout import expand

T = 23


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(50, (2, T), generator=torch.Generator().manual_seed(0))


def double(variant: str, **changes):
    return randomized(build(small(variant, **changes))).double()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


def test_whole_equals_pieces_equals_steps(variant, tokens):
    model = double(variant)
    whole, end = model(tokens)
    for cuts in ([7, 16], list(range(1, T))):
        state, pieces = None, []
        for piece in tokens.tensor_split(cuts, dim=1):
            logits, state = model(piece, state)
            pieces.append(logits)
        torch.testing.assert_close(torch.cat(pieces, 1), whole)
        for (name, part), (_, expected) in zip(state.items(), end.items(), strict=True):
            torch.testing.assert_close(part, expected, msg=name)
        grads = gradients(model, torch.cat(pieces, 1).square().mean())
        expected = gradients(model, model(tokens)[0].square().mean())
        for grad, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, other)


def test_blocks_that_are_computed_anew_for_their_gradient_give_the_same(tokens):
    model = double("gf")

    def loss(run):
        x = model.embed(tokens)
        for block in model.blocks:
            x, _ = run(block, x)
        return x.square().mean()

    expected = gradients(model.blocks, loss(lambda block, x: block(x)))
    found = gradients(
        model.blocks, loss(lambda block, x: checkpoint(block, x, use_reentrant=False))
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_packed_documents_equal_separate_ones(variant, tokens):
    model = double(variant)
    reset = torch.zeros(2, T, dtype=torch.bool)
    reset[:, [0, 5, 6, 17]] = True
    packed, end = model(tokens, None, reset)
    pieces = [model(piece) for piece in tokens.tensor_split([5, 6, 17], dim=1)]
    torch.testing.assert_close(packed, torch.cat([logits for logits, _ in pieces], 1))
    if model.recurrent:
        for (_, part), (_, expected) in zip(end.items(), pieces[-1][1].items(), strict=True):
            torch.testing.assert_close(part, expected)


def test_no_output_sees_a_later_token(variant, tokens):
    model = build(small(variant))
    before = model(tokens)[0]
    changed = tokens.clone()
    changed[:, 11] = (changed[:, 11] + 1) % 50
    after = model(changed)[0]
    assert torch.equal(before[:, :11], after[:, :11])
    assert not torch.equal(before[:, 11:], after[:, 11:])


def test_every_parameter_receives_gradient(variant, tokens):
    model = randomized(build(small(variant)))
    model(tokens)[0].square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_rows_of_a_batch_do_not_meet(variant, tokens):
    model = double(variant)
    torch.testing.assert_close(model(tokens)[0][1:], model(tokens[1:])[0])


def test_named_states_are_the_true_states_of_all_layers(variant, tokens):
    model = build(small(variant))
    logits, named = model(tokens, return_states=True)
    expected, state = model(tokens)
    assert torch.equal(logits, expected)
    for key, part in (("rwkv_state", ("rwkv6", "wkv")), ("mamba_state", ("mamba2", "ssm"))):
        assert (key in named) == bool(state.part(*part))
        if key in named:
            assert torch.equal(named[key], torch.stack(state.part(*part)))
    assert ("gate" in named) == (model.config.layout == "parallel")
    if "gate" in named:
        assert named["gate"].shape == (2,) and ((named["gate"] >= 0) & (named["gate"] <= 1)).all()


def test_state_round_trip_on_disk(variant, tokens, tmp_path):
    model = build(small(variant))
    state = model(tokens)[1]
    state.save(tmp_path / "state.safetensors")
    loaded = State.load(tmp_path / "state.safetensors")
    loaded.require_fit(state)
    assert torch.equal(model(tokens, loaded)[0], model(tokens, state)[0])


def test_a_state_of_another_model_is_refused(tokens):
    state = build(small("gf")).init_state(1)
    with pytest.raises(
        UserError, match=r"blocks.0.mamba2.conv is \(1, 80, 3\), .* has \(1, 144, 3\)"
    ):
        state.require_fit(build(small("gf", d_model=64)).init_state(1))
    with pytest.raises(UserError, match="cannot read the state file"):
        State.load(__file__)


@pytest.mark.parametrize("name", ["tiny", "quick", "gf-mh-tiny"])
def test_the_seed_fixes_the_weights(name):
    first, again, other = (build(name, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_the_mamba_path_stays_open_when_the_gate_closes(tokens):
    model = build(small("gf", gate_init=0.999999, mamba_direct=0.1))
    model(tokens)[0].square().mean().backward()
    closed = build(small("gf", gate_init=0.999999))
    closed(tokens)[0].square().mean().backward()
    assert torch.equal(model.blocks[0].mamba_direct, torch.full((32,), 0.1))
    open_, shut = (m.blocks[1].mamba2.out_proj.weight.grad.norm() for m in (model, closed))
    assert open_ > 1e3 * shut


def test_balanced_init_starts_both_output_projections_alike():
    model = build(small("gf", d_model=64, init="balanced"))
    r = model.blocks[0].rwkv6.output.weight.detach()
    m = model.blocks[0].mamba2.out_proj.weight.detach()
    # the same output scale from unit inputs: std * sqrt(fan_in)
    assert float(r.std()) * 64**0.5 == pytest.approx(float(m.std()) * 128**0.5, rel=0.05)
    published = build(small("gf", init="published"))
    assert not published.blocks[0].rwkv6.output.weight.any()
    for model, additions in ((published, 4), (build(small("mamba2")), 2)):
        weight = model.blocks[0].mamba2.out_proj.weight
        bound = (weight.shape[1] * additions) ** -0.5
        assert 0.95 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("layout", "layers", "expected"),
    [
        ("parallel", 3, "PPP"),
        ("R M*10 R", 12, "RMMMMMMMMMMR"),
        ("RM", 4, "RMRM"),
        ("r m*2 a", 8, "RMMARMMA"),
        ("mamba2", 2, "MM"),
    ],
)
def test_layouts(layout, layers, expected):
    letters = {("rwkv6", "mamba2"): "P", ("rwkv6",): "R", ("mamba2",): "M", ("attention",): "A"}
    assert "".join(letters[mixers] for mixers in expand(layout, layers)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "R X"}, "cannot be read"),
        ({"layout": "R M*10 R", "n_layers": 8}, "nearest that fits is 12"),
        ({"fusion": "gted"}, "unknown fusion 'gted'"),
        ({"gate_init": 1.0}, "between 0"),
        ({"gate_init_layers": (0.5,)}, "1 values for 2 layers"),
        ({"fusion": "cp", "gate_init": 0.3}, "has no gate"),
        ({"d_model": 40}, "nearest that fits is"),
        ({"n_layers": 0}, "at least 1"),
    ],
)
def test_impossible_configs_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        build(replace(small("gf"), **changes))
    assert "\n" not in str(caught.value)


def test_an_unknown_backend_is_refused_at_once():
    with pytest.raises(UserError, match="unknown model backend 'chunkd'; did you mean chunked"):
        build(small("gf"), backend="chunkd")


def test_attention_mixes_with_recurrence(tokens):
    model = randomized(build(small("gf", layout="P A"))).double()
    whole = model(tokens)[0]
    first, state = model(tokens[:, :9])
    torch.testing.assert_close(torch.cat([first, model(tokens[:, 9:], state)[0]], 1), whole)


def test_gpt2_refuses_what_lies_beyond_its_context(tokens):
    model = build(small("gpt2", context_length=16))
    with pytest.raises(UserError, match="knows 16 positions"):
        model(tokens)


def test_only_a_state_that_keeps_its_size_is_carried():
    layouts = {"parallel": True, "R M": True, "P A": False, "gpt2": False}
    for layout, recurrent in layouts.items():
        assert build(small("gf", layout=layout)).recurrent == recurrent
