"""Kernels compiled before the probes come to them one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.diagnose.components import frozen
from groundthink.models.base import LanguageModel

FORWARD = (
    (16, 96),
    (16, 16),
    (1, 16),
    (16, 63),
    (32, 1),
    (32, 18),
    (32, 88),
    (8, 127),
    (8, 256),
    (8, 273),
)
"""Rows and tokens of passes whose kernels differ: each is read without a state and with one."""
CUT = (16, 48)
"""Of passes that begin with a state and reset it."""
BACKWARD = ((9, 15), (8, 64), (8, 4))
"""Of passes with gradients by the states before and after them."""
ALONE = (1, 96)
"""Of a pass with gradients that begins with nothing."""


def prepare(model: LanguageModel) -> None:
    """Compile the kernels of a model on a GPU side by side; elsewhere there is nothing to do."""
    device = next(model.parameters()).device
    if device.type != "cuda" or not model.recurrent:
        return
    from groundthink.ops.launching import compiled_together  # needs Triton

    def tokens(rows: int, length: int) -> Tensor:
        return torch.zeros(rows, length, dtype=torch.int64, device=device)

    with compiled_together(), frozen(model):
        with torch.no_grad():
            for shape in FORWARD:
                _, state = model.features(tokens(*shape))
                model.features(tokens(*shape), state)
            _, state = model.features(tokens(*CUT))
            model.features(tokens(*CUT), state, tokens(*CUT).bool())
        for shape in BACKWARD:
            state = model.init_state(shape[0]).map(Tensor.requires_grad_)
            first, state = model.features(tokens(*shape), state)
            second, _ = model.features(tokens(*shape), state)
            (first.sum() + second.sum()).backward()
        x = model.embed(tokens(*ALONE)).requires_grad_()
        for block in model.blocks:
            x = block(x, None, None)[0]
        x.sum().backward()
