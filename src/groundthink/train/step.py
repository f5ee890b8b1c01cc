"""One optimizer step: accumulation, precision, the carried state, clipping, the finite check."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from groundthink.data.stream import Batch
from groundthink.errors import UserError
from groundthink.layers.state import State
from groundthink.models.base import LanguageModel
from groundthink.models.components import branch
from groundthink.train.config import TrainConfig
from groundthink.train.graph import Graph, recordable
from groundthink.train.half import castable, halves
from groundthink.train.loss import Objective
from groundthink.train.optim import adamw, set_lr, step_unless


class Observer(Protocol):
    """Looks at a model from outside during a training step."""

    every: int

    def start(self, model: nn.Module) -> None:
        """Called before the forward passes of an observed step."""

    def finish(self, model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
        """Called with the gradients in place, unclipped; returns records as (kind, fields)."""
        ...


class NonFinite(Exception):
    """The loss or the gradient is NaN or infinite; the weights are still those before the step."""

    def __init__(self, what: str, module: str):
        super().__init__(f"{what} is not finite, first in {module} ({branch(module)})")


@dataclass(frozen=True)
class Outcome:
    """What one step measured.

    Attributes:
        loss: nats per token.
        scored: tokens that the loss is the mean over.
        grad_norm: of the whole gradient, before clipping.
        lr: learning rate without multipliers.
        observed: records of the observers, as (kind, fields).
    """

    loss: float
    scored: int
    grad_norm: float
    lr: float
    observed: list[tuple[str, dict[str, Any]]]


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision; fp32 leaves everything as it is."""
    dtype = HALF.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def eager() -> AbstractContextManager[Any]:
    """Runs compiled blocks as plain Python: compiled code does not call hooks."""
    return torch.compiler.set_stance("force_eager")


