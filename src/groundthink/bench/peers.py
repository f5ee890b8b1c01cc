"""Operators of other projects, to measure ours beside: adapters only, none of their code.

flash-linear-attention is the extra `peers`. The set-up of mamba-ssm needs a CUDA compiler, its
Triton operators do not: unpack its source distribution and let GROUNDTHINK_MAMBA_SSM name the
folder that holds `mamba_ssm`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from torch import Tensor

Op = Callable[..., tuple[Tensor, Tensor]]
"""`wkv6` or `ssd` without a reset: operands and the state before to y and the state after."""

FOLDER = "GROUNDTHINK_MAMBA_SSM"
CHUNK = 256  # tokens; what the layers of mamba-ssm pass


@dataclass(frozen=True)
class Peer:
    """An operator of another project that computes `op`."""

    op: str
    source: str
    load: Callable[[], Op]
    """Raises ImportError where the project is not installed."""


def fla_chunk() -> Op:
    os.environ.setdefault("FLA_CACHE_RESULTS", "0")  # files that keep the choice for a shape
    from fla.ops.rwkv6 import chunk_rwkv6  # pyright: ignore[reportMissingImports]

    return partial(_fla, chunk_rwkv6)


def fla_recurrent() -> Op:
    from fla.ops.rwkv6 import fused_recurrent_rwkv6  # pyright: ignore[reportMissingImports]

    return partial(_fla, fused_recurrent_rwkv6)


def _fla(op, r, k, v, log_w, u, state=None):
    return op(r, k, v, log_w, u, scale=1.0, initial_state=state, output_final_state=True)


def mamba() -> Op:
    _mount()
    from mamba_ssm.ops.triton.ssd_combined import (  # pyright: ignore[reportMissingImports]
        mamba_chunk_scan_combined,
    )

    def run(x, dt, A, B, C, D=None, state=None):
        return mamba_chunk_scan_combined(
            x, dt, A, B, C, CHUNK, D=D, initial_states=state, return_final_states=True
        )

    return run


def mamba_step() -> Op:
    _mount()
    from mamba_ssm.ops.triton.selective_state_update import (  # pyright: ignore[reportMissingImports]
        selective_state_update,
    )

    none: list[Tensor] = []

    def run(x, dt, A, B, C, D, state):
        """One token; the state is updated in place, as that operator does."""
        heads, n = x.shape[2:], B.shape[-1]
        none[:] = none or [A.new_zeros(1)]  # it wants a bias of dt, which ours has added already
        y = selective_state_update(
            state,
            x[:, 0],
            dt[:, 0, :, None].expand(-1, *heads),
            A[:, None, None].expand(*heads, n),
            B[:, 0],
            C[:, 0],
            D[:, None].expand(heads),
            dt_bias=none[0].expand(heads),
        )
        return y[:, None], state

    return run


PEERS = {
    "fla-chunk": Peer("wkv6", "fla", fla_chunk),
    "fla-recurrent": Peer("wkv6", "fla", fla_recurrent),
    "mamba": Peer("ssd", "mamba", mamba),
}
SOURCES = {
    "fla": "fla: not installed (pip install 'groundthink[peers]')",
    "mamba": f"mamba: not found (unpack mamba-ssm's source distribution, let {FOLDER} name it)",
}
"""Projects, and what to say where one is not here."""


def forget_tuning() -> None:
    """Let the peers' autotuners choose anew: what was best for a shape they keep for all others."""
    for path, module in list(sys.modules.items()):
        if path.partition(".")[0] in ("fla", "mamba_ssm"):
            from triton.runtime import Autotuner, Heuristics

            for kernel in vars(module).values():
                while isinstance(kernel, Heuristics):
                    kernel = kernel.fn
                if isinstance(kernel, Autotuner):
                    kernel.cache.clear()


def missing(source: str) -> str:
    """Why the operators of a project are not here, in one line; empty if they are."""
    folder = _folder()
    if source == "mamba" and folder:
        return "" if (folder / "mamba_ssm").is_dir() else f"{FOLDER}: no mamba_ssm in {folder}"
    package = {"fla": "fla", "mamba": "mamba_ssm"}[source]
    return "" if package in sys.modules or find_spec(package) else SOURCES[source]


def _folder() -> Path | None:
    return Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None


def _mount() -> None:
    """Let `mamba_ssm` be the folder that the variable names, without what its package imports."""
    folder = _folder()
    if folder and "mamba_ssm" not in sys.modules:
        package = ModuleType("mamba_ssm")
        package.__path__ = [str(folder / "mamba_ssm")]
        sys.modules["mamba_ssm"] = package
