"""The tokens of a context that an answer rests on, and how far back the layers reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from groundthink.data.tokenizers import Tokenizer
from groundthink.diagnose.components import BRANCHES, branches, frozen
from groundthink.diagnose.probes.coupling import spearman
from groundthink.diagnose.probes.implicit import implicit
from groundthink.diagnose.probes.registry import Row, probe
from groundthink.diagnose.registry import worst
from groundthink.diagnose.subject import Subject
from groundthink.layers.state import State
from groundthink.models.base import LanguageModel
from groundthink.verdicts.statistics import bootstrap_mean, exact
from groundthink.verdicts.verdict import judge

SPAN = 96
"""Tokens of context before an answer."""
AHEAD = 32
"""Tokens of a candidate text among which its answer is chosen."""
NEAR = 8
"""Context that every answer has: what more of it brings is its gain."""
CANDIDATES, PASSAGES = 32, 4
DRAWS = 4
"""Tokens of the corpus that each token of a passage is replaced by."""
TEXTS = 6
"""Texts whose mixing is written out."""
ROWS = 32
"""Texts in one forward pass."""
GROUP = 8
"""Neighbouring tokens that are replaced in one forward pass, each in rows of its own."""
DISTANCES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)


@probe("context", "context heat map and implicit attention")
def context(subject: Subject) -> list[Row]:
    """The effect of each token of a few passages on the token after it, and the exact summands of
    every layer's mixing by distance."""
    return [*passages(subject), *mixing(subject)]


def passages(subject: Subject) -> Iterator[Row]:
    """Of each candidate text the answer that its context helps most; of these the first few."""
    model, count = subject.model, min(CANDIDATES, subject.samples)
    texts, documents = subject.stretches(count, SPAN + AHEAD)
    gain, at = gains(model, texts).max(1)
    for i in gain.argsort(descending=True)[:PASSAGES].tolist():
        text = texts[i, at[i] : at[i] + SPAN + 1]
        found = leave_one_out(model, text[:-1], int(text[-1]), texts.flatten())
        slopes = {
            branch: first_order(model, text[:-1], int(text[-1]), found.drawn, branch)
            for branch in ("all", *(branches(model) if len(branches(model)) == 2 else ()))
        }
        yield (
            "passage",
            {
                "document": documents[i],
                "tokens": words(text, subject.tokenizer),
                "log_p": found.log_p,
                "gain": float(gain[i]),
                "kl": found.kl.tolist(),
                "drop": found.drop.tolist(),
                "first_order": {name: slope.tolist() for name, slope in slopes.items()},
                "agreement": float(spearman(found.drop.abs(), slopes["all"].abs())),
                "draws": DRAWS,
            },
        )


def words(tokens: Tensor, tokenizer: Tokenizer | None) -> list[str]:
    """The text of each token."""
    return [str(t) if tokenizer is None else tokenizer.decode([t]) for t in tokens.tolist()]


