"""Writes docs/performance.md from the records in benchmarks/records.

python benchmarks/tables.py           # writes the page
python benchmarks/tables.py --check   # fails if the page is not what the records say
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from groundthink import records
from groundthink.bench.output import number
from groundthink.verdicts.statistics import Interval, exact
from groundthink.verdicts.thresholds import THRESHOLDS, Threshold
from groundthink.verdicts.verdict import Verdict, decide

HERE = Path(__file__).parent
ABOUT, RECORDS = HERE / "about.md", HERE / "records"
PAGE = HERE.parent / "docs" / "performance.md"

Row = dict[str, Any]
Found = Iterator[tuple[str, Interval, Row]]
"""What was measured for a target: where, the value, and its record."""


def load(folder: Path) -> list[Row]:
    """All bench records, each with its provenance under `run`, oldest run first."""
    rows, run = [], {}
    for path in sorted(folder.glob("*.jsonl")):
        for record in records.read(path):
            if record["kind"] == "provenance":
                run = record
            else:
                rows.append(record | {"run": run})
    return sorted(rows, key=lambda row: row["run"].get("time", 0))


def setting(row: Row) -> tuple:
    """What tells one measurement from another: the last of each counts."""
    config = row["run"].get("config", {})
    precision = row.get("precision") or row["run"].get("precision")
    # peers, chunked, ... are forms of the model that the run was about
    model = config.get("model") if "-" not in row.get("who", "") else None
    return row["run"]["device"], config.get("vocab_size"), precision, model, row["name"]


def newest(rows: Iterable[Row]) -> list[Row]:
    """The last record of every setting."""
    return list({setting(row): row for row in rows}.values())


def interval(row: Row) -> Interval:
    """The value of a record with the interval it has, if it has one."""
    if row.get("low") is None or row.get("high") is None:
        return exact(row["value"], row["n"])
    return Interval(row["value"], row["low"], row["high"], row["n"])


# --- targets -------------------------------------------------------------------------------------

SHORT = ("wkv6-64x256x2x64", "wkv6-32x512x3x64", "wkv6-64x256x4x32")
LONG = ("wkv6-16x2048x12x64", "wkv6-1x32768x12x64")
SSD = ("ssd-64x256x4x64x64", "ssd-16x2048x24x64x128", "ssd-1x32768x24x64x128")
SHAPES = {"5m": (64, 256), "125m": (16, 1024)}


def over_peers(cases: Sequence[str]) -> Callable[[list[Row]], Found]:
    """Our time against that of the fastest peer of each case."""

    def find(rows: list[Row]) -> Found:
        for case in cases:
            peers = [r for r in rows if r.get("case") == case and not r["ours"] and r["value"]]
            if peers:
                best = min(peers, key=lambda r: r["value"])
                yield f"{case}, {best['who']}", interval(best["ours_faster"]), best

    return find


def of_limit(which: str) -> Callable[[list[Row]], Found]:
    def find(rows: list[Row]) -> Found:
        for row in rows:
            if row.get("case") == LONG[0] and row["who"] == "triton" and "of_limit" in row:
                yield row["case"], exact(row["of_limit"][which]), row

    return find


def trained(size: str, rows: list[Row]) -> list[Row]:
    """Records of training steps of the hybrid of a size at its shape, with 16,384 token ids."""
    return [
        row
        for row in rows
        if (row.get("what"), row.get("who")) == ("training", f"gf-mh-{size}")
        and (row["batch_size"], row["seq_len"]) == SHAPES[size]
        and row["run"]["config"].get("vocab_size") == 16384
        and "mode" not in row
        and row["value"] is not None
    ]


def training(size: str, over: str | None = None) -> Callable[[list[Row]], Found]:
    """Tokens a second of the hybrid of a size, or how many times those of another."""

    def find(rows: list[Row]) -> Found:
        for row in trained(size, rows):
            if row.get("over") == over:
                yield row["name"].removeprefix("B1 "), interval(row), row

    return find


def memory(size: str) -> Callable[[list[Row]], Found]:
    def find(rows: list[Row]) -> Found:
        for row in trained(size, rows):
            if "peak_mib" in row:
                yield row["name"].removeprefix("B1 "), exact(row["peak_mib"]), row

    return find


def first_step(compiled: bool) -> Callable[[list[Row]], Found]:
    def find(rows: list[Row]) -> Found:
        for row in rows:
            ours = row.get("who", "").startswith("gf-mh-") and "first_s" in row
            if ours and "case" not in row and row["who"].endswith("+compile") == compiled:
                yield row["who"], exact(row["first_s"]), row

    return find


def decoding(rows: list[Row]) -> Found:
    for row in rows:
        if row.get("who") == "peers" and row.get("mode") == "eager" and "ours_faster" in row:
            model = row["run"]["config"]["model"]
            where = f"{model}, batch {row['batch_size']} at {row['position']:,}"
            yield where, interval(row["ours_faster"]), row


def late(rows: list[Row]) -> Found:
    for row in rows:
        late = row.get("what") == "late over early"
        if late and row["mode"] == "graph" and row["who"] != "peers":
            precision = row["run"]["precision"]
            yield f"{row['who']} {precision}, batch {row['batch_size']}", interval(row), row


def named(what: str) -> Callable[[list[Row]], Found]:
    def find(rows: list[Row]) -> Found:
        for row in rows:
            if row.get("what") == what and row["who"].startswith("gf-mh-"):
                yield row["who"], exact(row["value"], row["n"]), row

    return find


TARGETS: dict[str, Callable[[list[Row]], Found]] = {
    "WKV6 over the fastest peer, short": over_peers(SHORT),
    "WKV6 over the fastest peer, long": over_peers(LONG),
    "WKV6 share of the memory limit, forward": of_limit("forward"),
    "WKV6 share of the memory limit": of_limit("both"),
    "SSD over the fastest peer": over_peers(SSD),
    "launches of a block": named("launches"),
    "training at 5M": training("5m"),
    "training over chunked+compile": training("5m", "chunked+compile"),
    "training over GPT-2": training("5m", "gpt2-5m+compile"),
    "memory at 5M": memory("5m"),
    "training at 125M": training("125m"),
    "memory at 125M": memory("125m"),
    "slowest length over fastest": named("evenness"),
    "first step": first_step(compiled=False),
    "first step, compiled": first_step(compiled=True),
    "decoding over the peers": decoding,
    "decoding, late over early": late,
}
WORDS = {Verdict.FAIL: "missed", Verdict.INCONCLUSIVE: "undecided"}


def targets(rows: list[Row]) -> Iterator[str]:
    """A table of what must be reached and what was."""
    body = []
    for quantity, find in TARGETS.items():
        threshold = THRESHOLDS["speed", quantity]
        found = list(find(rows))
        for where, value, row in found:
            verdict = decide(value, threshold)
            body.append(
                (
                    quantity,
                    where,
                    wanted(threshold),
                    measured(value.value, threshold),
                    WORDS.get(verdict, str(verdict)),
                    source(row),
                )
            )
        if not found:
            body.append((quantity, "", wanted(threshold), "", "not measured", ""))
    yield "### Targets\n"
    yield from table(("", "where", "must reach", "reached", "", "commit"), body)
    for row in rows:
        if row.get("what") == "passes":
            length = f"from {row['value']:,} tokens on" if row["value"] else row["note"]
            lead = f"{row['who']} trains faster than {row['over']} {length}"
            yield f"\nWith as many tokens in every step, {lead}."


def wanted(threshold: Threshold) -> str:
    """What passes, in words; a share of 1 or a cost of 0 is no edge."""
    low, high = threshold.passes
    if low == 0:
        return f"at most {measured(high, threshold)}"
    if math.isinf(high) or (high == 1 and not threshold.unit):
        return f"at least {measured(low, threshold)}"
    return f"{measured(low, threshold)} to {measured(high, threshold)}"


def measured(value: float, threshold: Threshold) -> str:
    """A value in the unit of a threshold; shares in percent."""
    if not threshold.unit and threshold.passes[1] == 1:
        return f"{value:.0%}"
    return f"{number(value, 3)} {threshold.unit}".strip()


def source(row: Row) -> str:
    return (row["run"].get("git") or "").replace("+", "")[:7]


# --- measurements --------------------------------------------------------------------------------


def operators(rows: list[Row]) -> Iterator[str]:
    """Times of the operators, a case after another."""
    body = []
    for row in rows:
        limit, launched, error = (row.get(key) for key in ("of_limit", "launches", "error"))
        times = [spread(row.get(f"{kind} {mode}")) for mode in ("graph", "eager") for kind in KINDS]
        faster = row.get("ours_faster")
        body.append(
            (
                row["case"],
                row["who"],
                *times,
                f"{number(faster['value'], 3)} x" if faster else "",
                " ".join(f"{limit[kind]:.0%}" for kind in KINDS) if limit else "",
                " ".join(str(launched[kind]) for kind in KINDS) if launched else "",
                f"{row['peak_mib']:,.0f}" if "peak_mib" in row else "",
                " ".join(f"{error[kind]:.0e}" for kind in error) if error else "",
                f"{row['first_s']:.1f}" if "first_s" in row else "",
                row["note"],
            )
        )
    yield "\n### Operators\n"
    yield "Milliseconds; both is forward and backward, errors of y and state, then of gradients.\n"
    yield from table(OPERATOR_HEADINGS, body)


KINDS = ("forward", "both")
OPERATOR_HEADINGS = (
    "case", "", "forward", "both", "forward eager", "both eager", "ours faster", "of limit",
    "launches", "peak MiB", "error", "first call s", "",
)  # fmt: skip


def models(rows: list[Row]) -> Iterator[str]:
    """Training and inference of whole models."""
    body = []
    for row in sorted(rows, key=lambda r: (r["what"], r.get("seq_len", 0), r.get("batch_size", 0))):
        if row.get("over"):
            continue
        peak = row.get("peak_mib") or (row["value"] if row["unit"] == "MiB" else None)
        speed = row["unit"] == "tok/s"
        body.append(
            (
                row["what"].removesuffix(" memory"),
                f"{row['batch_size']}x{row['seq_len']}",
                row["who"] + (f", {row['mode']}" if "mode" in row else ""),
                f"{row['run']['config'].get('vocab_size', 0):,}",
                row.get("precision", ""),
                spread(row) if speed else "",
                f"{row['ms']:.2f}" if "ms" in row else "",
                f"{peak:,.0f}" if peak else "",
                f"{row['first_s']:.1f}" if "first_s" in row else "",
                row["note"] if row["value"] is None else "",
            )
        )
    yield "\n### Models\n"
    headings = ("", "shape", "model", "token ids", "precision", "tok/s", "ms", "peak MiB")
    yield from table((*headings, "first step s", ""), body)


def decoded(rows: list[Row]) -> Iterator[str]:
    """One token at a time."""
    body = [
        (
            row["run"]["config"]["model"] if row["who"] == "peers" else row["who"],
            ("peers, " if row["who"] == "peers" else "") + row["mode"],
            row["run"].get("precision", ""),
            str(row["batch_size"]),
            f"{row['position']:,}",
            spread(row) if row["value"] else "",
            f"{row['tok_per_s']:,.0f}" if row["value"] else "",
            f"{number(row['ours_faster']['value'], 3)} x" if "ours_faster" in row else "",
            str(row.get("launches", "")),
            row["note"],
        )
        for row in rows
    ]
    yield "\n### Decoding\n"
    headings = ("model", "", "weights", "batch", "position", "ms a token", "tok/s", "ours faster")
    yield from table((*headings, "launches", ""), body)


def kernels(rows: list[Row]) -> Iterator[str]:
    """What the kernels take of a multiprocessor."""
    sizes = KERNEL_HEADINGS[1:]
    body = [(row["kernel"], *(f"{row[key]:,}" for key in sizes)) for row in rows]
    yield "\n### Kernels\n"
    yield "Registers of a thread, those of them that spill, warps, bytes of shared memory.\n"
    yield from table(KERNEL_HEADINGS, sorted(body))


KERNEL_HEADINGS = ("kernel", "registers", "spills", "warps", "shared")


def spread(found: Row | None) -> str:
    """Median and half of the middle half, where there is one."""
    if not found:
        return ""
    value = number(found["value"], 3)
    return f"{value} ±{number((found['q3'] - found['q1']) / 2, 1)}" if "q3" in found else value


def table(headings: Sequence[str], body: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table, without the columns that have no entry."""
    body = list(dict.fromkeys(map(tuple, body)))
    kept = [i for i, _ in enumerate(headings) if any(cells[i] for cells in body)]
    for cells in (headings, ["---"] * len(headings), *body):
        yield "| " + " | ".join(cells[i].strip() for i in kept) + " |"


def page(rows: list[Row]) -> str:
    """The whole page."""
    lines = [ABOUT.read_text(encoding="utf-8")]
    devices = dict.fromkeys(row["run"]["device"] for row in rows)
    sections = (
        (operators, lambda row: "case" in row),
        (models, lambda row: "seq_len" in row),
        (decoded, lambda row: "position" in row),
        (kernels, lambda row: "registers" in row),
    )
    for device in devices:
        here = newest(row for row in rows if row["run"]["device"] == device)
        run = here[-1]["run"]
        lines.append(f"\n## {device}\n")
        lines.append(f"torch {run['torch']}, Triton {run['triton']}.\n")
        runs = {row["run"]["note"]: row for row in here if row["run"].get("note")}
        lines += [f"- At {source(row)}: {note}." for note, row in runs.items()] + [""] * bool(runs)
        lines += targets(here)
        for section, belongs in sections:
            if chosen := [row for row in here if belongs(row)]:
                lines += section(chosen)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(load(RECORDS)), encoding="utf-8")
    print(PAGE)
