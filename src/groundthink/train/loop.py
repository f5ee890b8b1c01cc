"""The training loop: steps at one end, records and checkpoints at the other."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from groundthink import config as configs
from groundthink import records
from groundthink.data.baseline import ngram_baselines
from groundthink.data.corpora import Corpus, prepare
from groundthink.data.packed import Packed
from groundthink.data.stream import Lanes, Windows, evaluation
from groundthink.device import pick_device
from groundthink.errors import UserError
from groundthink.models.build import build
from groundthink.models.count import count
from groundthink.models.generate import sample
from groundthink.train import checkpoint
from groundthink.train.config import TrainConfig, TrainRun
from groundthink.train.console import progress, short
from groundthink.train.evaluate import bits_per_byte, evaluate, scored_bytes
from groundthink.train.export import Sink, tensorboard, write_csv
from groundthink.train.folder import METRICS, require_empty, rewind, run_folder
from groundthink.train.monitor import GpuMonitor, gpu_monitor
from groundthink.train.step import NonFinite, Observer, Stepper
from groundthink.train.stop import Interrupted, StopSignal

PROMPT_TOKENS, SAMPLE_TOKENS = 16, 200
COUNTS = ("steps", "batch_size", "seq_len", "grad_accum", "log_every", "eval_every", "save_every")
STREAMS = {"lanes": Lanes, "windows": Windows}


def train(
    run: TrainRun,
    *,
    observers: Sequence[Observer] = (),
    resume: str | Path | None = None,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Train a model and write its run folder.

    Args:
        run: model, data and optimisation. A resumed run may change steps, learning rate, cadence
            and device, but nothing that its weights or its place in the data depend on.
        observers: look at the model in their steps and give records (`Observer`).
        resume: a run folder, or one of its checkpoints, to go on from.
        log: takes lines of progress; None is a live panel on a terminal and lines elsewhere.

    Returns:
        The run folder.

    Raises:
        UserError: a setting, file or folder cannot work, the disk is full, the loss is not finite.
        Interrupted: Ctrl-C or SIGTERM came; the run was saved after the step it was in.
    """
    check(run.train)
    device = pick_device(run.train.device)
    if run.train.precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"train.precision fp16 needs a GPU, this is {device.type}; use bf16 or fp32"
        )
    start = checkpoint.find(resume) if resume else None
    folder = start.parents[1] if start else run_folder(run)
    if start is None:
        require_empty(folder)
    monitor = gpu_monitor(device)
    try:
        corpus = prepare(run.data, lanes=run.train.batch_size, log=log or print)
        vocab_size = corpus.tokenizer.vocab_size
        run = replace(run, model=replace(run.model, vocab_size=vocab_size), out="")
        trainer = Trainer(run, corpus, device, folder, observers, monitor)
        if start:
            trainer.restore(start)
        with StopSignal() as stop:
            trainer.fit(stop, log)
    finally:
        if monitor:
            monitor.close()
    return folder


def check(config: TrainConfig) -> None:
    """Raise UserError for values that no run can have."""
    for name in COUNTS:
        if getattr(config, name) < 1:
            raise UserError(f"train.{name} is {getattr(config, name)}; it must be at least 1")
    if config.lr <= 0:
        raise UserError(f"train.lr is {config.lr}; it must be above 0")
    if config.schedule != "constant" and not 0 <= config.min_lr <= config.lr:
        raise UserError(f"train.min_lr {config.min_lr} must lie between 0 and train.lr {config.lr}")


