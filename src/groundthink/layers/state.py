"""The recurrent state of a model: everything that carries over from one token to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from groundthink.errors import UserError

LayerState = dict[str, dict[str, Tensor]]
"""One block: sub-module name -> part name -> tensor with the batch first, e.g. ["rwkv6"]["wkv"]."""


class State:
    """A tree of tensors: layer -> sub-module -> part, each tensor with the batch first.

    Dotted names follow the modules that own the parts: ``blocks.3.mamba2.ssm``.
    """

    def __init__(self, layers: list[LayerState]):
        self.layers = layers

    def map(self, fn: Callable[[Tensor], Tensor]) -> State:
        """A new tree with `fn` applied to every tensor."""
        return State(
            [{m: {k: fn(x) for k, x in parts.items()} for m, parts in layer.items()} for layer in self.layers]
        )

    def detach(self) -> State:
        """The same values, cut from the graph: what truncated backpropagation carries on."""
        return self.map(Tensor.detach)

    def clone(self) -> State:
        """An independent copy."""
        return self.map(Tensor.clone)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Dotted name and tensor of every part."""
        for i, layer in enumerate(self.layers):
            for module, parts in layer.items():
                for part, tensor in parts.items():
                    yield f"blocks.{i}.{module}.{part}", tensor

    def part(self, module: str, part: str) -> list[Tensor]:
        """The named part of every layer that has it, in layer order."""
        return [x[module][part] for x in self.layers if part in x.get(module, {})]

    def nbytes(self) -> int:
        """Bytes that the whole tree holds."""
        return sum(x.numel() * x.element_size() for _, x in self.items())

    def save(self, path: str | Path) -> None:
        """Write the tree to one safetensors file."""
        from safetensors.torch import save_file

        save_file({name: x.contiguous() for name, x in self.items()}, path)

    @classmethod
    def load(cls, path: str | Path, like: State) -> State:
        """Read a saved tree; `like` (a state of the same model and batch) gives the structure.

        Raises:
            UserError: the file is unreadable or belongs to another model or batch size.
        """
        from safetensors.torch import load_file

        try:
            stored = load_file(path)
        except Exception as error:
            raise UserError(f"cannot read the state file {path}: {error}") from error
        expected = dict(like.items())
        for name in expected.keys() | stored.keys():
            if name not in stored or name not in expected or stored[name].shape[1:] != expected[name].shape[1:]:
                raise UserError(f"the state in {path} is of another model: {name} does not fit")
        return cls(
            [
                {m: {k: stored[f"blocks.{i}.{m}.{k}"].to(x.device) for k, x in parts.items()} for m, parts in layer.items()}
                for i, layer in enumerate(like.layers)
            ]
        )
