"""Writes docs/performance.md from the records in benchmarks/records: python benchmarks/tables.py"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from targets import TARGETS, Row

from groundthink import records
from groundthink.bench.output import number
from groundthink.verdicts.thresholds import THRESHOLDS, Threshold
from groundthink.verdicts.verdict import Verdict, decide

HERE = Path(__file__).parent
ABOUT, RECORDS = HERE / "about.md", HERE / "records"
PAGE = HERE.parent / "docs" / "performance.md"


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
                source(row),
                row["note"],
            )
        )
    yield "\n### Operators\n"
    yield "Milliseconds; both is forward and backward, errors of y and state, then of gradients.\n"
    yield from table(OPERATOR_HEADINGS, body)


KINDS = ("forward", "both")
OPERATOR_HEADINGS = (
    "case", "", "forward", "both", "forward eager", "both eager", "ours faster", "of limit",
    "launches", "peak MiB", "error", "first call s", "commit", "",
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
                source(row),
                row["note"] if row["value"] is None else "",
            )
        )
    yield "\n### Models\n"
    headings = ("", "shape", "model", "token ids", "precision", "tok/s", "ms", "peak MiB")
    yield from table((*headings, "first step s", "commit", ""), body)


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
            source(row),
            row["note"],
        )
        for row in rows
    ]
    yield "\n### Decoding\n"
    headings = ("model", "", "weights", "batch", "position", "ms a token", "tok/s", "ours faster")
    yield from table((*headings, "launches", "commit", ""), body)


def kernels(rows: list[Row]) -> Iterator[str]:
    """What the kernels take of a multiprocessor."""
    sizes = KERNEL_HEADINGS[1:]
    body = [(row["kernel"], *(f"{row[key]:,}" for key in sizes)) for row in rows]
    yield "\n### Kernels\n"
    yield "Registers of a thread, those of them that spill, warps, bytes of shared memory.\n"
    yield from table(KERNEL_HEADINGS, sorted(body))


KERNEL_HEADINGS = ("kernel", "registers", "spills", "warps", "shared")


def tests(rows: list[Row]) -> Iterator[str]:
    """The tests that need a GPU, and how far its results are from fp64 on the same operands."""
    yield "\n### Tests\n"
    for row in rows:
        if "tests" in row:
            counts = ", ".join(f"{n} {what}" for what, n in row["tests"].items())
            found = f"At {source(row)}: {counts} in {row['seconds']:.0f} s (`make test-gpu`)"
            yield ", ".join(filter(None, (found, row["note"]))) + ".\n"
    body = [
        (row["op"], row["dtype"], f"{row['values']:.0e}", f"{row['gradients']:.0e}", str(row["n"]))
        for row in rows
        if "gradients" in row
    ]
    if body:
        yield "Largest relative RMS errors against fp64 on the same operands.\n"
        yield from table(("operator", "precision", "values", "gradients", "comparisons"), body)


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
        (tests, lambda row: "tests" in row or "gradients" in row),
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
