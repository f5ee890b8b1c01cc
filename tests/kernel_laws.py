"""What the tests of the fused kernels share: every op obeys the same laws.

On a machine without a GPU the kernels run in Triton's interpreter, in fp32 and fp16.
"""

from __future__ import annotations

import json
import os

import torch
from torch import Tensor

from groundthink.ops.testing import poisoned_memory, relative_rms

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
BOUNDS = {torch.float32: (1e-5, 1e-4), HALF: (4e-3, 1e-2)}
"""Relative RMS errors of values and gradients."""


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, device=DEVICE) * scale).to(dtype)


def differentiable(args, dtype: torch.dtype | None = None) -> list:
    """`args` as leaves, all tensors in one dtype if it is given."""
    return [
        a.detach().to(dtype or a.dtype).requires_grad_()
        if isinstance(a, Tensor) and a.is_floating_point()
        else a
        for a in args
    ]


def step(op, args, grads=None, **kwargs) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of op, and the gradients of its floating-point arguments."""
    outputs = op(*args, **kwargs)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    leaves = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
    if grads is None:
        grads = draw(outputs)
    grads = [grad.to(out.dtype) for grad, out in zip(grads, outputs, strict=True)]
    return outputs, list(torch.autograd.grad(outputs, leaves, grads))


def draw(outputs) -> list[Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(1)
    return [torch.randn(o.shape, device=DEVICE, generator=generator) for o in outputs]


def equals_the_reference(
    op, args, dtype: torch.dtype = torch.float32, backend: str = "triton"
) -> None:
    """Values and all gradients against the reference in fp64 on the same inputs."""
    values, grads = step(op, differentiable(args), backend=backend)
    exact, exact_grads = step(op, differentiable(args, torch.float64), backend="reference")
    errors = [
        [relative_rms(a, b) for a, b in zip(results, oracle, strict=True) if b.numel()]
        for results, oracle in ((values, exact), (grads, exact_grads))
    ]
    note(op.__name__, dtype, *errors)
    for some, bound in zip(errors, BOUNDS[dtype], strict=True):
        assert all(error <= bound for error in some), errors


def note(op: str, dtype: torch.dtype, values: list[float], gradients: list[float]) -> None:
    """Leave the largest errors to `benchmarks/gpu_tests.py`, if it asks for them."""
    if path := os.environ.get("GROUNDTHINK_ERRORS"):
        noted = {"values": max(values, default=0.0), "gradients": max(gradients, default=0.0)}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"op": op, "dtype": str(dtype)[6:], **noted}) + "\n")


def repeats_bitwise(op, args) -> None:
    """The same bits again, also where fresh memory holds NaN."""
    leaves = differentiable(args)
    first = step(op, leaves, backend="triton")
    with poisoned_memory():
        again = step(op, leaves, backend="triton")
    for a, b in zip((*first[0], *first[1]), (*again[0], *again[1]), strict=True):
        assert torch.equal(a, b)


def takes_an_empty_batch(op, args) -> None:
    """Empty values, and gradients of zero; `args` are those of an empty batch."""
    values, grads = step(op, differentiable(args), backend="triton")
    assert all(v.numel() == 0 for v in values)
    assert all(not g.any() for g in grads)


def compiles(op, args) -> None:
    """One graph, and what eager code computes."""
    leaves = differentiable(args)
    first = step(op, leaves, backend="triton")
    torch._dynamo.reset()
    compiler = "inductor" if DEVICE.type == "cuda" else "aot_eager"
    again = step(torch.compile(op, fullgraph=True, backend=compiler), leaves, backend="triton")
    for a, b in zip((*first[0], *first[1]), (*again[0], *again[1]), strict=True):
        assert relative_rms(b, a) <= 1e-6


def captures(op, args) -> None:
    """A CUDA graph of the step gives what eager code computes, on new inputs too."""
    args = [a.detach() if isinstance(a, Tensor) else a for a in args]
    grads = draw(step(op, differentiable(args), backend="triton")[0])

    def run():  # on leaves of its own: older ones belong to the stream that first used them
        return step(op, differentiable(args), grads, backend="triton")

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for a in args:
        if isinstance(a, Tensor) and a.is_floating_point():
            a.mul_(0.5)
    graph.replay()
    expected = run()
    for a, b in zip((*captured[0], *captured[1]), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(a, b)
