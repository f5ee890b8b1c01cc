"""Progress: a live panel on a terminal, one plain line per interval elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from groundthink.records import Record
from groundthink.train.evaluate import perplexity
from groundthink.train.export import Sink
from groundthink.verdicts.thresholds import THRESHOLDS

BARS = "▁▂▃▄▅▆▇█"
COLOURS = {"": "green", "warn": "yellow", "FAIL": "red"}
POINTS = 200
"""Points of the loss curve over the whole run."""
REFRESH = 0.5
"""Seconds between two drawings of the live panel."""


def progress(
    title: str, steps: int, step: int, every: int, log: Callable[[str], None] | None
) -> Sink:
    """The sink that shows a run: live on a terminal, plain lines to `log` or standard output.

    Args:
        title: what is being trained.
        steps: last step.
        step: step that the run goes on from.
        every: steps between plain lines.
    """
    console, board = Console(), Board(steps, step, every)
    if log is None and console.is_terminal:
        return LivePanel(console, title, board)
    return Lines(log or (lambda line: print(line, flush=True)), title, board)


@dataclass
class Board:
    """The newest record of each kind, and the training loss as a mean and as a curve."""

    steps: int
    start: int
    every: int
    begun: float = field(default_factory=time.monotonic)
    newest: dict[str, Record] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._recent = deque[float](maxlen=self.every)

    def take(self, record: Record) -> None:
        self.newest[record["kind"]] = record
        if record["kind"] == "train":
            self._recent.append(record["loss"])
            self.curve[record["step"] * POINTS // self.steps] = self.loss()

    def loss(self) -> float:
        """Mean training loss of the last `every` steps."""
        return sum(self._recent) / len(self._recent)

    def get(self, kind: str, name: str) -> Any:
        return self.newest.get(kind, {}).get(name)

    @property
    def step(self) -> int:
        return self.get("train", "step") or self.start

    def elapsed(self) -> float:
        """Seconds of this session."""
        return time.monotonic() - self.begun

    def remaining(self) -> float | None:
        """Seconds to the last step at the pace of this session, validation and all."""
        done = self.step - self.start
        return self.elapsed() / done * (self.steps - self.step) if done else None

    def share(self) -> float | None:
        """Mean effective share of RWKV-6 over the layers."""
        shares = [x for x in self.get("balance", "share") or () if x is not None]
        return sum(shares) / len(shares) if shares else None


def standing(ratio: float) -> str:
    """Empty, warn or FAIL: a gradient ratio against the threshold of gate G4."""
    threshold = THRESHOLDS["G4", "gradient R/M"]
    for word, (low, high) in (("", threshold.passes), ("warn", threshold.warns)):
        if low <= ratio <= high:
            return word
    return "FAIL"


class Lines:
    """Step, train loss, validation loss, perplexity, R/M, tokens per second and learning rate."""

    def __init__(self, log: Callable[[str], None], title: str, board: Board):
        self.board, self._log = board, log
        log(title)

    def log(self, record: Record) -> None:
        self.board.take(record)
        kind = record["kind"]
        if kind == "train":
            if record["step"] % self.board.every == 0 or record["step"] in (1, self.board.steps):
                self._log(self.line(record))
        elif line := event_line(record):
            self._log(line)

    def line(self, record: Record) -> str:
        board, width = self.board, len(str(self.board.steps))
        loss, val = board.loss(), board.get("val", "loss")
        ratio = board.get("balance", "grad_ratio")
        words = [
            f"{record['step']:>{width}}/{board.steps}",
            f"loss {loss:.4f}",
            f"val {val:.4f}" if val is not None else "",
            f"ppl {perplexity(loss):.4g}",
            f"R/M {ratio:.2f}" if ratio is not None else "",
            standing(ratio) if ratio is not None else "",
            f"{short(record['tok_per_s'])} tok/s",
            f"lr {record['lr']:.1e}",
        ]
        return "  ".join(word for word in words if word)

    def close(self) -> None:
        """Nothing is open."""


class LivePanel:
    """One panel redrawn in place; what is worth keeping scrolls above it."""

    def __init__(self, console: Console, title: str, board: Board):
        self.board, self.title, self.console = board, title, console
        self._drawn = 0.0
        self._live = Live(self.render(), console=console, auto_refresh=False)
        self._live.start()

    def log(self, record: Record) -> None:
        self.board.take(record)
        if line := event_line(record):
            self.console.print(Text(line, style="dim"))
        if time.monotonic() - self._drawn > REFRESH:
            self.draw()

    def draw(self) -> None:
        """Bring the panel up to date."""
        self._live.update(self.render(), refresh=True)
        self._drawn = time.monotonic()

    def close(self) -> None:
        self.draw()
        self._live.stop()

    def render(self) -> Panel:
        """The panel at the console's width."""
        board, width = self.board, min(self.console.width, 120)
        rows = [self._bar(width - 4), Text(), self._figures()]
        if (balance := self._balance(width - 4)) is not None:
            rows.append(balance)
        rows.append(
            Text.assemble(
                ("loss  ", "dim"), (spark(list(board.curve.values()), width - 10), "cyan")
            )
        )
        return Panel(
            Group(*rows), title=self.title, title_align="left", width=width, padding=(0, 1)
        )

    def _bar(self, width: int) -> Table:
        board = self.board
        left = board.remaining()
        times = clock(board.elapsed()) + (f"  {clock(left)} left" if left is not None else "")
        row = Table.grid(padding=(0, 1))
        words = f"{board.step}/{board.steps}  {board.step / board.steps:.0%}  {times}"
        row.add_row(ProgressBar(board.steps, board.step, width=width - len(words) - 1), words)
        return row

    def _figures(self) -> Table:
        board = self.board
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in range(4):
            table.add_column(ratio=1)
        table.add_row(
            figure("loss", board.loss() if board.curve else None, ".4f"),
            figure("bits/byte", board.get("train", "bpb"), ".3f"),
            figure("tok/s", short(board.get("train", "tok_per_s"))),
            figure("lr", board.get("train", "lr"), ".1e"),
        )
        table.add_row(
            figure("val", board.get("val", "loss"), ".4f", plus_minus(board.get("val", "se"))),
            figure("bits/byte", board.get("val", "bpb"), ".3f"),
            figure("ppl", board.get("val", "perplexity"), ".4g"),
            figure("grad", board.get("train", "grad_norm"), ".3f"),
        )
        if "gpu" in board.newest:
            table.add_row(
                figure("gpu", board.get("gpu", "util"), ".0f", " %"),
                figure("memory", board.get("gpu", "memory_mib"), ".0f", " MiB"),
                figure("heat", board.get("gpu", "temperature_c"), ".0f", " °C"),
                figure("power", board.get("gpu", "power_w"), ".0f", " W"),
            )
        return table

    def _balance(self, width: int) -> Text | None:
        share, ratio = self.board.share(), self.board.get("balance", "grad_ratio")
        if share is None:
            return None
        cells = max(10, width - 46)
        filled = round(share * cells)
        text = Text.assemble(
            ("RWKV ", "dim"),
            ("█" * filled, "magenta"),
            ("░" * (cells - filled), "blue"),
            (" Mamba", "dim"),
        )
        text.append(f"  {share:.0%} RWKV", "bold")
        if ratio is not None:
            text.append("  gradient R/M ", "dim")
            text.append(f"{ratio:.2f}", f"bold {COLOURS[standing(ratio)]}")
        return text