class Stepper:
    """Model, optimizer, loss scaler and carried state.

    Args:
        carry: start each forward pass from the state the last one ended in, cut from the graph.
    """

    def __init__(
        self, model: LanguageModel, config: TrainConfig, device: torch.device, carry: bool
    ):
        self.model, self.config, self.device, self.carry = model, config, device, carry
        self.parameters = list(model.parameters())  # to walk through a model takes a while
        self.optimizer = adamw(model, config, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.state: State | None = None
        self.graphs: dict[tuple[int, ...], Graph] = {}
        self.prepared = not recordable(model, device)
        self.objective = Objective(model)
        # compiled blocks cast in their own kernels
        self.castable = castable(model) if config.precision in HALF and not config.compile else []

    def step(
        self, number: int, batches: Sequence[Batch], observers: Sequence[Observer] = ()
    ) -> Outcome:
        """Update the weights on the mean loss over all scored tokens of `batches`.

        An fp16 step whose gradient overflows is left out by the scaler, which is no error.

        Raises:
            NonFinite: the loss or the gradient norm is NaN or infinite.
        """
        scored = sum(int((batch.targets >= 0).sum()) for batch in batches)
        lr = set_lr(self.optimizer, number, self.config)
        if not self.prepared:
            self._prepare(batches[0])
        if self._graphed(batches):
            result, before = self._replay(batches[0], scored, observers)
        else:
            before = self.state
            result = self._run(batches, scored, observers)
        if result.numel() == 2:  # the graph has updated the weights
            loss, grad_norm = result.tolist()
            self._check(loss, grad_norm, before, batches)
            return Outcome(loss, scored, grad_norm, lr, [])
        self.scaler.unscale_(self.optimizer)
        observed = [record for observer in observers for record in observer.finish(self.model)]
        norm = self._norm()
        loss, grad_norm = torch.stack([result, norm]).tolist()
        self._check(loss, grad_norm, before, batches)
        if 0 < self.config.grad_clip < grad_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.grad_clip, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return Outcome(loss, scored, grad_norm, lr, observed)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that `load_state_dict` goes on from."""
        state = self.state and {name: x.clone() for name, x in self.state.items()}
        moments = self.optimizer.state_dict()["state"]
        optimizer = {name: moments[i] for i, name in enumerate(self._names()) if i in moments}
        return {"optimizer": optimizer, "scaler": self.scaler.state_dict(), "state": state}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on from a `state_dict`; learning rates and decay are those of this config.

        Raises:
            UserError: its moments are not named after parameters of this model.
        """
        groups = self.optimizer.state_dict()["param_groups"]
        place = {name: i for i, name in enumerate(self._names())}
        if stored["optimizer"].keys() - place.keys():
            raise UserError(
                "the checkpoint holds moments of other parameters, as one of another version does; "
                "groundthink.load still reads its weights, but training cannot go on from it"
            )
        state = {place[name]: moments for name, moments in stored["optimizer"].items()}
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.scaler.load_state_dict(stored["scaler"])
        if stored["state"]:
            self.state = State.from_items(stored["state"]).map(lambda x: x.to(self.device))

    def _names(self) -> list[str]:
        """Of the parameters in the order of the optimizer, which depends on the config."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]

    def _run(self, batches: Sequence[Batch], scored: int, observers: Sequence[Observer]) -> Tensor:
        """Mean loss over all batches; their gradients are in the parameters."""
        self.optimizer.zero_grad()
        for observer in observers:
            observer.start(self.model)
        total = torch.zeros((), device=self.device)
        with eager() if observers and self.config.compile else nullcontext():
            for batch in batches:
                loss, self.state = self._pass(self._here(batch), self.state, scored)
                total += loss
        return total / scored

    def _norm(self) -> Tensor:
        """Of the whole gradient."""
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def _check(
        self, loss: float, grad_norm: float, before: State | None, batches: Sequence[Batch]
    ) -> None:
        """Raise NonFinite, from the state before the step, if one of both is not finite."""
        if not math.isfinite(loss):
            self.state = before
            raise NonFinite("the loss", first_nonfinite(self.model, lambda: self._look(batches)))
        if not math.isfinite(grad_norm) and not self._overflowed():
            raise NonFinite("the gradient", last_nonfinite_gradient(self.model))

    def _update(self, loss: Tensor) -> Tensor:
        """Clip and update, but for what is not finite; returns the loss and the gradient norm."""
        result = torch.stack([loss, self._norm()])
        clip = self.config.grad_clip
        excess = (result[1] / clip).clamp(min=1) if clip else None
        step_unless((~result.isfinite().all()).float(), self.optimizer, excess)
        return result

    def _prepare(self, batch: Batch) -> None:
        """Compile all Triton kernels at once, and give the optimizer its state.

        What is made while a graph is recorded would be made anew by every replay.
        """
        from groundthink.ops.launching import compiled_together

        with compiled_together(), eager() if self.config.compile else nullcontext():
            self._pass(self._here(batch), self.state, 1)
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        step_unless(torch.ones((), device=self.device), self.optimizer)
        self.optimizer.zero_grad()
        self.prepared = True

    def _pass(
        self, batch: Batch, state: State | None, scored: Tensor | int
    ) -> tuple[Tensor, State | None]:
        """Forward and backward of one batch: the sum of its losses, and the state to carry on."""
        cast = halves(self.model, self.castable, HALF.get(self.config.precision, torch.float32))
        weights = {f"model.{name}": weight for name, weight in cast.items()}
        inputs = batch.tokens, batch.targets, state, batch.reset
        with autocast(self.device, self.config.precision):
            loss, new = functional_call(self.objective, weights, inputs, tie_weights=False)
        self.scaler.scale(loss / scored).backward()
        return loss.detach(), new.detach() if self.carry else None

    def _here(self, batch: Batch) -> Batch:
        return Batch(*(x.to(self.device, non_blocking=True) for x in batch))

    def _graphed(self, batches: Sequence[Batch]) -> bool:
        """Whether this step can be replayed: one batch of the shape of the first."""
        if not (self.config.cuda_graph and self.config.backend in ("auto", "triton")):
            return False
        if len(batches) > 1 or not recordable(self.model, self.device):
            return False
        return all(graph.fits(batches[0]) for graph in self.graphs.values())

    def _replay(
        self, batch: Batch, scored: int, observers: Sequence[Observer]
    ) -> tuple[Tensor, State | None]:
        """What the graph of these observers returns, and the state before the batch."""
        key = tuple(id(observer) for observer in observers)
        if self.carry and self.state is None:
            self.state = self.model.init_state(len(batch.tokens))
        if key not in self.graphs:
            for observer in observers:
                observer.start(self.model)
            with eager() if observers and self.config.compile else nullcontext():
                self.graphs[key] = Graph(
                    self._pass,
                    self.model,
                    self._here(batch),
                    self.state,
                    self.graphs.values(),
                    None if observers or self.scaler.is_enabled() else self._update,
                )
        graph = self.graphs[key]
        result = graph.replay(batch, self.state, scored)
        self.state = graph.state
        return result, graph.before

    @torch.no_grad()
    def _look(self, batches: Sequence[Batch]) -> None:
        """Run the forward passes again, for the hooks on every module."""
        state = self.state
        for batch in map(self._here, batches):
            with autocast(self.device, self.config.precision):
                _, state = self.model(batch.tokens, state, batch.reset)
            state = state if self.carry else None

    def _overflowed(self) -> bool:
        """Whether fp16 explains a gradient that is not finite: the scale can still be lowered."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1


def first_nonfinite(model: nn.Module, forward: Callable[[], None]) -> str:
    """Dotted name of the first module whose output is not finite; "loss" if every output is."""
    found: list[str] = []

    def watch(name: str):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            x = output[0] if isinstance(output, tuple) else output
            if not found and isinstance(x, Tensor) and not x.isfinite().all():
                found.append(name or "model")

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules()]
    try:
        with eager():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "loss"


def last_nonfinite_gradient(model: nn.Module) -> str:
    """Dotted name of the deepest parameter with such a gradient: backward reached it first."""
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    return names[-1] if names else "the sum of squares"
