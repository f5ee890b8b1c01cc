"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from groundthink.train.console import Board, Lines, LivePanel, clock, event_line, short, spark

pytestmark = pytest.mark.tiny


def records(steps: int):
    for step in range(1, steps + 1):
        if step % 10 == 0:
            yield {"kind": "balance", "step": step, "grad_ratio": 0.31, "share": [0.4, 0.5]}
        yield {
            **{"kind": "train", "step": step, "loss": 5 - step / 100, "bpb": 2.0, "lr": 3e-4},
            **{"grad_norm": 0.5, "tok_per_s": 35_200.0, "tokens": step * 64, "seconds": step / 10},
        }
    yield {
        **{"kind": "val", "step": steps, "loss": 1.5, "bpb": 2.18, "perplexity": 4.48},
        **{"se": 0.01, "tokens": 999, "best": True},
    }
    yield {"kind": "sample", "step": steps, "prompt": "To be", "text": " or\nnot"}
    yield {"kind": "event", "step": steps, "what": "finished", "note": "64K tokens in 3 s"}


def test_plain_lines_hold_what_the_study_printed():
    lines: list[str] = []
    sink = Lines(lines.append, "tiny", Board(steps=40, start=0, every=20))
    for record in records(40):
        sink.log(record)
    sink.close()
    assert lines[0] == "tiny"
    assert [line.split("/")[0].strip() for line in lines[1:4]] == ["1", "20", "40"]
    assert lines[3] == "40/40  loss 4.6950  ppl 109.4  R/M 0.31  35.2K tok/s  lr 3.0e-04"
    assert lines[4] == (
        "step 40  val 1.5000 ±0.010 nats/token  2.1800 bits/byte  ppl 4.48  best so far"
    )
    assert lines[5] == "step 40  sample: To be or not"
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_live_panel_fits_the_terminal(width):
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system=None)
    panel = LivePanel(console, "gf-mh-tiny", Board(steps=400, start=0, every=10))
    for record in records(200):
        panel.log(record)
    gpu = {"util": 87.0, "memory_mib": 1844.0, "temperature_c": 61.0, "power_w": None}
    panel.log({"kind": "gpu", "step": 200, **gpu})
    panel.close()
    plain = Console(file=io.StringIO(), width=width)
    plain.print(panel.render())
    drawn = plain.file.getvalue().splitlines()  # pyright: ignore
    assert {len(line) for line in drawn} == {width}
    text = "\n".join(drawn)
    for words in (
        "200/400  50%",
        "gf-mh-tiny",
        "val 1.5000 ±0.010",
        "35.2K",
        "45% RWKV",
        "R/M 0.31",
    ):
        assert words in text
    assert "finished" in screen.getvalue()


def test_panel_of_a_model_without_two_branches_has_no_balance():
    console = Console(file=io.StringIO(), width=80)
    panel = LivePanel(console, "gpt2-tiny", Board(steps=10, start=0, every=10))
    panel.log({"kind": "balance", "step": 1, "grad_ratio": None, "share": []})
    plain = Console(file=io.StringIO(), width=80)
    plain.print(panel.render())
    panel.close()
    assert "RWKV" not in plain.file.getvalue()  # pyright: ignore


def test_an_unknown_standard_error_is_left_out():
    record = {"loss": 1.0, "bpb": 1.0, "perplexity": 2.7, "se": math.nan, "best": False}
    assert "±" not in event_line({"kind": "val", "step": 1, **record})


def test_numbers_in_few_characters():
    assert [short(x) for x in (950, 35_200, 1.2e6, None)] == ["950", "35.2K", "1.2M", ""]
    assert [clock(x) for x in (5, 65, 3661)] == ["00:05", "01:05", "1:01:01"]
    assert spark([0.0, 2.0, 7.0], 10) == "▁▃█"
    assert spark([3.0] * 50, 10) == "▁" * 10
    assert spark([], 10) == ""
