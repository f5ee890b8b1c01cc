"""Every command and every line of Python in the README runs as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(900)  # some twenty commands, one after another
def test_the_readme_runs(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "COLUMNS": "100"}
    commands = [line for block in blocks("bash") for line in block.strip().splitlines()]
    assert len(commands) > 12
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.stdout.strip(), command
    for block in blocks("python"):
        subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=env, check=True)


def test_the_readme_stays_short():
    assert README.read_text(encoding="utf-8").count("\n") <= 150
