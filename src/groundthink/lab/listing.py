"""`groundthink list`: what the open tables hold, each with the first line of its docstring."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from groundthink.errors import unknown
from groundthink.lab.config import List

Row = tuple[str, ...]


def models() -> Iterator[Row]:
    """Models as built, 16,000 token ids; -mh, -rh, -xm, -xr set the gate of gf and hgf."""
    from dataclasses import replace

    from groundthink.models.count import count_config
    from groundthink.models.names import SIZES, VARIANTS, resolve

    one_gate = {replace(c, gate_init=0.5): name for name, c in reversed(VARIANTS.items())}
    yield "model", "C x L", "total", "no embed", "rwkv6", "mamba2", "MFLOP", "state"
    for name in (f"{variant}-{size}" for variant in reversed(one_gate.values()) for size in SIZES):
        config = replace(resolve(name), vocab_size=16000)
        n = count_config(config)
        yield (
            name,
            f"{config.d_model}x{config.n_layers}",
            *(f"{n[key] / 1e6:.2f}M" for key in ("total", "non_embedding")),
            *(
                f"{n[key] / n['non_embedding']:.0%}" if n[key] else "-"
                for key in ("rwkv6", "mamba2")
            ),
            f"{n['flops_per_token'] / 1e6:.1f}",
            f"{n['state_bytes'] / 1024:.0f} KiB",
        )


def fusions() -> Iterator[Row]:
    """Fusion variants of a parallel block."""
    from groundthink.models.fusion import FUSIONS

    yield from described(FUSIONS, "fusion")


def presets() -> Iterator[Row]:
    """Run presets: groundthink train --config NAME."""
    from groundthink.models import build

    yield "preset", "what it is", "file"
    for name, path in build.presets().items():
        first = path.read_text(encoding="utf-8").partition("\nmodel:")[0]
        yield name, " ".join(first.replace("#", " ").split()), path.name


def gates() -> Iterator[Row]:
    """Gates of groundthink check."""
    import groundthink.lab.graduation  # noqa: F401  enters its gates
    from groundthink.diagnose.gates import GATES, SUITES, ids_of

    yield "gate", "suites", "what it is"
    for id, entry in GATES.items():
        suites = ", ".join(suite for suite in SUITES if id in ids_of(suite))
        yield id, suites, (entry.__doc__ or "").strip().partition("\n")[0]


def data() -> Iterator[Row]:
    """Built-in corpora; any text file, folder or glob works too."""
    from groundthink.data.corpora import BUILTIN

    yield "corpus", "what it is"
    yield from ((name, about) for name, about in BUILTIN.items())


def described(table: dict, title: str) -> Iterator[Row]:
    """Name and first docstring line of every entry."""
    yield title, "what it is"
    for name, entry in table.items():
        yield name, (entry.__doc__ or "").strip().partition("\n")[0]


TABLES: dict[str, Callable[[], Iterator[Row]]] = {
    "models": models,
    "fusions": fusions,
    "presets": presets,
    "gates": gates,
    "data": data,
}


def run(config: List) -> None:
    """Print one table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if config.table not in TABLES:
        raise unknown("table", config.table, TABLES)
    make = TABLES[config.table]
    header, *rows = make()
    title = Text((make.__doc__ or "").strip())
    table = Table(*header, box=SIMPLE_HEAD, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