@dataclass
class Progress:
    """Where a run stands between two steps; `best` is the checkpoint with the lowest val loss."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: str = ""
    best_loss: float = math.inf


class Trainer:
    """A run under way: model, data, optimizer and what is written of them."""

    def __init__(
        self,
        run: TrainRun,
        corpus: Corpus,
        device: torch.device,
        folder: Path,
        observers: Sequence[Observer] = (),
        monitor: GpuMonitor | None = None,
    ):
        config = run.train
        self.run, self.config, self.corpus, self.folder = run, config, corpus, folder
        self.device = device
        self.observers, self.monitor, self.sinks = observers, monitor, list[Sink]()
        self.val = corpus.splits.get("val")
        checkpoint.seed_rng(config.seed)
        self.model = build(run.model, backend=config.backend, device=device, seed=config.seed)
        self.carry = run.data.order == "lanes" and config.carry_state and self.model.recurrent
        self.stepper = Stepper(self.model, config, device, self.carry)
        self.stream = STREAMS[run.data.order](
            corpus.splits["train"], config.batch_size, config.seq_len, config.seed
        )
        self.token_bytes = torch.from_numpy(corpus.tokenizer.token_bytes)
        self.progress, self.saved = Progress(), -1
        if config.compile:
            for block in self.model.blocks:
                block.compile()

    def fit(self, stop: StopSignal, log: Callable[[str], None] | None = None) -> None:
        """Run to the last step, or to the end of the step in which `stop` was asked for."""
        try:
            self._open(log)
            while self.progress.step < self.config.steps:
                self._step()
                self._look()
                if stop.signum and self.progress.step < self.config.steps:
                    self._save()
                    self._end("interrupted")
                    raise Interrupted(stop.signum, self.folder, self.config.checkpoints)
            self._end(
                "finished",
                f"{short(self.progress.tokens)} tokens in {self.progress.seconds:.0f} s",
            )
        finally:
            for sink in self.sinks:
                sink.close()

    def _end(self, what: str, note: str = "") -> None:
        self._emit("event", what=what, step=self.progress.step, note=note)
        write_csv(self.folder)

    def restore(self, start: Path) -> None:
        """Put everything back to what it was when the checkpoint `start` was written.

        Raises:
            UserError: it is damaged, or of another model, tokenizer or corpus.
        """
        stored = checkpoint.restore(start, self.model, self._identity())
        self.progress = Progress(**stored["progress"])
        self.stepper.load_state_dict(stored["stepper"])
        self.stream.load_state_dict(stored["data"])
        checkpoint.set_rng_state(stored["rng"])
        self.saved = self.progress.step
        if not (start.parent / self.progress.best).exists():  # a later best had replaced it
            self.progress.best = start.name
        checkpoint.write_index(start.parent, start.name, self.progress.best or start.name)
        rewind(self.folder, self.progress.step)

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint."""
        model = {f"model.{key}": value for key, value in configs.to_dict(self.run.model).items()}
        fixed = ("batch_size", "seq_len", "seed")
        return {
            **model,
            **{f"train.{name}": getattr(self.config, name) for name in fixed},
            "data.order": self.run.data.order,
            "tokenizer": self.corpus.tokenizer.digest,
            "data": self.corpus.digest,
        }

    def _open(self, log: Callable[[str], None] | None) -> None:
        """Config, environment, provenance and sinks; a new run also gets its baselines."""
        begun, counts = self.progress.step, count(self.model)
        environment = records.environment()
        self.folder.mkdir(parents=True, exist_ok=True)
        configs.save(self.run, self.folder / "config.yaml")
        (self.folder / "env.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")
        provenance = {
            **environment,
            "config_hash": configs.digest(self.run),
            "data_hash": self.corpus.digest,
            "seed": self.config.seed,
            "model": self.run.model.name,
            "counts": counts,
            "data": self.corpus.about,
            "steps": self.config.steps,
            "argv": sys.argv,
        }
        self.records = records.Records(self.folder / METRICS, provenance)
        size = f"{short(counts['total'])} parameters"
        title = f"{self.run.model.name} · {size} · {self.run.data.corpus} · {self.device}"
        self.sinks.append(progress(title, self.config.steps, begun, self.config.log_every, log))
        if self.config.tensorboard and (board := tensorboard(self.folder, begun)):
            self.sinks.append(board)
        self._emit(
            "event", what="resumed" if begun else "started", step=begun, note=str(self.folder)
        )
        if self.monitor and not begun:
            self._emit("gpu", step=0, **self.monitor.idle)
        if self.val and not begun:
            baselines = ngram_baselines(
                self.corpus.splits["train"], self.val, self.run.model.vocab_size
            )
            self._emit("baseline", split="val", **baselines)

    def _emit(self, kind: str, **fields: Any) -> None:
        record = self.records.append(kind, **fields)
        for sink in self.sinks:
            sink.log(record)

    def _due(self, every: int, first: bool = False) -> bool:
        """Whether something done every so many steps is due; at the last step it is."""
        step = self.progress.step
        return every > 0 and (step % every == 0 or step == self.config.steps or first and step == 1)

    def _step(self) -> None:
        """One optimizer step and its records."""
        place = self.progress
        began = time.perf_counter()
        place.step += 1
        batches = [self.stream.next() for _ in range(self.config.grad_accum)]
        observers = [each for each in self.observers if self._due(each.every, first=True)]
        try:
            outcome = self.stepper.step(place.step, batches, observers)
        except NonFinite as error:
            raise self._not_finite(error) from error
        seconds = time.perf_counter() - began
        tokens = sum(batch.tokens.numel() for batch in batches)
        place.tokens, place.seconds = place.tokens + tokens, place.seconds + seconds
        n_bytes = sum(scored_bytes(batch, self.token_bytes) for batch in batches)
        for kind, fields in outcome.observed:
            self._emit(kind, step=place.step, **fields)
        self._emit(
            "train",
            step=place.step,
            loss=outcome.loss,
            bpb=bits_per_byte(outcome.loss * outcome.scored, n_bytes),
            lr=outcome.lr,
            grad_norm=outcome.grad_norm,
            tok_per_s=tokens / seconds,
            tokens=place.tokens,
            seconds=place.seconds,
        )

    def _not_finite(self, error: NonFinite) -> UserError:
        self._end("nonfinite", str(error))
        last = checkpoint.read_index(self.folder / "checkpoints").get("last")
        return UserError(
            f"step {self.progress.step}: {error}; stopped before the update, the last good "
            f"checkpoint is {last or 'none yet'}; lower train.lr"
        )

    def _look(self) -> None:
        """Everything that is done between two steps, each at its cadence."""
        config, place = self.config, self.progress
        if self.monitor and self._due(config.log_every) and (reading := self.monitor.take()):
            self._emit("gpu", step=place.step, **reading)
        best = bool(self.val) and self._due(config.eval_every) and self._validate(self.val)
        if self._due(config.sample_every):
            self._sample()
        if best or self._due(config.save_every):
            self._save()

    def _validate(self, val: Packed) -> bool:
        """Validate; whether the loss is the lowest so far."""
        config, place = self.config, self.progress
        batches = evaluation(val, config.batch_size, config.seq_len, config.eval_tokens)
        found = evaluate(
            self.model, batches, self.token_bytes, carry=self.carry, precision=config.precision
        )
        best = found["loss"] < place.best_loss
        if best:
            place.best, place.best_loss = checkpoint.name(place.step), found["loss"]
        self._emit("val", step=place.step, split="val", **found, best=best)
        write_csv(self.folder)
        return best

    def _sample(self) -> None:
        tokenizer = self.corpus.tokenizer
        source = self.val or self.corpus.splits["train"]
        prompt = tokenizer.decode(source.tokens[:PROMPT_TOKENS].tolist())
        text = sample(self.model, tokenizer, prompt, SAMPLE_TOKENS)
        self._emit("sample", step=self.progress.step, prompt=prompt, text=text)

    def _save(self) -> None:
        place = self.progress
        if not self.config.checkpoints or self.saved == place.step:
            return
        path = checkpoint.save(
            self.folder / "checkpoints",
            place.step,
            self.model,
            self.corpus.tokenizer,
            meta={
                "step": place.step,
                "config_hash": configs.digest(self.run),
                "data_hash": self.corpus.digest,
            },
            training={
                "identity": self._identity(),
                "progress": dataclasses.asdict(place),
                "stepper": self.stepper.state_dict(),
                "data": self.stream.state_dict(),
                "rng": checkpoint.rng_state(),
            },
            best=place.best or None,
        )
        self.saved = place.step
        self._emit("checkpoint", step=place.step, path=str(path.relative_to(self.folder)))
