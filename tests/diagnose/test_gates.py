"""How gates are chosen and run, and what an untrained model is told."""

from __future__ import annotations

import pytest
from diagnose.subjects import subject

from groundthink.diagnose.gates import GATES, SUITES, ids_of, run_gates
from groundthink.errors import UserError

pytestmark = pytest.mark.tiny
ORDER = ["G0", "G1", "G2", "checkpoint", "G3", "evolution", "baseline", "G3.5", "G4"]


@pytest.fixture(scope="module")
def fresh():
    return subject("rwkv6", shape=(4, 4, 128), steps=0)


def test_the_table_is_in_the_order_of_the_gates_and_says_what_they_do():
    assert list(GATES)[: len(ORDER)] == ORDER
    for gate in GATES.values():
        assert gate.__doc__.partition("\n")[0].endswith(".")


def test_an_unknown_gate_is_one_line_with_near_names(fresh):
    with pytest.raises(UserError, match="unknown gate 'G35'; did you mean G3.5 or G3"):
        run_gates(fresh, ["G35"])


def test_an_untrained_model_is_refused_before_anything_runs(fresh):
    with pytest.raises(UserError, match="the model is untrained, and G3, .* mean nothing"):
        run_gates(fresh)
    with pytest.raises(UserError, match="and G4 mean"):
        run_gates(fresh, ["G2", "G4"])


def test_an_untrained_model_may_be_checked_if_every_note_says_so(fresh):
    findings = run_gates(fresh, ["G3", "outputs"], allow_untrained=True)
    assert len(findings) > 3
    assert all(finding.note.startswith("untrained model") for finding in findings)


def test_gates_that_need_no_training_run_on_a_fresh_model(fresh):
    ids = {finding.id for finding in run_gates(fresh, ["checkpoint", "pre-balance"])}
    assert ids == {"checkpoint", "pre-balance"}


def test_suites_share_out_the_gates_and_graduation_takes_from_them(fresh):
    gates, states, diagnostics, graduation = map(ids_of, SUITES)
    assert not set(gates) & set(states) & set(diagnostics)
    assert states[:7] == ["S0", "S1", "S2", "S3", "S3b", "S4", "S4b"]
    assert diagnostics == ["D1", "D2", "D3", "D4a", "D4b"]
    assert set(states) < set(graduation) and not set(diagnostics) & set(graduation)
    assert {"G1", "G2", "G3", "G3.5", "G4", "baseline", "checkpoint"} < set(graduation)
    with pytest.raises(UserError, match="unknown suite 'state'; did you mean states"):
        run_gates(fresh, suite="state")
    with pytest.raises(UserError, match="the model is untrained, and D1, .*D4b mean nothing"):
        run_gates(fresh, suite="diagnostics")


def test_a_gate_without_enough_text_stays_open():
    findings = run_gates(subject("rwkv6", shape=(4, 4, 64), train_length=32), ["D4a"])
    assert [finding.verdict for finding in findings] == ["INCONCLUSIVE"]
    assert "needed" in findings[0].note
