"""probe states recovers time constants, growth, frozen states, shut gates and linearity by hand."""

from __future__ import annotations

import math

import pytest
import torch
from diagnose.probes import planted
from toys import randomized, small

from groundthink.diagnose.probes import growth, states
from groundthink.diagnose.probes.coupling import spearman
from groundthink.diagnose.probes.evolution import between, edited, superposition
from groundthink.diagnose.probes.walk import observe, walk
from groundthink.models.build import build
from groundthink.verdicts.verdict import Verdict

STOPS = [32, 64, 96, 128]


def texts(count: int = 16, length: int = 128, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 50, (count, length), generator=generator)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def short(monkeypatch):
    """A probe of the whole in a second."""
    for name, value in {
        **{"TURN": 32, "LENGTH": 128, "WARM": 32, "PERMUTATIONS": 99, "EDITED": (8, 32)},
        **{"HALVES": (8, 32), "PREFIX": 32, "REST": 16, "PATH": 16},
    }.items():
        monkeypatch.setattr(states, name, value)
    monkeypatch.setattr(growth, "MOST", 8)


@pytest.mark.parametrize("variant", ["rwkv6", "mamba2"])
def test_what_is_kept_and_what_is_written_make_the_state(variant):
    model = randomized(build(small(variant))).eval()
    for here, _ in walk(model, texts(3), [2, 50]):
        for stop in here.values():
            total = stop.kept + stop.written
            assert (total - stop.after).norm() < 1e-5 * stop.after.norm()


def test_set_time_constants_are_recovered():
    model = planted.model(5.0, 300.0)
    table = observe(model, texts(4), STOPS)
    for name, columns in table.items():
        if "log_decay" in columns:
            tau = -1 / columns["log_decay"].mean(0)
            expected = 5.0 if "blocks.0" in name else 300.0
            assert tau.tolist() == pytest.approx([expected] * len(tau), rel=1e-3)
            forgotten = columns["forgotten"].mean().item()
            assert forgotten == pytest.approx(1 - math.exp(-1 / expected), rel=1e-3)


def test_batches_make_no_difference():
    model, text = planted.model(5.0, 300.0), texts(12)
    whole, one = observe(model, text, STOPS), observe(model, text[8:], STOPS)
    for name, columns in one.items():
        for quantity, values in columns.items():
            pick = slice(4, None) if quantity == "apart" else slice(8, None)
            if len(whole[name][quantity]) == 12 or quantity == "apart":
                assert torch.allclose(whole[name][quantity][pick], values, rtol=1e-3, atol=1e-5)


def test_a_state_knows_its_text_only_if_it_remembers():
    long, brief = (observe(planted.model(tau), texts(32), STOPS) for tau in (1e3, 1.0))
    for branch in ("rwkv6", "mamba2"):
        share, p = states.identity(long[f"blocks.0.{branch}"]["sketch"])
        assert share > 0.1 and p < 0.01
        share, p = states.identity(brief[f"blocks.0.{branch}"]["sketch"])
        assert abs(share) < 0.1 and p > 0.01
    assert states.identity(torch.ones(8, 2, 4)) == (0, 1)


def test_a_frozen_layer_depends_on_no_text_and_never_turns():
    model = planted.model(50.0, 50.0)
    constant = torch.randn(1, 2, 16, 16)

    def freeze(module, inputs, output):
        return output[0], output[1] | {"wkv": constant.expand_as(output[1]["wkv"])}

    model.blocks[1].rwkv6.register_forward_hook(freeze)
    table = observe(model, texts(8), STOPS)
    frozen, live = table["blocks.1.rwkv6"], table["blocks.0.rwkv6"]
    assert frozen["apart"].abs().max() == 0 and live["apart"].min() > 0.1
    assert frozen["turn"].min() > 1 - 1e-6 and live["turn"][:, 1:].max() < 0.999
    assert states.identity(frozen["sketch"]) == (0, 1)


