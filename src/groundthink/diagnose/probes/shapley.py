"""Worth and interaction of two branches from the losses of the four sets of them.

With L(S) the loss when only the branches S are left (Shapley 1953, two players):
phi_R = ((L() - L(R)) + (L(M) - L(RM))) / 2, and likewise phi_M; they sum to L() - L(RM).
I = L(R) + L(M) - L() - L(RM): below zero the branches are redundant, either does alone; above
zero they are synergistic, either is little without the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from groundthink.diagnose.probes.arms import Arm, Branches, subsets
from groundthink.verdicts.statistics import Interval, Means, Paired, Statistic, holm


@dataclass
class Effect:
    """What the branches of a scope are worth by one kind of ablation, in nats per token."""

    scope: str
    layer: int
    site: str
    mode: str
    n: int
    loss: dict[str, float]
    """Loss by the branches that are left, joined by "+"; none is ""."""
    phi: dict[str, Interval]
    """Shapley value of each branch; of a single one, the loss of cutting it."""
    interaction: Interval | None
    """I of two branches."""
    share: Interval | None
    """phi_R / (phi_R + phi_M), where the sum is known to be positive."""
    p: dict[str, float] = field(default_factory=dict)
    """Two-sided p of each phi being zero, and of "interaction"."""


def effect(paired: Paired, arm: Arm, present: Branches) -> Effect:
    """The effect whose losses are those of `arm` with each set of the branches `present`."""

    def loss(m: Means, active: Branches) -> Any:
        return m[arm.site] if active == present else m[replace(arm, active=active)]

    def phi(m: Means, branch: str) -> Any:
        """Mean over the sets of the others of what joining them saves: right for two at most."""
        others = [s for s in subsets(present) if branch not in s]
        joined = [tuple(b for b in present if b in s or b == branch) for s in others]
        gains = [loss(m, s) - loss(m, j) for s, j in zip(others, joined, strict=True)]
        return sum(gains) / len(gains)

    def interaction(m: Means) -> Any:
        one, other = ((branch,) for branch in present)
        return loss(m, one) + loss(m, other) - loss(m, ()) - loss(m, present)

    statistics: dict[str, Statistic] = {b: partial(phi, branch=b) for b in present}
    found = {branch: paired.interval(statistic) for branch, statistic in statistics.items()}
    both, share = None, None
    if len(present) == 2:
        statistics["interaction"] = interaction
        both = paired.interval(interaction)
        if paired.interval(lambda m: loss(m, ()) - loss(m, present)).low > 0:
            share = paired.interval(lambda m: phi(m, present[0]) / (loss(m, ()) - loss(m, present)))
    return Effect(
        arm.scope,
        arm.layer,
        arm.site,
        arm.mode,
        paired.n,
        {"+".join(s): float(loss(paired.means, s)) for s in (present, *subsets(present))},
        found,
        both,
        share,
        {name: paired.p_value(statistic) for name, statistic in statistics.items()},
    )


def adjust(effects: list[Effect]) -> list[Effect]:
    """The effects with p values adjusted by Holm over layers and branches: one family for each
    scope, site and mode, and one for its interactions."""
    families: dict[tuple[str, ...], list[tuple[Effect, str]]] = {}
    for found in effects:
        for name in found.p:
            kind = "interaction" if name == "interaction" else "phi"
            key = found.scope, found.site, found.mode, kind
            families.setdefault(key, []).append((found, name))
    for family in families.values():
        for (found, name), p in zip(family, holm([e.p[n] for e, n in family]), strict=True):
            found.p[name] = p
    return effects
