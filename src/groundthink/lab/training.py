"""`groundthink train`: words -> TrainRun, and the loop with its observers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from groundthink import config as configs
from groundthink.errors import UserError
from groundthink.train.config import TrainRun

if TYPE_CHECKING:
    from groundthink.cli import Verb

SHORT = {
    "--model": "--model.name",
    "--data": "--data.corpus",
    "--tokenizer": "--data.tokenizer",
    "--steps": "--train.steps",
    "--max-steps": "--train.steps",
    "--batch-size": "--train.batch_size",
    "--seq-len": "--train.seq_len",
    "--grad-accum": "--train.grad_accum",
    "--lr": "--train.lr",
    "--min-lr": "--train.min_lr",
    "--rwkv-lr-mult": "--train.rwkv_lr_mult",
    "--mamba-lr-mult": "--train.mamba_lr_mult",
    "--seed": "--train.seed",
    "--device": "--train.device",
    "--amp": "--train.precision=bf16",
    "--no-amp": "--train.precision=fp32",
    "--compile": "--train.compile=true",
    "--log-states": "--train.log_states=true",
    "--no-checkpoint": "--train.checkpoints=false",
}
"""Short spellings, as the original study had them, and what they stand for."""


def parse(name: str, verb: Verb, argv: list[str]) -> tuple[TrainRun, Path | None]:
    """The run that the words describe, and the folder to resume; the command line wins over YAML,
    YAML over what the model's name stands for, that over the defaults.

    Raises:
        UserError: unknown name, option or preset, or a value of the wrong type.
    """
    from groundthink.models.build import preset_file
    from groundthink.models.names import resolve

    argv = [expand(word) for word in argv]
    files, argv = configs.take(argv, "--config")
    resume, argv = configs.take(argv, "--resume")
    if argv and not argv[0].startswith("-"):
        argv = ["--model.name", *argv]
    model, argv = configs.take(argv, "--model.name")
    if resume:
        files = [str(run_config(Path(resume[-1]))), *files]
    elif not files and not model:
        files = ["default"]
    paths = [preset_file(file) for file in files]
    named = [configs.read_yaml(path).get("model", {}).get("name") for path in paths]
    known = [each for each in [*named, *model] if each]
    base = resolve(known[-1]) if known else TrainRun().model
    run = configs.parse(
        TrainRun,
        [*argv, f"--model.name={base.name}"],
        prog=f"groundthink {name}",
        about=verb.about,
        usage=f"[{verb.bare}] [--config FILE ...] [--resume RUN]",
        files=paths,
        base={"model": configs.to_dict(base)},
    )
    return run, Path(resume[-1]) if resume else None


def expand(word: str) -> str:
    """A word with its short spelling replaced: --steps=5 is --train.steps=5."""
    flag, equals, value = word.partition("=")
    return SHORT.get(flag, flag) + equals + value


def run_config(folder: Path) -> Path:
    """config.yaml of the run that a run folder, or one of its checkpoints, belongs to.

    Raises:
        UserError: the folder holds no run.
    """
    run = folder.parents[1] if folder.parent.name == "checkpoints" else folder
    path = run / "config.yaml"
    if not path.exists():
        raise UserError(f"{folder} holds no run to resume; start one with: groundthink train")
    return path


def run(command: tuple[TrainRun, Path | None]) -> int:
    """Train, watching the balance of the branches (and the states, if asked); the exit code."""
    from groundthink.diagnose.balance import Balance
    from groundthink.diagnose.states import States
    from groundthink.train.loop import train
    from groundthink.train.stop import Interrupted

    config, resume = command
    every = config.train.log_every
    observers = [Balance(every)] + ([States(every)] if config.train.log_states else [])
    try:
        folder = train(config, observers=observers, resume=resume)
    except Interrupted as stop:
        print(f"groundthink: {stop}", file=sys.stderr)
        return stop.code
    print(f"{folder}: look at it with: groundthink check {folder}; groundthink report {folder}")
    return 0
