"""How strongly the coming losses depend on the states: gradients of losses by states.

lambda_t = dL/dS_t for the matrix state S_t of one branch in one layer. It says how far back a
loss gives credit, what a state is worth to first order, and whether what is written is what is
wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from groundthink.diagnose.components import BRANCHES, frozen
from groundthink.diagnose.losses import token_losses
from groundthink.diagnose.probes.curves import bounds_of, half_life_of, numbers, over_distance
from groundthink.diagnose.probes.registry import Row
from groundthink.diagnose.probes.tracer import Site, branch_sites, matrix
from groundthink.diagnose.states import PARTS
from groundthink.layers.state import State
from groundthink.models.base import LanguageModel
from groundthink.verdicts.statistics import bootstrap_mean
from groundthink.verdicts.verdict import Finding, judge, skipped

BEFORE = 32
"""Tokens that have filled the state."""
TAUS = (1, 2, 4, 8, 16, 32, 64)
"""Tokens after the state whose losses are traced back to it."""
SOON = 16
"""Tokens after the state whose loss its value is taken over."""
STRIDE = 4
"""Tokens between the states whose writes are set against their credit."""
LENGTH = BEFORE + TAUS[-1] + 1
"""Tokens of a text, the last target included."""
TEXTS = 8
"""Texts in one pass."""
FEWEST_STATES = 4
"""States below which their ranks say nothing."""


@dataclass(frozen=True)
class Coupling:
    """Of one branch in one layer, for N texts."""

    credit: Tensor
    """||d l_(t + tau) / d S_t|| [N, taus]."""
    value: Tensor
    """-<lambda_t, S_t>: what zeroing the state adds to the next losses, to first order [N]."""
    zeroed: Tensor
    """What zeroing it truly adds to them, in nats [N]."""
    share: Tensor
    """Sum of |lambda_t S_t| over the entries [N]."""
    write: Tensor
    """Spearman correlation of ||S_t - S_(t - stride)|| and ||lambda_t|| over t [N]."""


def coupling(model: LanguageModel, texts: Tensor) -> dict[Site, Coupling]:
    """The coupling of losses to every matrix state of the model; texts int64 [N, LENGTH]."""
    with frozen(model):
        parts = [_of_few(model, part[:, :LENGTH]) for part in texts.split(TEXTS)]
    names = Coupling.__dataclass_fields__
    return {
        site: Coupling(
            *(torch.cat([getattr(part[site], name) for part in parts]) for name in names)
        )
        for site in parts[0]
    }


def _of_few(model: LanguageModel, texts: Tensor) -> dict[Site, Coupling]:
    sites = branch_sites(model)
    with torch.no_grad():
        state = model.features(texts[:, :BEFORE])[1]
    rest = texts[:, BEFORE:]
    with torch.enable_grad():
        state, leaves = _watched(state, sites)
        losses = _losses(model, rest, state)
        credit = [_slopes(losses[:, tau - 1], leaves) for tau in TAUS]
        slopes = _slopes(losses[:, :SOON].sum(1), leaves)
    writes = _writes(model, texts, sites)
    found = {}
    for i, (site, leaf) in enumerate(zip(sites, leaves, strict=True)):
        worth = (slopes[i] * leaf.detach()).flatten(1)
        norms = torch.stack([norm(slope[i]) for slope in credit], 1)
        with torch.inference_mode():
            after = _losses(model, rest[:, : SOON + 1], _zeroed(state, site))
        zeroed = (after - losses[:, :SOON]).sum(1)
        share = worth.abs().sum(1)
        found[site] = Coupling(norms, -worth.sum(1), zeroed.detach(), share, writes[site])
    return found


def _writes(model: LanguageModel, texts: Tensor, sites: list[Site]) -> dict[Site, Tensor]:
    """`Coupling.write`, over the states from `BEFORE` on with `SOON` tokens after them."""
    end = texts.shape[1] - 1
    with torch.no_grad():
        state = model.features(texts[:, :BEFORE])[1]
    states, total = [], texts.new_zeros((), dtype=torch.float32)
    with torch.enable_grad():
        state = _watched(state, sites)[0]
        for at in range(BEFORE, end, STRIDE):
            if at + SOON <= end:
                states.append([matrix(state, site) for site in sites])
            then = min(at + STRIDE, end)
            hidden, state = model.features(texts[:, at:then], state)
            total = total + token_losses(model, hidden, texts[:, at + 1 : then + 1]).sum()
        flat = [x for xs in states for x in xs]
        slopes = torch.autograd.grad(total, flat)
    found = {}
    for i, site in enumerate(sites):
        own = [xs[i].detach() for xs in states]
        moved = [norm(b - a) for a, b in zip(own, own[1:], strict=False)]
        credit = [norm(x) for x in slopes[i :: len(sites)][1:]]
        found[site] = spearman(torch.stack(moved, 1), torch.stack(credit, 1))
    return found


def _watched(state: State, sites: Sequence[Site]) -> tuple[State, list[Tensor]]:
    """The state with its matrices as leaves of a graph, and these."""
    state = state.map(torch.clone)
    leaves = [matrix(state, site).requires_grad_() for site in sites]
    return state, leaves


def _zeroed(state: State, site: Site) -> State:
    layer, branch = site
    return state.detach().zero(layers=[layer], parts=[f"{branch}.{PARTS[branch]}"])


def _losses(model: LanguageModel, tokens: Tensor, state: State) -> Tensor:
    """Loss of every token [B, T - 1] but the first, in nats."""
    return token_losses(model, model.features(tokens[:, :-1], state)[0], tokens[:, 1:])


def _slopes(losses: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradient of each row's loss by that row's states."""
    return torch.autograd.grad(losses.sum(), leaves, retain_graph=True)


