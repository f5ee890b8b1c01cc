"""The recurrent state of a model: everything that carries over from one token to the next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from groundthink.errors import UserError, unknown

LayerState = dict[str, dict[str, Tensor]]
"""One block: sub-module name -> part name -> tensor with the batch first, e.g. ["rwkv6"]["wkv"]."""
Layers = Collection[int] | None
"""Indices of blocks; all if None."""
Parts = Collection[str] | None
"""Sub-modules ("rwkv6", "ffn") or single parts of them ("rwkv6.shift"); all if None."""


class State:
    """A tree of tensors: layer -> sub-module -> part, each tensor with the batch first.

    Dotted names follow the modules that own the parts: ``blocks.3.mamba2.ssm``. Every operation
    gives a new tree, which shares the tensors that it leaves as they are; none is written to.

    Operations with `layers` and `parts` act on what `select` names by them.
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

    def fork(self, count: int = 2) -> tuple[State, ...]:
        """`count` independent copies."""
        return tuple(self.clone() for _ in range(count))

    def select(self, layers: Layers = None, parts: Parts = None) -> list[str]:
        """Dotted names of the chosen parts in the chosen layers.

        Raises:
            UserError: no such layer or part, or together they name nothing.
        """
        owners = {name: name.split(".", 2) for name, _ in self.items()}
        known = {part for *_, part in owners.values()}
        known |= {part.split(".")[0] for part in known}
        for part in parts or ():
            if part not in known:
                raise unknown("part of the state", part, known)
        for layer in layers or ():
            if not 0 <= layer < len(self.layers):
                raise UserError(f"no layer {layer}; the state has 0 to {len(self.layers) - 1}")
        chosen = [
            name
            for name, (_, index, part) in owners.items()
            if (layers is None or int(index) in layers)
            and (parts is None or part in parts or part.split(".")[0] in parts)
        ]
        if not chosen:
            raise UserError(f"nothing selected: layers {layers} hold no part of {parts}")
        return chosen

    def zero(self, *, layers: Layers = None, parts: Parts = None) -> State:
        """Zeros in the selected parts; counts of attention stay as they are."""
        return self._replace(
            lambda _, x: torch.zeros_like(x) if x.is_floating_point() else x, layers, parts
        )

    def reset(self, rows: Tensor, *, layers: Layers = None, parts: Parts = None) -> State:
        """The selected parts as before a first token, in the rows where bool `rows` [B] is true.

        Attention keeps its cache in length: what it held is zero and no longer seen.
        """
        tensors = dict(self.items())

        def begin(name: str, x: Tensor) -> Tensor:
            chosen = rows.to(x.device).view(-1, *(1,) * (x.dim() - 1))
            keys = tensors.get(f"{name.removesuffix('start')}k")  # where "start" counts keys
            return x.masked_fill(chosen, 0 if keys is None else keys.shape[2])

        return self._replace(begin, layers, parts)

    def patch(self, donor: State, *, layers: Layers = None, parts: Parts = None) -> State:
        """This state with the selected parts of `donor` in place of its own.

        Raises:
            UserError: `donor` is of another model, or has another shape.
        """
        return self._join(donor, lambda _, theirs: theirs, layers, parts)

    def swap(
        self, other: State, *, layers: Layers = None, parts: Parts = None
    ) -> tuple[State, State]:
        """Both states after they have exchanged the selected parts. Raises as `patch`."""
        chosen = {"layers": layers, "parts": parts}
        return self.patch(other, **chosen), other.patch(self, **chosen)

    def mix(
        self, other: State, alpha: float = 0.5, *, layers: Layers = None, parts: Parts = None
    ) -> State:
        """This state with alpha of its own and 1 - alpha of `other` in the selected parts.

        Raises:
            UserError: as `patch`, and where attention counts its tokens from different ones.
        """

        def blend(mine: Tensor, theirs: Tensor) -> Tensor:
            if mine.is_floating_point():
                return alpha * mine + (1 - alpha) * theirs
            if not torch.equal(mine, theirs):
                raise UserError("attention that began at different tokens cannot be mixed")
            return mine

        return self._join(other, blend, layers, parts)

    def _join(
        self, other: State, fn: Callable[[Tensor, Tensor], Tensor], layers: Layers, parts: Parts
    ) -> State:
        tensors = dict(other.items())
        if odd := tensors.keys() ^ dict(self.items()).keys():
            raise UserError(f"the states are of different models: one of them has no {min(odd)}")

        def join(name: str, mine: Tensor) -> Tensor:
            theirs = tensors[name]
            if theirs.shape != mine.shape:
                shapes = f"{tuple(mine.shape)} in one, {tuple(theirs.shape)} in the other"
                raise UserError(f"the states do not fit: {name} is {shapes}")
            return fn(mine, theirs.to(mine))

        return self._replace(join, layers, parts)

    def _replace(self, fn: Callable[[str, Tensor], Tensor], layers: Layers, parts: Parts) -> State:
        new = dict(self.items())
        new |= {name: fn(name, new[name]) for name in self.select(layers, parts)}
        return State.from_items(new)

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
    def load(cls, path: str | Path) -> State:
        """A saved tree, on the CPU.

        Raises:
            UserError: the file cannot be read or holds no state.
        """
        return cls.read(path)[0]

    @classmethod
    def read(cls, path: str | Path) -> tuple[State, dict[str, Tensor]]:
        """A saved tree and the extra tensors beside it; otherwise as `load`."""
        from safetensors.torch import load_file

        try:
            stored = load_file(path)
        except Exception as error:
            raise UserError(f"cannot read the state file {path}: {error}") from error
        tree = {name: x for name, x in stored.items() if name.startswith("blocks.")}
        if not tree or any(name.count(".") != 3 for name in tree):
            raise UserError(f"{path} holds no state; write one with State.save or --save-state")
        return cls.from_items(tree), {name: x for name, x in stored.items() if name not in tree}
