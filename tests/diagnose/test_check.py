"""A real run from its folder to a subject, findings and lines."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import pytest
from toys import small

from groundthink.data.config import DataConfig
from groundthink.diagnose.balance import Balance
from groundthink.diagnose.check import lines, measured, remark
from groundthink.diagnose.gates import GATES, ids_of, run_gates
from groundthink.diagnose.subject import subject_of
from groundthink.errors import UserError
from groundthink.models import pretrained
from groundthink.train.config import TrainConfig, TrainRun
from groundthink.train.loop import train
from groundthink.verdicts.statistics import Interval
from groundthink.verdicts.verdict import Verdict, judge


def titles() -> dict[str, str]:
    return {id: entry.title for id, entry in GATES.items()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twenty documents of random words, about 30 KB."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("text")
    words = ["state", "more", "mamba", "plan", "stone", "tone", "ore", "mate"]
    documents = (" ".join(rng.choices(words, k=250)) for _ in range(20))
    (folder / "words.txt").write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    return folder / "words.txt"


def trained(corpus, out, val_fraction: float = 0.2, steps: int = 12):
    """The folder of a short run."""
    data = DataConfig(
        corpus=str(corpus), cache_dir=str(corpus.parent / "cache"), val_fraction=val_fraction
    )
    settings = TrainConfig(
        **{"steps": steps, "batch_size": 4, "seq_len": 32, "log_every": 1, "eval_every": steps},
        **{"sample_every": 0, "device": "cpu", "tensorboard": False},
    )
    run = TrainRun(model=small("gf-mh"), data=data, train=settings, out=str(out))
    return train(run, observers=[Balance(1)], log=lambda line: None)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    return trained(corpus, tmp_path_factory.mktemp("runs") / "toy")


def test_the_subject_is_the_last_checkpoint_with_its_text_and_records(run):
    subject = subject_of(str(run), "cpu")
    assert subject.steps == 12
    assert subject.train_tokens == 4 * 32
    assert {"train", "val", "baseline", "balance"} <= {record["kind"] for record in subject.records}
    tokens = {tuple(row.tolist()) for batch in subject.batches for row in batch.tokens}
    assert len(tokens) == sum(len(batch.tokens) for batch in subject.batches), "no row twice"


def test_every_gate_has_something_to_say_about_a_run(run):
    toy = subject_of(str(run), "cpu")
    asked = [*(id for id in ids_of("gates") if id != "overfit"), "S0", "D3"]
    findings = run_gates(toy, asked)
    assert {finding.id for finding in findings} == set(asked)
    short = {f.note for f in findings if f.id == "D3"}
    assert len(short) == 1 and "stretches of 128 tokens" in short.pop(), "too little text is open"
    exact = [f for f in findings if f.id in ("G0", "G1", "checkpoint", "gradient-flow")]
    assert {finding.verdict for finding in exact} == {Verdict.PASS}
    g3 = {finding.verdict for finding in findings if finding.id == "G3"}
    assert Verdict.FAIL not in g3
    assert Verdict.INCONCLUSIVE in g3
    shown = "\n".join(str(line) for line in lines(findings, titles()))
    assert all(f"{id}  {GATES[id].title}" in shown for id in {finding.id for finding in findings})


def test_what_cannot_be_checked_says_why(run, corpus, tmp_path):
    checkpoint = pretrained.model_folder(run)
    assert subject_of(str(checkpoint), "cpu").folder == run
    alone = shutil.copytree(checkpoint, tmp_path / "alone")
    with pytest.raises(UserError, match="is a model without its run"):
        subject_of(str(alone), "cpu")
    with pytest.raises(UserError, match="is not a run or a model folder"):
        subject_of(str(tmp_path), "cpu")
    blind = trained(corpus, tmp_path / "blind", val_fraction=0.0, steps=1)
    with pytest.raises(UserError, match="has 0 validation tokens and 513 are needed"):
        subject_of(str(blind), "cpu")


@pytest.mark.tiny
def test_of_several_modules_the_gravest_is_shown():
    fine, broken = (
        judge("G3.5", "effective rank", Interval(x, x, x, 16), where=f"blocks.{i}.rwkv6")
        for i, x in enumerate((0.5, 0.01))
    )
    text = "".join(str(line) for line in lines([fine, broken], titles()))
    assert "FAIL" in text
    assert remark(broken, [fine, broken]) == "blocks.1.rwkv6; 1 FAIL, 1 PASS"
    assert measured(fine, [fine, replace(fine, value=0.6)]) == "0.5 .. 0.6"
