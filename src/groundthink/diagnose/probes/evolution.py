"""How states follow the text: superposition, edits, and states between two states.

Both recurrences are linear in the state they start from. Functions here take a model and texts
int64 [N, T] and give numbers of single texts, so that texts can be resampled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from groundthink.diagnose import measures
from groundthink.diagnose.components import branches
from groundthink.diagnose.losses import ROWS, text_losses
from groundthink.diagnose.states import PARTS, matrices
from groundthink.diagnose.tape import tape
from groundthink.models.base import LanguageModel


def superposition(model: LanguageModel, texts: Tensor, split: int) -> dict[str, Tensor]:
    """How far the state after a and b is from what b makes of the state of a plus what b writes
    into an empty state: |S(ab) - [Phi_b S(a) + S_0(b)]| / |S(ab)| by module [texts].

    Zero but for rounding in the first layer, whose decays and writes do not depend on the state;
    elsewhere it says how much the layers below let their memory into this one.

    Args:
        split: tokens of a; the rest is b.
    """
    patterns = [f"blocks.*.{branch}" for branch in branches(model)]
    found = defaultdict(list)
    for part in texts.split(ROWS):
        _, first = model.features(part[:, :split])
        whole = matrices(model.features(part[:, split:], first)[1])
        # Shift and convolution read the end of a, which belongs to the input of b.
        empty = first.zero(parts=[f"{name}.{PARTS[name]}" for name in branches(model)])
        with tape(model, *patterns) as calls:
            model.features(part[:, split:], empty)
        for name, (call,) in calls.items():
            _, layer, branch = name.split(".")
            matrix = PARTS[branch]
            carried = {**call.inputs[1], matrix: first.layers[int(layer)][branch][matrix]}
            summed = model.get_submodule(name)(call.inputs[0], carried)[1][matrix]
            found[name].append(measures.relative(whole[name] - summed, whole[name]))
    return {name: torch.cat(parts).cpu() for name, parts in found.items()}


def edited(
    model: LanguageModel, texts: Tensor, edits: Sequence[int], variants: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """How far edits move the state after the last token.

    Args:
        edits: growing numbers of tokens to replace; those of a smaller number are among those of a
            larger one. New tokens are drawn from the texts.
        variants: other choices of the new token where only one is replaced.

    Returns:
        By branch, mean over layers: distance over the mean norm for each number of edits
        [texts, edits], and for each choice of a single one [texts, variants].
    """
    generator = torch.Generator().manual_seed(0)
    n, length = texts.shape
    places = torch.stack([torch.randperm(length, generator=generator) for _ in range(n)])
    new = _others(texts.cpu(), generator)
    changed = []
    for count in edits:
        chosen = torch.zeros_like(new, dtype=torch.bool).scatter_(1, places[:, :count], True)
        changed.append(torch.where(chosen, new, texts.cpu()))
    single = torch.zeros_like(new, dtype=torch.bool).scatter_(1, places[:, :1], True)
    changed += [
        torch.where(single, _others(texts.cpu(), generator), texts.cpu()) for _ in range(variants)
    ]
    found: dict[str, list[Tensor]] = defaultdict(list)
    for rows in torch.arange(n).split(ROWS):
        base = matrices(model.features(texts[rows])[1])
        columns: dict[str, list[Tensor]] = defaultdict(list)
        for version in changed:
            moved = matrices(model.features(version[rows].to(texts.device))[1])
            for branch in branches(model):
                ours = [name for name in base if name.endswith(branch)]
                apart = [measures.distance(moved[name], base[name]) for name in ours]
                columns[branch].append(torch.stack(apart).mean(0))
        for branch, values in columns.items():
            found[branch].append(torch.stack(values, 1).cpu())
    tables = {
        branch: torch.cat(parts).split([len(edits), variants], 1) for branch, parts in found.items()
    }
    return {b: t[0] for b, t in tables.items()}, {b: t[1] for b, t in tables.items()}


def _others(texts: Tensor, generator: torch.Generator) -> Tensor:
    """A token of some text for every token, another one where the texts hold another."""
    pool, new = texts.flatten(), texts.clone()
    for _ in range(20):
        same = new == texts
        draw = torch.randint(len(pool), texts.shape, generator=generator)
        new = torch.where(same, pool[draw], new)
    return new


def between(model: LanguageModel, texts: Tensor, split: int, alphas: Sequence[float]) -> Tensor:
    """Loss of each text's rest, in nats per token, from alpha of its own state and 1 - alpha of
    the state of the text before it [texts, alphas].

    Args:
        split: tokens that make the states; the rest is predicted.
    """
    found = []
    for part, others in zip(texts.split(ROWS), texts.roll(1, 0).split(ROWS), strict=True):
        (_, own), (_, other) = (model.features(x[:, :split]) for x in (part, others))
        columns = [text_losses(model, part[:, split:], own.mix(other, a)) for a in alphas]
        found.append(torch.stack(columns, 1).cpu())
    return torch.cat(found)
