"""Readings of nvidia-smi."""

from __future__ import annotations

import os
import time

import pytest
import torch

from groundthink.train.monitor import GpuMonitor, gpu_monitor, mean, parse

pytestmark = pytest.mark.tiny
LINE = "37, 1843, 61, 74.20\n"


def test_parse_a_line():
    assert parse(LINE) == {"util": 37, "memory_mib": 1843, "temperature_c": 61, "power_w": 74.2}


def test_what_the_gpu_does_not_know_is_none():
    assert parse("0, 155, 42, [N/A]")["power_w"] is None


def test_a_line_that_is_no_reading_is_empty():
    assert parse("No devices were found\n") == {} == parse("")


def test_mean_leaves_out_what_is_unknown():
    readings = [parse("10, 100, 40, [N/A]"), {}, parse("30, 300, 50, 80")]
    assert mean(readings) == {"util": 20, "memory_mib": 200, "temperature_c": 45, "power_w": 80}
    assert mean([]) == {}


def test_no_monitor_without_a_gpu():
    assert gpu_monitor(torch.device("cpu")) is None


def test_monitor_reads_a_baseline_then_means(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0, 155, 42, 1.83\necho 80, 400, 60, 70\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monitor = GpuMonitor("0")
    assert monitor.idle == {"util": 0, "memory_mib": 155, "temperature_c": 42, "power_w": 1.83}
    deadline = time.monotonic() + 5
    while not (reading := monitor.take()) and time.monotonic() < deadline:
        time.sleep(0.01)
    monitor.close()
    assert reading == {"util": 80, "memory_mib": 400, "temperature_c": 60, "power_w": 70}