def event_line(record: Record) -> str:
    """One plain line for a record that is worth keeping on the screen; empty for the others."""
    kind, step = record["kind"], f"step {record.get('step')}"
    if kind == "val":
        best = "  best so far" if record["best"] else ""
        return (
            f"{step}  val {record['loss']:.4f}{plus_minus(record['se'])} nats/token"
            f"  {record['bpb']:.4f} bits/byte  ppl {record['perplexity']:.4g}{best}"
        )
    if kind == "baseline":
        names = ("uniform", "unigram", "bigram")
        return "to beat: " + "  ".join(f"{name} {record[name]:.4f}" for name in names)
    if kind == "states":
        names = ("rwkv_state_norm", "mamba_state_norm", "state_ratio", "gate")
        known = [f"{n} {record[n]:.4g}" for n in names if isinstance(record.get(n), int | float)]
        return "  ".join(["states", *known])
    if kind == "sample":
        return f"{step}  sample: {' '.join((record['prompt'] + record['text']).split())}"
    if kind == "event":
        return f"{step}  {record['what']}  {record['note']}".rstrip()
    return ""


def plus_minus(se: float | None) -> str:
    """A standard error as it stands behind a number; empty where it is not known."""
    return f" ±{se:.3f}" if se is not None and math.isfinite(se) else ""


def figure(label: str, value: Any, form: str = "", unit: str = "") -> Text:
    """A dim label and its value; a dash where there is none."""
    known = value is not None and value != ""
    return Text.assemble(
        (f"{label} ", "dim"), (format(value, form) + unit if known else "-", "bold")
    )


def spark(values: list[float], width: int) -> str:
    """Values as a line of bars, each the mean of an equal share of them."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [i * len(values) // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0
    return "".join(BARS[round((x - low) * scale)] for x in means)


def short(value: float | None) -> str:
    """A number in three digits: 950, 35.2K, 1.20M."""
    if value is None:
        return ""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"