@torch.no_grad()
def gains(model: LanguageModel, texts: Tensor) -> Tensor:
    """Log probability that the context before the last `NEAR` tokens adds to each of the last
    `AHEAD` tokens, nats [N, AHEAD]."""
    start = texts.shape[1] - AHEAD
    far = []
    for rows in texts.split(ROWS // 4):
        features = model.features(rows[:, :-1])[0][:, start - 1 :]
        far.append(_log_p(model.head(features), rows[:, start:]))
    near = texts.unfold(1, NEAR, 1)[:, start - NEAR : -1]  # [N, AHEAD, NEAR]
    after = [_after(model, rows)[0] for rows in near.flatten(0, 1).split(ROWS)]
    return torch.cat(far) - _log_p(torch.cat(after), texts[:, start:].flatten()).view(-1, AHEAD)


def _log_p(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def _after(
    model: LanguageModel, tokens: Tensor, state: State | None = None, reset: Tensor | None = None
) -> tuple[Tensor, State]:
    """Logits [N, V] and state after each row of tokens [N, T]."""
    features, state = model.features(tokens, state, reset)
    return model.head(features[:, -1]), state


class Effects(NamedTuple):
    """What replacing each token of a context does, on average over the tokens drawn for it."""

    log_p: float
    """Log probability of the answer after the context as it is, nats."""
    kl: Tensor
    """Divergence of the prediction from what it was, nats [T]."""
    drop: Tensor
    """Fall of the log probability of the answer, nats [T]."""
    drawn: Tensor
    """The replacements, int64 [draws, T]."""


@torch.no_grad()
def leave_one_out(
    model: LanguageModel,
    text: Tensor,
    answer: int,
    pool: Tensor,
    *,
    draws: int = DRAWS,
    reset: Tensor | None = None,
) -> Effects:
    """Replace one token of `text` [T] at a time by tokens drawn from `pool`, and predict again.

    Args:
        reset: bool [T]; where true a new text begins.
    """
    drawn = _others(text, pool, draws)
    whole = _after(model, text[None], None, reset if reset is None else reset[None])[0]
    whole = whole.float().log_softmax(-1)
    kl, drop, state = [], [], None
    for start in range(0, len(text), GROUP):
        rest, flag = text[start:], reset if reset is None else reset[None, start:]
        size = min(GROUP, len(rest))
        rows = rest.repeat(draws, size, 1)
        rows.diagonal(dim1=1, dim2=2).copy_(drawn[:, start : start + size])
        rows = rows.flatten(0, 1)
        before = state and state.map(lambda x, n=draws * size: x.expand(n, *x.shape[1:]))
        flags = flag if flag is None else flag.expand(rows.shape)
        moved = _after(model, rows, before, flags)[0].float().log_softmax(-1)
        kl.append((whole.exp() * (whole - moved)).sum(-1).view(draws, size).mean(0))
        drop.append((whole - moved)[:, answer].view(draws, size).mean(0))
        flags = flag if flag is None else flag[:, :size]
        state = _after(model, rest[None, :size], state, flags)[1]
    return Effects(float(whole[0, answer]), torch.cat(kl).cpu(), torch.cat(drop).cpu(), drawn)


def _others(text: Tensor, pool: Tensor, draws: int) -> Tensor:
    """Tokens of `pool` that differ from those of `text` [T], int64 [draws, T]."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(pool), (draws, 16, len(text)), generator=generator)
    picks = pool[index.to(pool.device)]
    first = (picks != text).int().argmax(1, keepdim=True)
    return picks.gather(1, first)[:, 0]


@torch.enable_grad()
def first_order(
    model: LanguageModel, text: Tensor, answer: int, drawn: Tensor, branch: str = "all"
) -> Tensor:
    """The drops of `leave_one_out` as one gradient tells them: <d log p / d x_i, x_i - x'_i>, where
    x is what enters the first block and x' the same for the drawn tokens.

    Args:
        branch: paths through the mixers of the other branch are cut, unless it is "all".

    Returns:
        Nats [T].
    """
    seen: list[Tensor] = []

    def enter(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(args[0].detach().requires_grad_())
        return seen[-1], *args[1:]

    def cut(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output[0].detach(), output[1]

    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        stack.callback(model.blocks[0].register_forward_pre_hook(enter).remove)
        for name, module in model.named_modules():
            own = name.rpartition(".")[2]
            if branch != "all" and own in BRANCHES and own != branch:
                stack.callback(module.register_forward_hook(cut).remove)
        model.features(drawn)
        logits = model.head(model.features(text[None])[0][:, -1])
    (slope,) = torch.autograd.grad(logits.float().log_softmax(-1)[0, answer], seen[1])
    return (slope * (seen[1] - seen[0].mean(0))).sum(-1)[0].detach().cpu()


def mixing(subject: Subject) -> Iterator[Row]:
    """Of each layer and branch: how far back what it adds comes from, a map for the first text, and
    whether the summands add up to the layer's output."""
    texts, documents = subject.stretches(min(TEXTS, subject.samples), SPAN)
    found: dict[tuple[int, str], list[Reach]] = {}
    errors: dict[str, float] = {}
    for i, text in enumerate(texts):
        for layer in implicit(subject.model, text):
            errors[f"blocks.{layer.layer} on text {i + 1}"] = layer.error
            for branch in layer.parts:
                here = reach(layer.weights(branch))
                found.setdefault((layer.layer, branch), []).append(here)
    for (layer, branch), reaches in found.items():
        mean = bootstrap_mean([r.distance for r in reaches], documents)
        first = reaches[0].share.round(decimals=3).tolist()
        yield (
            "reach",
            {
                "layer": layer,
                "branch": branch,
                "distance": mean.value,
                "low": mean.low,
                "high": mean.high,
                "texts": mean.n,
                "distances": DISTANCES,
                "beyond": torch.stack([r.beyond for r in reaches]).mean(0).tolist(),
                "map": [row[: t + 1] for t, row in enumerate(first)],
            },
        )
    where, error = worst(errors)
    note = f"worst in {where} of {len(texts)}, {SPAN} tokens each"
    yield "finding", judge("context", "reconstruction error", exact(error), note).record()


class Reach(NamedTuple):
    """Where the mixing of one layer and branch comes from in one text."""

    distance: float
    """Mean distance in tokens, over the targets in the later half of the text."""
    beyond: Tensor
    """Share that comes from further back than each of `DISTANCES`."""
    share: Tensor
    """Share of each source in what each target receives [T, T]."""


def reach(weights: Tensor) -> Reach:
    """The reach of the sizes [T, S] of what each source adds to each target."""
    share = weights / weights.sum(1, keepdim=True)
    share = share.nan_to_num(0)  # a branch that adds nothing has no reach
    index = torch.arange(len(share), device=share.device)
    distance = index[:, None] - index
    late = slice(len(share) // 2, None)
    beyond = torch.stack([(share * (distance > d))[late].sum(1).mean() for d in DISTANCES])
    mean = float((share * distance)[late].sum(1).mean())
    return Reach(mean, beyond.cpu(), share.cpu())
