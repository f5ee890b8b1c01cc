"""The balance of models whose branches do what they are told to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diagnose.probes.told import BITS, PRODUCT, U, V, model, subject
from toys import randomized, small

from groundthink.diagnose.probes import balance as probe
from groundthink.diagnose.probes import optimal
from groundthink.diagnose.probes.arms import MODES, Arm, subsets
from groundthink.diagnose.probes.mixing import fusions, mixing, quantities
from groundthink.diagnose.probes.shapley import Effect, adjust, effect
from groundthink.diagnose.subject import Subject
from groundthink.errors import UserError
from groundthink.models.build import build
from groundthink.verdicts.statistics import Paired

BOTH = ("rwkv6", "mamba2")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for module, name, value in (
        (probe, "LENGTH", 32),
        (probe, "AT", 16),
        (probe, "REFERENCE", 8),
        (optimal, "STEPS", 8),
    ):
        monkeypatch.setattr(module, name, value)


def balance(subject: Subject) -> tuple[dict[tuple, dict], dict[str, dict]]:
    """Effects by (scope, layer, site, mode), and findings by name."""
    rows = probe.balance(subject)
    keys = ("scope", "layer", "site", "mode")
    effects = {tuple(r[key] for key in keys): r for kind, r in rows if kind == "effect"}
    return effects, {r["name"]: r for kind, r in rows if kind == "finding"}


def pieces(seed: int) -> tuple[str, str]:
    """The two branches, in an order that the seed decides."""
    return BOTH[seed % 2], BOTH[1 - seed % 2]


def dead(seed: int) -> None:
    """One branch answers and the other writes nothing."""
    knows, silent = pieces(seed)
    net = model(**{knows: (0, U), silent: None}, reads=U)
    effects, findings = balance(subject(net, BITS[:, 0], seed))
    for mode in MODES[:3]:
        found = effects["all", 0, "output", mode]
        assert found["phi"][silent] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 16}
        assert found["phi"][knows]["low"] > 0.3
    assert findings[f"contribution, {silent}"]["verdict"] == "FAIL"
    assert findings[f"contribution of a layer, blocks.0.{silent}"]["verdict"] == "FAIL"
    assert findings[f"contribution, {knows}"]["verdict"] == "PASS"


def redundant(seed: int) -> None:
    """Both branches know the answer."""
    net = model((0, U), (0, U), reads=U)
    effects, findings = balance(subject(net, BITS[:, 0], seed))
    for mode in MODES:
        found = effects["all", 0, "output", mode]
        assert found["interaction"]["high"] < -0.3
        assert found["share"]["value"] == pytest.approx(0.5, abs=1e-6)
    assert all(findings[f"contribution, {branch}"]["verdict"] == "PASS" for branch in BOTH)


def synergistic(seed: int) -> None:
    """The answer is in the product of two bits, and each branch knows one."""
    first, second = pieces(seed)
    net = model(**{first: (0, U), second: (1, V)}, reads=PRODUCT)
    effects, _ = balance(subject(net, BITS.prod(1), seed))
    for mode in MODES:
        found = effects["all", 0, "output", mode]
        assert found["interaction"]["low"] > 0.3
    by_nothing = effects["all", 0, "output", "zero"]["phi"]
    assert all(by_nothing[branch]["low"] > 0.15 for branch in BOTH)


PLANTS = pytest.mark.parametrize("plant", [dead, redundant, synergistic])


@PLANTS
@pytest.mark.parametrize("seed", range(2))
def test_a_planted_balance_is_recovered(plant, seed):
    plant(seed)


@pytest.mark.slow
@PLANTS
def test_a_planted_balance_is_recovered_twenty_times_in_twenty(plant):
    for seed in range(20):
        plant(seed)


def real(variant: str = "gf", **changes) -> Subject:
    """A randomized model on random text."""
    net = randomized(build(small(variant, **changes))).eval()
    texts = torch.randint(0, 50, (14, 40), generator=torch.Generator().manual_seed(0))
    return Subject(net, [], documents=list(texts), samples=6, steps=1)


def test_a_branch_that_projects_to_zero_is_worth_exactly_nothing_anywhere():
    toy = real()
    for block in toy.model.blocks:
        torch.nn.init.zeros_(block.mamba2.out_proj.weight)
    effects, findings = balance(toy)
    for (_, _, _, mode), found in effects.items():
        bound = 0.0 if mode != "optimal" else 1e-5  # its constants move on by a millionth
        assert abs(found["phi"]["mamba2"]["value"]) <= bound
        assert found["phi"]["mamba2"]["high"] <= bound
    names = [f"{what}, mamba2" for what in ("contribution", "memory")]
    names += [f"contribution of a layer, blocks.{i}.mamba2" for i in range(2)]
    assert {findings[name]["verdict"] for name in names} == {"FAIL"}


def test_scopes_agree_where_they_meet_and_the_model_is_left_as_it_was():
    toy = real()
    before = {name: x.clone() for name, x in toy.model.state_dict().items()}
    effects, _ = balance(toy)
    prefix = effects["prefix", 0, "output", "zero"]["loss"]
    assert prefix == pytest.approx(effects["layer", 0, "output", "zero"]["loss"], rel=1e-6)
    for found in effects.values():
        loss, phi = found["loss"], found["phi"]
        total = sum(phi[branch]["value"] for branch in BOTH)
        assert total == pytest.approx(loss[""] - loss["rwkv6+mamba2"], abs=1e-12)
    assert all(torch.equal(before[name], x) for name, x in toy.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in toy.model.parameters())


@pytest.mark.parametrize("variant", ["rwkv6", "mamba2", "gpt2"])
def test_one_kind_of_mixer_has_a_memory_and_no_balance(variant):
    effects, findings = balance(real(variant))
    assert {site for _, _, site, _ in effects} == {"memory"}
    branch = "attention" if variant == "gpt2" else variant
    whole = effects["all", 1, "memory", "zero"]
    assert list(whole["phi"]) == [branch] and whole["interaction"] is None
    assert whole["phi"][branch]["value"] == pytest.approx(whole["loss"][""] - whole["loss"][branch])
    assert findings["contribution"]["verdict"] == "INCONCLUSIVE"
    assert findings["contribution"]["note"].startswith("skipped")


def losses(one: float, other: float, none: float, both: float) -> Paired:
    """Four texts that lose the same."""
    arms = dict(zip(subsets(BOTH), (one, other, none), strict=True))
    columns = {Arm("all", 0, "output", "zero", active): x for active, x in arms.items()}
    return Paired({name: np.full(4, x) for name, x in {**columns, "output": both}.items()})


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("table", "interaction", "phi"),
    [
        ((1, 1, 3, 1), -2, (1, 1)),  # OR: either alone does
        ((3, 3, 3, 1), 2, (1, 1)),  # AND: only both do
        ((1, 3, 3, 1), 0, (2, 0)),  # the first alone
        ((2, 1, 3, 0), 0, (1, 2)),  # additive
    ],
)
def test_shapley_and_interaction_of_the_textbook(table, interaction, phi):
    found = effect(losses(*table), Arm("all", 0, "output", "zero", ()), BOTH)
    assert found.interaction and found.share
    assert found.interaction.value == interaction
    assert tuple(found.phi[branch].value for branch in BOTH) == phi
    assert found.share.value == phi[0] / sum(phi)


@pytest.mark.tiny
def test_p_values_are_adjusted_within_their_family():
    arms = [
        Arm("layer", i, "output", mode, ()) for i, mode in ((0, "zero"), (1, "zero"), (0, "mean"))
    ]
    found = [Effect(a.scope, a.layer, a.site, a.mode, 4, {}, {}, None, None) for a in arms]
    for one, p in zip(found, (0.01, 0.03, 0.04), strict=True):
        one.p = {"rwkv6": p, "mamba2": 0.9, "interaction": p}
    adjust(found)
    assert [one.p["rwkv6"] for one in found] == pytest.approx([0.04, 0.09, 0.08])
    assert [one.p["interaction"] for one in found] == pytest.approx([0.02, 0.03, 0.04])


def test_gates_and_shares_are_those_of_the_forward_pass():
    toy = real("hgf")
    with torch.no_grad(), fusions(toy.model) as calls:
        toy.model(probe.texts(toy)[0])
        found = {name: x.numpy() for name, x in quantities(toy.model, calls)}
        fusion = toy.model.blocks[0].fusion
        inputs = calls["blocks.0.fusion"][0].inputs
        (r, m), gate = fusion.parts(*inputs), fusion.gate(*inputs)
    layer = mixing(Paired(found))[0]
    y = r + m
    assert layer["share"]["value"] == pytest.approx(float((r * y).sum() / (y * y).sum()), rel=1e-4)
    assert layer["gate"]["value"] == pytest.approx(float(gate.mean()), rel=1e-4)
    assert layer["gate"]["sd"] == pytest.approx(float(gate.std()), rel=1e-3)


@pytest.mark.tiny
def test_gradients_come_from_the_records_of_the_run():
    first = {"kind": "balance", "grad_rms": {"rwkv6": 9.0}, "update_ratio": None}
    rest = [
        {"kind": "balance", "grad_rms": {"rwkv6": x}, "update_ratio": {"rwkv6": x / 10}}
        for x in (1.0, 2.0)
    ]
    toy = Subject(build(small("gf")), [], records=[first, *rest])
    assert probe.gradients(toy) == [
        {"records": 2, "grad_rms": {"rwkv6": 1.5}, "update_ratio": {"rwkv6": pytest.approx(0.15)}}
    ]
    assert probe.gradients(Subject(toy.model, [])) == []


@pytest.mark.tiny
def test_the_reference_shares_no_document_with_the_study():
    texts = [torch.randint(0, 50, (length,)) for length in range(140, 40, -5)]
    toy = Subject(build(small("gf")), [], documents=texts, samples=20)
    study, clusters, reference = probe.texts(toy)
    assert len(study) == len(clusters) <= 20 and len(reference) >= 8
    starts = {tuple(text[:32].tolist()): i for i, text in enumerate(texts)}
    known = {starts.get(tuple(row.tolist())) for row in reference} - {None}
    assert known and not known & set(clusters)
    with pytest.raises(UserError, match="at least|or more"):
        probe.texts(Subject(toy.model, [], documents=texts, samples=1))
