"""Names compose, sizes match, and what is unknown is answered with near names."""

from __future__ import annotations

import pytest

from groundthink.errors import UserError
from groundthink.models.build import as_config, preset_file
from groundthink.models.count import count_config
from groundthink.models.names import ALIASES, SIZES, VARIANTS, names, resolve


@pytest.mark.parametrize("name", names())
def test_every_name_constructs_on_meta_with_its_variant(name):
    config = resolve(name)
    assert config.name == name
    if name.endswith(("tiny", "5m")):
        assert count_config(config)["total"] > 0


@pytest.mark.parametrize("alias", [*ALIASES, "GF-MH", "Tiny", "GPT2"])
def test_aliases_resolve_whatever_their_case(alias):
    assert resolve(alias).name in names()


@pytest.mark.parametrize("size", SIZES)
def test_gpt2_and_the_pure_models_match_the_hybrid_without_embedding(size):
    hybrid, *rest = (
        count_config(resolve(f"{variant}-{size}"))["non_embedding"]
        for variant in ("gf-mh", "gpt2", "rwkv6", "mamba2")
    )
    for count, tolerance in zip(rest, (0.03, 0.04, 0.04), strict=True):
        assert count == pytest.approx(hybrid, rel=tolerance)


@pytest.mark.parametrize("name", ["gf-hm-5m", "gf-mh-5n", "nothing"])
def test_an_unknown_name_is_one_line_with_near_names(name):
    with pytest.raises(UserError, match="unknown model") as caught:
        resolve(name)
    assert "\n" not in str(caught.value) and "gf-mh" in str(caught.value)


def test_a_preset_and_a_yaml_file_name_a_model(tmp_path):
    assert as_config("8m_50k") == as_config("8m_50k.yaml") == resolve("gf-mh-8m")
    path = tmp_path / "mine.yaml"
    path.write_text("model:\n  name: gf-mh-tiny\n  n_layers: 2\n")
    assert as_config(str(path)).n_layers == 2 and as_config(path).gate_init == 0.3
    with pytest.raises(UserError, match="did you mean 8m_50k"):
        preset_file("8m_50.yaml")


def test_gate_variants_differ_in_the_gate_alone():
    from dataclasses import replace

    base = VARIANTS["gf"]
    for name, share in (("gf-mh", 0.3), ("gf-rh", 0.7), ("gf-xm", 0.03), ("gf-xr", 0.97)):
        assert VARIANTS[name] == replace(base, gate_init=share)
