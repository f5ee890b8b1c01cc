"""Counts against formulas worked out by hand."""

from __future__ import annotations

import pytest
import torch
from toys import small

from groundthink import build
from groundthink.models.count import count, count_config
from groundthink.models.names import resolve

pytestmark = pytest.mark.tiny


def test_mamba2_count_equals_the_published_formula():
    # in_proj C (4C + 2N + H), conv (2C + 2N) 5, 3H, norm 2C, out 2C^2 with C = 128, N = 64, H = 4
    assert count_config(resolve("gf-mh-5m"))["mamba2"] == 8 * 117_388


def test_rwkv6_count_equals_the_published_formula():
    c = 128  # 5 projections, mix LoRA 160 + 160, decay LoRA 64 + 64, 6 blends, decay, bonus, norm
    layer = 5 * c * c + 320 * c + 128 * c + 10 * c
    assert count_config(resolve("gf-mh-5m"))["rwkv6"] == 8 * layer


def test_gpt2_count_equals_the_formula():
    d = 192
    n = count_config(resolve("gpt2-5m"))
    assert n["non_embedding"] == 7 * (12 * d * d + 4 * d) + 2 * d


def test_parts_add_up_and_meta_equals_built():
    model = build(small("hgf"))
    n = count(model)
    parts = ("rwkv6", "mamba2", "attention", "fusion", "ffn", "other")
    assert n["non_embedding"] == sum(n[part] for part in parts)
    assert n["total"] == sum(p.numel() for p in model.parameters())
    assert n == count_config(model.config)


def test_state_bytes_are_those_of_a_real_state():
    model = build(small("gf"))
    assert count(model)["state_bytes"] == model(torch.zeros(1, 3, dtype=torch.int64))[1].nbytes()


def test_flops_of_a_linear_model_are_two_a_weight():
    model = build(small("gf", layout="attention", ffn="gelu"))
    d, v, layers = 32, 50, 2
    linear = layers * 12 * d * d + v * d
    assert count(model, context=10)["flops_per_token"] == 2 * linear + layers * 4 * d * 10