def norm(x: Tensor) -> Tensor:
    """Norm of the state of each row [B, ...] -> [B]."""
    return x.flatten(1).float().norm(dim=1)


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Rank correlation along the last dimension; 0 where one of them is constant."""
    a, b = (_ranks(t) for t in (x, y))
    a, b = (t - t.mean(-1, keepdim=True) for t in (a, b))
    scale = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(scale > 0, (a * b).sum(-1) / scale.clamp(min=1e-12), 0.0)


def _ranks(x: Tensor) -> Tensor:
    """Ranks along the last dimension; equal values share their mean rank."""
    below = (x[..., None, :] < x[..., None]).sum(-1)
    equal = (x[..., None, :] == x[..., None]).sum(-1)
    return below + (equal - 1) / 2


def coupled(
    model: LanguageModel, texts: Tensor, clusters: list[int]
) -> tuple[list[Row], list[Finding]]:
    """Credit, value and write-credit coupling of every state, as rows and verdicts."""
    found = coupling(model, texts)
    total = torch.stack([state.share for state in found.values()]).sum(0).clamp(min=1e-30)
    rows: list[Row] = []
    for (layer, branch), state in found.items():
        credit = over_distance(state.credit, clusters)
        means = {
            "value": state.value,
            "zeroed": state.zeroed,
            "share": state.share / total,
            "write": state.write,
        }
        fields: dict[str, Any] = {
            name: numbers(bootstrap_mean(x.cpu(), clusters)) for name, x in means.items()
        }
        fields |= {"taus": list(TAUS), "credit": bounds_of(credit)}
        fields["half_life"] = half_life_of(credit, list(TAUS))
        rows.append(("coupling", {"layer": layer, "branch": branch, **fields}))
    findings = [_agreement(list(found.values()), clusters)]
    own = [state.share for (_, branch), state in found.items() if branch == BRANCHES[0]]
    if 0 < len(own) < len(found):
        share = bootstrap_mean((torch.stack(own).sum(0) / total).cpu(), clusters)
        findings.append(judge("flow", "coupling share", share, where=BRANCHES[0]))
    return rows, findings


def _agreement(found: Sequence[Coupling], clusters: list[int]) -> Finding:
    """Whether first-order values rank the states of a text as zeroing them does."""
    if len(found) < FEWEST_STATES:
        reason = f"{len(found)} states cannot be ranked; {FEWEST_STATES} can"
        return skipped("flow", "value against zeroing", reason)
    value, zeroed = (
        torch.stack([getattr(state, name) for state in found], 1) for name in ("value", "zeroed")
    )
    rho = bootstrap_mean(spearman(value, zeroed).cpu(), clusters)
    return judge("flow", "value against zeroing", rho, f"over {len(found)} states of each text")
