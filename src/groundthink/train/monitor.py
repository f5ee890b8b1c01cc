"""Utilisation, memory, temperature and power of the training GPU, read once a second."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Sequence

import torch

FIELDS = {
    "util": "utilization.gpu",
    "memory_mib": "memory.used",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
}
"""Record field -> what nvidia-smi calls it."""

Reading = dict[str, float | None]


class GpuMonitor:
    """Readings of one NVIDIA GPU from nvidia-smi; the first, `idle`, is the baseline.

    Args:
        gpu: index or UUID as nvidia-smi knows it.
    """

    def __init__(self, gpu: str):
        self._readings: list[Reading] = []
        self._process = subprocess.Popen(
            [
                "nvidia-smi",
                f"--id={gpu}",
                f"--query-gpu={','.join(FIELDS.values())}",
                "--format=csv,noheader,nounits",
                "--loop=1",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self._lines = self._process.stdout
        self.idle = parse(self._lines.readline())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._lines:
            self._readings.append(parse(line))

    def take(self) -> Reading:
        """Mean of the readings since the last call; empty if there are none."""
        count = len(self._readings)
        readings, self._readings[:count] = self._readings[:count], []
        return mean(readings)

    def close(self) -> None:
        """End nvidia-smi."""
        self._process.terminate()
        self._process.wait()
        self._thread.join()


def gpu_monitor(device: torch.device) -> GpuMonitor | None:
    """A monitor of `device`, or None where it is not an NVIDIA GPU."""
    if device.type != "cuda" or not shutil.which("nvidia-smi"):
        return None
    return GpuMonitor(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def parse(line: str) -> Reading:
    """One line of nvidia-smi, such as ``37, 1843, 61, 74.20``; what it does not know is None."""
    values = [_number(word) for word in line.split(",")]
    return dict(zip(FIELDS, values, strict=True)) if len(values) == len(FIELDS) else {}


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def mean(readings: Sequence[Reading]) -> Reading:
    """Field-wise mean of readings, unknown values left out."""
    out: Reading = {}
    for field in FIELDS if readings else ():
        known = [x for reading in readings if (x := reading.get(field)) is not None]
        out[field] = sum(known) / len(known) if known else None
    return out
