"""Configs: one definition, strict in both directions, the command line wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundthink import config as configs
from groundthink.cli import VERBS
from groundthink.errors import UserError
from groundthink.lab.training import parse
from groundthink.models.build import presets
from groundthink.train.config import TrainRun

pytestmark = pytest.mark.tiny


def words(*argv: str) -> TrainRun:
    return parse("train", VERBS["train"], list(argv))[0]


def test_yaml_round_trip(tmp_path):
    run = words("gf-rh-tiny", "--train.lr", "3e-4", "--model.gate_init_layers", "[0.1,0.2,0.3,0.4]")
    configs.save(run, tmp_path / "c.yaml")
    assert configs.load(TrainRun, tmp_path / "c.yaml") == run
    assert configs.digest(run) != configs.digest(words("gf-rh-tiny"))


def test_the_command_line_wins_over_yaml_over_the_name_over_defaults(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("model: {name: gf-rh-tiny, n_layers: 6}\ntrain: {lr: 1e-4, steps: 7}\n")
    run = words("--config", str(path), "--train.lr", "5e-4")
    assert (run.train.lr, run.train.steps, run.train.batch_size) == (5e-4, 7, 64)
    assert (run.model.n_layers, run.model.gate_init, run.model.d_model) == (6, 0.7, 64)
    assert words("--config", str(path), "hy-5m").model.fusion == "hy"


def test_later_files_win_over_earlier_ones(tmp_path):
    for name, steps in (("a", 1), ("b", 2)):
        (tmp_path / name).write_text(f"train: {{steps: {steps}, seq_len: 32}}")
    run = words("--config", str(tmp_path / "a"), "--config", str(tmp_path / "b"))
    assert (run.train.steps, run.train.seq_len) == (2, 32)


def test_no_argument_is_the_default_preset():
    assert words() == words("--config", "default.yaml") == words("gf-mh-5m")


def test_short_spellings_mean_the_long_ones():
    short = words(
        "--model", "gf-5m", "--steps", "9", "--max-steps=9", "--lr=1e-4", "--no-checkpoint"
    )
    long = words(
        "gf-5m", "--train.steps", "9", "--train.lr", "1e-4", "--train.checkpoints", "false"
    )
    assert short == long
    assert words("--amp", "--log-states").train.precision == "bf16"


def test_a_hyphen_is_an_underscore_and_a_switch_alone_is_true():
    spelled = words("--train.log-states", "--train.seq-len", "32")
    assert spelled == words("--train.log_states", "true", "--train.seq_len=32")
    assert not words("--train.log-states", "false").train.log_states
    assert words("--data.corpus=my-text.txt").data.corpus == "my-text.txt"


@pytest.mark.parametrize("given", ["0.1,0.2", "[0.1,0.2]"])
def test_a_list_may_go_without_brackets(given):
    expected = (0.1, 0.2)
    assert words("--model.gate_init_layers", given).model.gate_init_layers == expected
    assert words(f"--model.gate_init_layers={given}").model.gate_init_layers == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train.lrr", "1"], r"unknown option --train.lrr; did you mean --train.lr"),
        (["--batchsize", "1"], "unknown option --batchsize; did you mean --train.batch_size"),
        (["--train.lr", "fast"], r"train\.lr"),
        (["--data.split", "half"], r"document"),
        (["gf-mh-5mm"], "unknown model 'gf-mh-5mm'; did you mean gf-mh-5m"),
        (["--config", "8m_5k"], "unknown preset '8m_5k'; did you mean 8m_50k"),
        (["--config"], "--config needs a value"),
        (["--resume", "nowhere"], "holds no run to resume"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    with pytest.raises(UserError, match=message) as caught:
        words(*argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {stepz: 3}", r"bad\.yaml: unknown option train\.stepz; did you mean train\.steps"),
        ("train: {steps: many}", r"bad\.yaml: train\.steps must be int, not 'many'"),
        ("train: 3", "train must hold keys of its own"),
        ("train: {compile: 1}", "train.compile must be bool, not 1"),
        ("- a", "must hold keys and values"),
        ("a: [", "cannot read the config"),
    ],
)
def test_mistakes_in_yaml_name_the_file(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        words("--config", str(path))
    assert "\n" not in str(caught.value) and "bad.yaml" in str(caught.value)


@pytest.mark.parametrize("path", presets().values(), ids=presets())
def test_every_preset_parses_and_fits(path: Path):
    from groundthink.models.count import count_config

    run = words("--config", str(path))
    assert count_config(run.model)["total"] > 0
    assert run.train.warmup_steps < run.train.steps


def test_every_option_of_every_verb_has_help(capsys):
    for name, verb in VERBS.items():
        from groundthink.cli import locate

        with pytest.raises(SystemExit) as stop:
            locate(verb.parse)(name, verb, ["--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        for key in configs.keys(locate(verb.config)):
            assert f"--{key}" in text