def test_superposition_is_exact_in_the_first_layer_only():
    model = randomized(build(small("gf"))).eval()
    found = superposition(model, texts(8), 64)
    for branch in ("rwkv6", "mamba2"):
        assert found[f"blocks.0.{branch}"].max() < 1e-6
        assert found[f"blocks.1.{branch}"].min() > 1e-3


def test_edits_move_the_state_by_their_number():
    by_count, by_choice = edited(planted.model(1e3), texts(8, 64), (0, 1, 2, 4, 8, 32), 4)
    for branch, distances in by_count.items():
        assert distances[:, 0].abs().max() == 0, "no edit, no distance"
        assert distances.mean(0).diff().min() > 0
        assert by_choice[branch].min() > 0


def test_a_state_nobody_reads_mixes_without_loss():
    model = planted.model(10.0, 10.0)
    heard = between(model, texts(8), 64, (0.0, 0.5, 1.0))
    assert (heard[:, 0] - heard[:, 2]).abs().max() > 1e-4
    for block in model.blocks:
        planted.silence(block)
    losses = between(model, texts(8), 64, (0.0, 0.5, 1.0))
    assert (losses - losses[:, :1]).abs().max() < 1e-5


@pytest.mark.tiny
def test_rank_correlation_of_known_series():
    x = torch.tensor([0, 1, 2, 4, 8])
    series = torch.stack((x**3, -x, torch.tensor([1, 2, 2, 3, 4]), torch.ones(5)))
    expected = [1, -1, 0.9746794, 0]
    assert spearman(x.expand(4, 5), series).tolist() == pytest.approx(expected)


@pytest.mark.tiny
def test_a_path_in_a_plane_is_seen_as_it_is():
    angle = torch.linspace(0, 3, 20, dtype=torch.float64)
    flat = torch.stack((3 * angle.cos(), angle.sin()), 1)
    axes = torch.linalg.qr(torch.randn(50, 2, dtype=torch.float64))[0]
    points, explained = states.principal(flat @ axes.T + 7)
    assert explained == pytest.approx(1)
    assert torch.allclose(torch.cdist(points, points), torch.cdist(flat, flat), atol=1e-6)


def rows(model, **fields) -> dict[str, list[dict]]:
    subject = planted.subject(model, length=300, texts=16, train_length=32, **fields)
    found: dict[str, list[dict]] = {}
    for kind, row in states.states(subject):
        found.setdefault(kind, []).append(row)
    return found


def test_the_probe_finds_a_shut_gate_and_changes_nothing(short):
    model = planted.model(20.0, 20.0)
    model.blocks[1].fusion.gate.proj.bias.data.fill_(20.0)
    before = model(texts())[0]
    found = rows(model)
    assert torch.equal(model(texts())[0], before)
    assert not any(module._forward_hooks for module in model.modules())
    verdicts = {row["name"]: row["verdict"] for row in found["finding"]}
    assert verdicts["gate saturation, blocks.1"] == Verdict.FAIL
    assert verdicts["gate saturation, blocks.0"] == Verdict.PASS
    assert verdicts["superposition residual, blocks.0.rwkv6"] == Verdict.PASS
    assert [row["layer"] for row in found["gate"]] == [0, 1]
    kinds = {"along", "tau", "state", "sizes", "growth", "length", "superposition", "edits"}
    assert found.keys() == {*kinds, "gate", "between", "path", "finding"}
    modules = {(i, branch) for i in (0, 1) for branch in ("rwkv6", "mamba2")}
    for kind in ("along", "tau", "state", "growth", "superposition", "path"):
        assert {(row["layer"], row["branch"]) for row in found[kind]} == modules
    assert all(row["tau"] == pytest.approx(20, rel=1e-3) for row in found["state"])


@pytest.mark.parametrize("variant", ["rwkv6", "mamba2", "gpt2"])
def test_models_of_one_branch_or_none(variant, short):
    found = rows(randomized(build(small(variant))).eval())
    verdicts = {row["verdict"] for row in found["finding"]}
    if variant == "gpt2":
        assert found.keys() == {"finding"} and verdicts == {"INCONCLUSIVE"}
    else:
        assert "sizes" not in found and "gate" not in found
        assert {row["branch"] for row in found["state"]} == {variant}
