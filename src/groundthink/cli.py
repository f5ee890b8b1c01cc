"""The command line: verb -> (config class, function), imported only when the verb is used."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

from groundthink.errors import UserError, unknown


@dataclass(frozen=True)
class Verb:
    """One command. `bare` is the config key that a word without a flag fills, `rest` the one that
    takes the words after it."""

    about: str
    config: str
    run: str
    bare: str = ""
    rest: str = ""
    parse: str = "groundthink.cli:parse"


VERBS = {
    "train": Verb(
        "train a model; no argument is the default preset on the built-in corpus",
        "groundthink.train.config:TrainRun",
        "groundthink.lab.training:run",
        "NAME",
        parse="groundthink.lab.training:parse",
    ),
    "generate": Verb(
        "continue a text with a trained model",
        "groundthink.lab.config:Generate",
        "groundthink.lab.generation:run",
        "run",
    ),
    "check": Verb(
        "gates on a trained model: verdicts, JSON lines, exit code 1 on FAIL",
        "groundthink.diagnose.config:Check",
        "groundthink.lab.checking:run",
        "run",
    ),
    "probe": Verb(
        "look inside a trained model: balance, states, memory, context, flow, drift",
        "groundthink.diagnose.config:ProbeRun",
        "groundthink.lab.probing:run",
        "run",
        "probes",
    ),
    "compare": Verb(
        "two runs side by side with paired intervals; --assert-equal for refactors",
        "groundthink.diagnose.config:Compare",
        "groundthink.lab.comparing:run",
        "a",
        "b",
    ),
    "report": Verb(
        "one offline HTML file from a run's records",
        "groundthink.lab.config:Report",
        "groundthink.lab.reporting:run",
        "run",
    ),
    "list": Verb(
        "models | fusions | presets | gates | data",
        "groundthink.lab.config:List",
        "groundthink.lab.listing:run",
        "table",
    ),
    "data inspect": Verb(
        "decoded windows and document boundaries of a corpus",
        "groundthink.data.config:DataInspect",
        "groundthink.data.inspect:run",
        "data.corpus",
    ),
    "bench model": Verb(
        "B1 throughput, B2 memory, B3 stability, and the one-change matrix",
        "groundthink.bench.config:BenchModel",
        "groundthink.lab.benching:model",
        "model",
    ),
    "bench ops": Verb(
        "the recurrences beside other forms and other projects' operators",
        "groundthink.bench.config:BenchOps",
        "groundthink.bench.ops:run",
    ),
    "bench decode": Verb(
        "one token at a time, early and late in a text",
        "groundthink.bench.config:BenchDecode",
        "groundthink.bench.decode:run",
        "model",
    ),
    "doctor": Verb(
        "device, backends, precision, disk, versions: what works here",
        "groundthink.lab.config:Doctor",
        "groundthink.lab.doctor:run",
    ),
    "import rwkv6": Verb(
        "an official RWKV-6 .pth as a model folder",
        "groundthink.lab.config:Import",
        "groundthink.lab.importing:rwkv6",
        "source",
    ),
    "import mamba2": Verb(
        "a Hugging Face Mamba-2 folder as a model folder",
        "groundthink.lab.config:Import",
        "groundthink.lab.importing:mamba2",
        "source",
    ),
}


def locate(path: str) -> Any:
    """The object that "module:name" means."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def parse(name: str, verb: Verb, argv: list[str]) -> Any:
    """The config of a verb from its words; `--config FILE` may stand any number of times."""
    from groundthink import config as configs

    files, argv = configs.take(argv, "--config")
    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    if verb.bare and words:
        rest = words[1:] if verb.rest else []
        filled = [f"--{verb.rest}=[{','.join(rest)}]"] if rest else []
        argv = [f"--{verb.bare}", words[0], *filled, *argv[1 + len(rest) :]]
    return configs.parse(
        locate(verb.config),
        argv,
        prog=f"groundthink {name}",
        about=verb.about,
        usage=" ".join(f"[{key.rsplit('.')[-1].upper()}]" for key in (verb.bare, verb.rest) if key),
        files=[Path(file) for file in files],
    )


def find(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Name of the verb, of one word or two, and the words that are left."""
    two = " ".join(argv[:2])
    if two in VERBS:
        return two, list(argv[2:])
    if argv[0] in VERBS:
        return argv[0], list(argv[1:])
    group = [name for name in VERBS if name.startswith(argv[0] + " ")]
    raise unknown("command", two if group and len(argv) > 1 else argv[0], group or VERBS)


def overview() -> str:
    """What `groundthink --help` prints."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.about}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: groundthink COMMAND [options]        (gt is short for groundthink)",
            "",
            "Language models whose every block runs RWKV-6 and Mamba-2 side by side.",
            "",
            *lines,
            "",
            "groundthink COMMAND --help lists its options.",
        ]
    )


def guarded(action: Callable[[], int | None]) -> int:
    """Run an action; what a user can mend ends in one line, and an exit code that is not 0."""
    try:
        return action() or 0
    except UserError as error:
        print(f"groundthink: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(f"groundthink: {error.strerror}: {error.filename or 'cannot write'}", file=sys.stderr)
        return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `groundthink` and `gt`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("groundthink"))
        return 0

    def action() -> int | None:
        name, rest = find(words)
        verb = VERBS[name]
        return locate(verb.run)(locate(verb.parse)(name, verb, rest))

    return guarded(action)


if __name__ == "__main__":
    sys.exit(main())
