"""G0 passes the true backends and finds the false ones."""

from __future__ import annotations

import pytest
import torch
from diagnose.subjects import run, subject

from groundthink.diagnose import kernel_gates
from groundthink.diagnose.gates import GATES
from groundthink.errors import UserError
from groundthink.ops.dispatch import able
from groundthink.ops.ssd import BACKENDS as SSD_BACKENDS
from groundthink.ops.wkv6 import BACKENDS as WKV6_BACKENDS
from groundthink.verdicts.verdict import Verdict

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(kernel_gates, "LENGTH", 33)


def test_every_backend_of_every_branch_passes():
    found = run("G0", subject("hy"))
    assert set(found.values()) == {Verdict.PASS}
    assert len(found) == 2 * (len(able(WKV6_BACKENDS, CPU)) + len(able(SSD_BACKENDS, CPU)))


def scaled(*inputs):
    y, state = WKV6_BACKENDS["reference"](*inputs)
    return 1.01 * y, state


def forgetful(x, dt, A, B, C, D, state, reset):
    return SSD_BACKENDS["reference"](x, dt, A, B, C, D, state.detach(), reset)


def test_a_backend_that_is_one_percent_off_fails_in_fp32(monkeypatch):
    monkeypatch.setitem(WKV6_BACKENDS, "scaled", scaled)
    found = run("G0", subject("rwkv6"))
    assert found["fp32 error, wkv6 scaled"] is Verdict.FAIL
    assert found["fp32 error, wkv6 chunked"] is Verdict.PASS


def test_a_missing_gradient_is_seen(monkeypatch):
    monkeypatch.setitem(SSD_BACKENDS, "forgetful", forgetful)
    with pytest.raises(RuntimeError):
        run("G0", subject("mamba2"))


def unable(*inputs):
    raise UserError("needs a GPU")


def test_a_backend_that_cannot_run_is_skipped_unless_the_model_asks_for_it(monkeypatch):
    monkeypatch.setitem(WKV6_BACKENDS, "unable", unable)
    toy = subject("rwkv6")
    finding = next(f for f in GATES["G0"](toy) if f.name == "fp32 error, wkv6 unable")
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert finding.note == "skipped: needs a GPU"
    toy.model.blocks[1].rwkv6.backend = "unable"
    assert run("G0", toy)["fp32 error, wkv6 unable"] is Verdict.FAIL


def test_attention_has_no_recurrence_to_check():
    (finding,) = GATES["G0"](subject("gpt2"))
    assert finding.verdict is Verdict.INCONCLUSIVE
