"""What every test process needs: one thread, and Triton's interpreter where there is no GPU.

One thread, because the models are small and processes share the cores better.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the commands that tests start
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # the workers share the one of their parent
    # The compiler knows an operator by its name: what it kept of another checkout may not fit.
    _cache = tempfile.TemporaryDirectory(prefix="inductor-", ignore_cleanup_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _cache.name
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

if not torch.cuda.is_available() and importlib.util.find_spec("triton"):
    # Triton decides at its import whether its own library runs in the interpreter.
    with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
        import triton  # noqa: F401


@pytest.fixture
def interpreter(monkeypatch):
    """Where there is no GPU, the Triton kernels take CPU tensors and run in the interpreter."""
    from groundthink.ops import dispatch

    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    dispatch._obstacle.cache_clear()
    yield
    dispatch._obstacle.cache_clear()
