from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from groundthink.errors import UserError
from groundthink.report import page, run
from groundthink.report.run import Run

KINDS = ("provenance", "event", "baseline", "train", "balance", "val", "sample", "states", "gpu")


class Reader(HTMLParser):
    """Tags with their attributes, text of samples, and contents of scripts."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.samples = ""
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "pre"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self._inside == ["script"]:
            self.scripts.append(data)
        elif self._inside == ["pre"]:
            self.samples += data


@pytest.fixture(scope="module")
def full(full_run: Path) -> Run:
    return run.load(full_run)


@pytest.fixture(scope="module")
def read(full: Run) -> Reader:
    return Reader(page.render(full))


def test_nothing_outside_is_named(read: Reader) -> None:
    for tag, attrs in read.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not set(attrs) & {"src", "srcset", "action", "data"}
        assert (attrs.get("href") or "#").startswith("#")


def test_only_the_two_scripts_of_the_page_may_run(read: Reader) -> None:
    policies = (attrs["content"] for _, attrs in read.tags if "http-equiv" in attrs)
    policy = next(policies) or ""
    assert policy.startswith("default-src 'none'") and "unsafe-inline'; script" in policy
    plotly, own = read.scripts[-2:]
    assert plotly == get_plotlyjs(), "plotly.js is there once, as published"
    assert sum(len(script) > 1e6 for script in read.scripts) == 1
    for script in (plotly, own):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_hostile_samples_stay_text(read: Reader, full: Run) -> None:
    tags = [(tag, attrs) for tag, attrs in read.tags if tag == "img" or "onerror" in attrs]
    assert tags == []
    assert full.last("sample")["text"].replace("\x00", "␀") in read.samples


def test_hostile_names_stay_text(full: Run) -> None:
    hostile = "</script><script>alert(1)</script>"
    val = [{**row, "split": hostile} for row in full.of("val")]
    gate = {**full.gates[0], "id": hostile, "name": hostile, "note": hostile, "unit": hostile}
    config = {hostile: {hostile: hostile}, "data": {"corpus": hostile}}
    metrics = full.metrics | {"val": val, "provenance": [{hostile: hostile, "model": hostile}]}
    html = page.render(replace(full, config=config, metrics=metrics, gates=[gate]))
    assert hostile not in html
    assert len([tag for tag, _ in Reader(html).tags if tag == "script"]) == html.count("<script")


def test_figures_are_json_with_numbers(read: Reader) -> None:
    template, specs = read.scripts[-3], read.scripts[:-3]
    assert "layout" in json.loads(template)
    assert len(specs) > 12
    for spec in map(json.loads, specs):
        assert spec["data"] and spec["layout"]["height"] > 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "absent"])
def test_missing_kinds_are_said_and_not_drawn(full: Run, kind: str, alone: bool) -> None:
    kept = {k: rows for k, rows in full.metrics.items() if (k == kind) == alone}
    partial = Run(full.path, metrics=kept) if alone else replace(full, metrics=kept)
    sections = {section.id: section for section in page.sections(partial)}
    for section in sections.values():
        for figure in section.figures:
            assert any(known is not None for known in _values(figure.traces))
    says = {
        "train": ("learning", "No training step"),
        "val": ("learning", "No validation"),
        "baseline": ("learning", "No n-gram baseline"),
        "balance": ("fusion", "No balance record"),
        "states": ("states", "not logged"),
        "sample": ("samples", "No text"),
        "provenance": ("size", "not recorded"),
    }
    if not alone and kind in says:
        where, words = says[kind]
        assert any(words in note for note in sections[where].notes)
    assert page.render(partial).startswith("<!doctype html>")


def _values(traces: list[dict]) -> list:
    return [y for trace in traces for y in (trace["z"][0] if "z" in trace else trace["x"])]


def test_a_gpt2_run_has_no_branches(make_run: Callable[..., Path]) -> None:
    sections = {s.id: s for s in page.sections(run.load(make_run(layout="gpt2", steps=60)))}
    assert "nothing is fused" in sections["fusion"].notes[0]
    assert [figure.id for figure in sections["gradients"].figures] == ["grad-norm"]
    assert not sections["states"]


def test_the_report_is_replaced_whole_or_not_at_all(make_run: Callable[..., Path]) -> None:
    folder = make_run(steps=20, end=None)
    report = page.write(folder)
    assert report == folder / "report.html"
    first = report.read_text(encoding="utf-8")
    (folder / "env.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"env\.json is damaged"):
        page.write(folder)
    assert report.read_text(encoding="utf-8") == first
    assert list(folder.glob("report*")) == [report]


def test_neighbours_share_a_height_and_none_stands_alone(full: Run) -> None:
    from groundthink.report.shell import _aligned

    for section in page.sections(full):
        halves = [figure for figure in _aligned(section.figures) if not figure.wide]
        assert len(halves) % 2 == 0
        assert [f.height for f in halves[::2]] == [f.height for f in halves[1::2]]
