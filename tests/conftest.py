"""One thread per test process: the models are small, and processes share the cores better."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the commands that tests start
import torch  # noqa: E402

torch.set_num_threads(1)
