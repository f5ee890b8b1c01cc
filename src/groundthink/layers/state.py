"""The recurrent state of a model: everything that carries over from one token to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

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
            [
                {
                    module: {part: fn(x) for part, x in parts.items()}
                    for module, parts in layer.items()
                }
                for layer in self.layers
            ]
        )

    def detach(self) -> State:
        """The same values, cut from the graph: what truncated backpropagation carries on."""
        return self.map(Tensor.detach)

    def clone(self) -> State:
        """An independent copy."""
        return self.map(Tensor.clone)

    def part(self, module: str, part: str) -> list[Tensor]:
        """The named part of every layer that has it, in layer order."""
        return [layer[module][part] for layer in self.layers if part in layer.get(module, {})]

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Dotted name and tensor of every part."""
        for i, layer in enumerate(self.layers):
            for module, parts in layer.items():
                for part, tensor in parts.items():
                    yield f"blocks.{i}.{module}.{part}", tensor

    @classmethod
    def from_items(cls, tensors: Mapping[str, Tensor]) -> State:
        """The tree that `items` was taken from."""
        layers: dict[int, LayerState] = {}
        for name, tensor in tensors.items():
            _, index, module, part = name.split(".")
            layers.setdefault(int(index), {}).setdefault(module, {})[part] = tensor
        return cls([layers[i] for i in sorted(layers)])

    def nbytes(self) -> int:
        """Bytes that the whole tree holds."""
        return sum(x.numel() * x.element_size() for _, x in self.items())

    def require_fit(self, like: State) -> None:
        """Raise UserError unless both trees have the same parts and shapes.

        A dimension that is 0 in `like` grows with the text and fits any size.
        """
        mine = {name: tuple(x.shape) for name, x in self.items()}
        other = {name: tuple(x.shape) for name, x in like.items()}
        for name in sorted(mine.keys() | other.keys()):
            a, b = mine.get(name, ()), other.get(name, ())
            if len(a) != len(b) or any(i != j != 0 for i, j in zip(a, b, strict=True)):
                raise UserError(
                    f"this state does not fit the model: {name} is {mine.get(name, 'missing')}, "
                    f"the model has {other.get(name, 'no such part')}"
                )

    def save(self, path: str | Path, **extra: Tensor) -> None:
        """Write the tree, and any `extra` tensors, to one safetensors file."""
        from safetensors.torch import save_file

        save_file({name: x.contiguous() for name, x in [*self.items(), *extra.items()]}, path)

    @classmethod
    def load(cls, path: str | Path) -> tuple[State, dict[str, Tensor]]:
        """A saved tree and the extra tensors beside it.

        Raises:
            UserError: the file cannot be read.
        """
        from safetensors.torch import load_file

        try:
            stored = load_file(path)
        except Exception as error:
            raise UserError(f"cannot read the state file {path}: {error}") from error
        tree = {name: x for name, x in stored.items() if name.startswith("blocks.")}
        return cls.from_items(tree), {name: x for name, x in stored.items() if name not in tree}
