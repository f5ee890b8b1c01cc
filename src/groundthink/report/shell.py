"""The frame that every page shares: one offline HTML document from sections of figures and HTML."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from groundthink.report.plot import TEMPLATE, Figure
from groundthink.report.text import esc, prose

_HERE = Path(__file__).parent
_HINT = (
    "Drag across a figure to zoom, double-click to return, click a legend entry to hide its line; "
    "on the keyboard, Tab to a figure, then + − ← → and 0."
)


@dataclass(frozen=True)
class Section:
    """One part of a page; an empty one is left out."""

    id: str
    title: str
    figures: Sequence[Figure] = ()
    html: str = ""
    """Tables and prose, safe to place as it is."""
    notes: Sequence[str] = field(default=())
    """Plain sentences about what is missing and how to get it."""

    def __bool__(self) -> bool:
        return bool(self.figures or self.html or self.notes)


def document(title: str, header: str, sections: Sequence[Section], footer: str) -> str:
    """A whole page: styles, scripts and data are inside, and nothing outside is ever asked for.

    The content security policy allows the two scripts of this page by their hash, so that text
    from a model or a corpus could not run even if it escaped its element.

    Args:
        header, footer: HTML.
    """
    sections = [section for section in sections if section]
    scripts = (get_plotlyjs(), _asset("page.js"))
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src 'unsafe-inline'; script-src {' '.join(map(_hash, scripts))}"
    )
    links = "".join(f'<a href="#{part.id}">{esc(part.title)}</a>' for part in sections)
    body = "".join(map(_section, sections))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{esc(title)}</title>
<style>{_asset("theme.css")}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<div class="page">
<div class="bar"><nav aria-label="Sections">{links}</nav>
<button id="theme" type="button">Dark theme</button></div>
<header>{header}</header>
<main id="content">{body}</main>
<footer><p>{_HINT}</p>{footer}
<noscript><p>Scripts are off: figures are not drawn, all tables and texts are above.</p></noscript>
</footer>
</div>
<script type="application/json" id="template">{_json(TEMPLATE)}</script>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def _section(section: Section) -> str:
    notes = "".join(f'<p class="missing">{prose(note)}</p>' for note in section.notes)
    drawn = "".join(map(_figure, _aligned(section.figures)))
    grid = f'<div class="figures">{drawn}</div>' if drawn else ""
    return (
        f'<section id="{section.id}"><h2>{esc(section.title)}</h2>'
        f"{grid}{section.html}{notes}</section>"
    )


def _aligned(figures: Sequence[Figure]) -> list[Figure]:
    """Figures in two columns: neighbours share a height, one without a neighbour takes the row."""
    out: list[Figure] = []
    waiting = list(figures)
    while waiting:
        first, *rest = waiting
        if first.wide or not rest or rest[0].wide:
            out.append(replace(first, wide=True))
            waiting = rest
        else:
            height = max(first.height, rest[0].height)
            out += [replace(first, height=height), replace(rest[0], height=height)]
            waiting = rest[1:]
    return out


def _figure(figure: Figure) -> str:
    return (
        f'<figure class="figure{" wide" if figure.wide else ""}" id="{figure.id}">'
        f"<h3>{prose(figure.title)}</h3>"
        f'<div class="plot" tabindex="0" role="group" aria-label="{esc(figure.title)}" '
        f'style="height:{figure.height}px"></div>'
        f"<figcaption>{prose(figure.caption)}</figcaption>"
        f'<script type="application/json">{_json(figure.spec())}</script></figure>'
    )


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
