"""What `docs/performance.md` measures against a target: which records, and their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from groundthink.verdicts.statistics import Interval, exact

Row = dict[str, Any]
Found = Iterator[tuple[str, Interval, Row]]
"""What was measured for a target: where, the value, and its record."""

SHORT = ("wkv6-64x256x2x64", "wkv6-32x512x3x64", "wkv6-64x256x4x32")
LONG = ("wkv6-16x2048x12x64", "wkv6-1x32768x12x64")
SSD = ("ssd-64x256x4x64x64", "ssd-16x2048x24x64x128", "ssd-1x32768x24x64x128")
SHAPES = {"5m": (64, 256), "125m": (16, 1024)}


def interval(row: Row) -> Interval:
    """The value of a record with the interval it has, if it has one."""
    if row.get("low") is None or row.get("high") is None:
        return exact(row["value"], row["n"])
    return Interval(row["value"], row["low"], row["high"], row["n"])


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
            asked = ours and row["what"].startswith("training")
            if asked and row["who"].endswith("+compile") == compiled:
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
            if row.get("what") == what and row["who"].startswith("gf-mh-") and row["value"]:
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
