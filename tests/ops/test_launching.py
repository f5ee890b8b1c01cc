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
