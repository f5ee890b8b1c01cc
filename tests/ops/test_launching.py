"""Kernels are launched by what they were compiled for, and compiled side by side."""

from __future__ import annotations

import kernel_laws as laws
import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("interpreter")
needs_gpu = pytest.mark.skipif(laws.DEVICE.type != "cuda", reason="needs a GPU")


def test_the_interpreter_runs_kernels_as_they_are():
    from groundthink.ops.shares import total

    x = laws.normal(7, 40)
    torch.testing.assert_close(total(x), x.sum(0))


def test_sums_gathered_at_the_end():
    """Also when an earlier error has left some behind, and in several launches."""
    from groundthink.ops.later import TOGETHER, at_the_end
    from groundthink.ops.shares import gradient

    parameters = [torch.nn.Parameter(laws.normal(5 + 17 * i)) for i in range(TOGETHER + 2)]
    shares = [laws.normal(1 + 40 * i, len(p)) for i, p in enumerate(parameters)]
    with pytest.raises(ZeroDivisionError), at_the_end(parameters):
        gradient(shares[0])
        raise ZeroDivisionError
    with at_the_end(parameters):
        for p, share in zip(parameters, shares, strict=True):
            p.grad = gradient(share, p, None)
        now = gradient(shares[1], parameters[1].half())
        torch.testing.assert_close(now, shares[1].sum(0))
    for p, share in zip(parameters, shares, strict=True):
        torch.testing.assert_close(p.grad, share.sum(0), rtol=1e-5, atol=1e-4)
    with pytest.raises(AssertionError), at_the_end(parameters):
        gradient(shares[0])  # nobody's gradient


@pytest.mark.gpu
@needs_gpu
def test_kernels_compiled_together_run_afterwards():
    from groundthink.ops import launching, shares

    shares._total.known.clear()
    x = laws.normal(300, 40)
    with launching.compiled_together():
        shares.total(x)
        assert not shares._total.known
    assert len(shares._total.known) == 1
    for y in (x, laws.normal(300, 40), laws.normal(301, 40)[1:], laws.normal(9, 41)):
        torch.testing.assert_close(shares.total(y), y.sum(0))


@pytest.mark.gpu
@needs_gpu
def test_a_kernel_that_does_not_compile_is_reported():
    from groundthink.ops import launching, shares

    with pytest.raises(Exception), launching.compiled_together():  # noqa: B017
        shares._total[(1,)](laws.normal(4), laws.normal(4), 1, 1, 3, 3)
    assert launching._together is None
