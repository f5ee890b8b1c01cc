"""`groundthink doctor`: what works on this machine and what does not, found by trying it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from groundthink.lab.config import Doctor

Line = tuple[str, bool, str]


def environment() -> Iterator[Line]:
    """Versions, device, memory and disk."""
    import torch

    from groundthink.records import environment as versions

    found = versions()
    for name in ("groundthink", "python", "torch", "numpy", "platform"):
        yield name, bool(found[name]), str(found[name])
    yield "CPU threads", True, str(torch.get_num_threads())
    cuda = torch.cuda.is_available()
    yield "CUDA", cuda, found["device"] if cuda else "no GPU; everything runs on the CPU"
    if cuda:
        free, total = torch.cuda.mem_get_info()
        yield "GPU memory", True, f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    disk = shutil.disk_usage(Path.cwd())
    yield "disk", disk.free > 2**30, f"{disk.free / 2**30:.1f} GiB free here"


def backends() -> Iterator[Line]:
    """Backends of both recurrences, tried on the default device."""
    import torch

    from groundthink.device import pick_device
    from groundthink.ops import ssd, wkv6
    from groundthink.ops.ssd import BACKENDS as SSD
    from groundthink.ops.wkv6 import BACKENDS as WKV6

    device = pick_device("auto")
    x = torch.randn(1, 20, 2, 16, device=device)
    half = torch.full((2,), -0.5, device=device)
    for name in WKV6:
        yield tried(f"wkv6 {name}", lambda n=name: wkv6(x, x, x, -x.abs(), x[0, 0], backend=n))
    for name in SSD:
        yield tried(f"ssd {name}", lambda n=name: ssd(x, x[..., 0].abs(), half, x, x, backend=n))


def precisions() -> Iterator[Line]:
    """Precisions of autocast, tried on the default device."""
    import torch

    from groundthink.device import pick_device

    device = pick_device("auto")
    x = torch.randn(8, 8, device=device)

    def multiply(dtype: torch.dtype) -> None:
        with torch.autocast(device.type, dtype):
            _ = (x @ x).sum().item()

    for name in ("bfloat16", "float16"):
        yield tried(f"{device.type} {name}", lambda n=name: multiply(getattr(torch, n)))


def extras() -> Iterator[Line]:
    """Optional packages, each with the command that brings it."""
    from importlib.util import find_spec

    for package, extra in (("datasets", "data"), ("zstandard", "data"), ("tensorboard", "track")):
        there = find_spec(package) is not None
        yield package, there, "installed" if there else f"pip install 'groundthink[{extra}]'"
    there = shutil.which("g++") is not None
    yield (
        "C++ compiler",
        there,
        "for --train.compile on a CPU" if there else "--train.compile needs one on a CPU",
    )


def tried(name: str, action: Callable[[], object]) -> Line:
    """Run an action; whatever it raises is the finding."""
    try:
        action()
    except Exception as error:
        return name, False, " ".join(str(error).split())[:100]
    return name, True, "works"


def run(_: Doctor) -> None:
    """Print every finding."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for section in (environment, backends, precisions, extras):
        console.print(f"\n[bold]{(section.__doc__ or '').rstrip('.')}[/bold]")
        for name, works, note in section():
            mark = "[green]yes[/green]" if works else "[yellow]no [/yellow]"
            console.print(f"  {mark} {name:<20} {escape(note)}")
