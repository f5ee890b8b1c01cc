"""An ablation cuts what it says, nothing else, and leaves no trace."""

from __future__ import annotations

import pytest
import torch
from toys import randomized, small

from groundthink.diagnose.probes import ablation
from groundthink.diagnose.probes.ablation import MIXERS, SITES, Cut, ablated
from groundthink.errors import UserError
from groundthink.models.build import build

AT = 11
TOKENS = torch.randint(0, 50, (3, 24), generator=torch.Generator().manual_seed(0))
HYBRIDS = ["gf", "hgf", "hy", "ws", "rf", "cp"]


def model_of(variant: str, **changes):
    return randomized(build(small(variant, **changes))).eval()


def branches_of(model) -> list[str]:
    return [name for name in MIXERS if hasattr(model.blocks[0], name)]


@torch.no_grad()
def logits(model, *cuts: Cut, after: int = 0) -> torch.Tensor:
    """Of the tokens that follow the first ones, which are read with no cut."""
    state = model(TOKENS[:, :after])[1] if after else None
    with ablated(model, *cuts):
        return model(TOKENS[:, after:], state)[0]


def itself(_, part):
    return part


@pytest.mark.parametrize("variant", [*HYBRIDS, "rwkv6", "mamba2", "gpt2"])
def test_a_part_replaced_by_itself_changes_no_bit_and_by_nothing_changes_all(variant):
    model = model_of(variant)
    whole = logits(model)
    torch.testing.assert_close(whole, model(TOKENS)[0])
    for branch in branches_of(model):
        for site in SITES if branch != "attention" else ("output", "memory"):
            after = AT if site == "memory" else 0
            whole = logits(model, after=after)
            assert torch.equal(logits(model, Cut(branch, site, itself), after=after), whole)
            change = (logits(model, Cut(branch, site), after=after) - whole).abs().amax(-1)
            first = 1 if site == "read" else 0
            assert change[:, first:].min() > 1e-4
            assert change[:, :first].sum() < 1e-4, "only a kernel may round differently"


def test_cutting_the_output_is_a_branch_that_projects_to_zero():
    """In a fusion whose gains do not look at the branches, with the direct path around them."""
    model = model_of("hy", mamba_direct=0.5)
    for branch, projection in (("rwkv6", "output"), ("mamba2", "out_proj")):
        cut = logits(model, Cut(branch, layers=[1]))
        weight = getattr(getattr(model.blocks[1], branch), projection).weight
        kept = weight.detach().clone()
        torch.nn.init.zeros_(weight)
        torch.testing.assert_close(cut, logits(model))
        assert torch.equal(logits(model, Cut(branch, layers=[1])), logits(model))
        weight.data.copy_(kept)


@pytest.mark.parametrize(("branch", "part"), [("rwkv6", "wkv"), ("mamba2", "ssm")])
def test_cutting_the_read_empties_the_matrix_before_every_token(branch, part):
    model = model_of("gf", n_layers=1).double()
    state, steps = None, []
    with torch.no_grad(), ablated(model):
        for t in range(TOKENS.shape[1]):
            one, state = model(TOKENS[:, t : t + 1], state)
            state.layers[0][branch][part].zero_()
            steps.append(one)
    torch.testing.assert_close(logits(model, Cut(branch, "read")), torch.cat(steps, 1))


@pytest.mark.parametrize("variant", ["gf", "rwkv6", "mamba2"])
def test_cutting_the_memory_edits_the_state_once(variant):
    model = model_of(variant)
    state, donor = (model(x[:, :AT])[1] for x in (TOKENS, TOKENS.flip(1)))
    for branch in branches_of(model):
        for other, replace in (
            (donor, lambda name, _: dict(donor.items())[name]),
            (state.zero(), ablation.zero),
        ):
            with torch.no_grad(), ablated(model):
                edited = state.patch(other, layers=[1], parts=[branch])
                expected = model(TOKENS[:, AT:], edited)[0]
            cut = Cut(branch, "memory", replace, layers=[1])
            torch.testing.assert_close(logits(model, cut, after=AT), expected)


def test_attention_forgets_the_tokens_before_and_keeps_its_positions():
    model = model_of("gpt2", n_layers=1)
    cut = Cut("attention", "memory")
    with torch.no_grad():
        other = model(torch.full_like(TOKENS[:, :AT], 7))[1]
        with ablated(model, cut):
            assert torch.equal(model(TOKENS[:, AT:], other)[0], logits(model, cut, after=AT))


def test_nothing_is_left_behind_even_after_an_error():
    model = model_of("gf")
    before = model(TOKENS)[0]
    names = {name: set(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(ZeroDivisionError), ablated(model, *(Cut("rwkv6", s) for s in SITES)):
        model(TOKENS)
        raise ZeroDivisionError
    assert {name: set(vars(module)) for name, module in model.named_modules()} == names
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model(TOKENS)[0], before)


def test_a_cut_that_cannot_be_made_says_so():
    model = model_of("gpt2")
    for cut, words in (
        (Cut("rwkv"), "unknown branch of this model 'rwkv'"),
        (Cut("attention", "outputs"), "did you mean"),
        (Cut("attention", "read"), "no recurrence to cut"),
    ):
        with pytest.raises(UserError, match=words), ablated(model, cut):
            pass
