"""What each branch is worth: the loss without it, alone and together, where and in which way."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from groundthink.diagnose.components import branches
from groundthink.diagnose.probes.ablation import SITES, ablated
from groundthink.diagnose.probes.arms import (
    BATCH,
    MODES,
    Arm,
    Branches,
    StandIns,
    grouped,
    means,
    record,
    row_losses,
    run,
    stream,
    subsets,
)
from groundthink.diagnose.probes.mixing import fusions, mixing, quantities
from groundthink.diagnose.probes.optimal import fit
from groundthink.diagnose.probes.registry import Row, probe
from groundthink.diagnose.probes.shapley import Effect, adjust, effect
from groundthink.diagnose.subject import Subject
from groundthink.errors import UserError
from groundthink.models.base import LanguageModel
from groundthink.verdicts.statistics import Paired
from groundthink.verdicts.verdict import Finding, judge, skipped

LENGTH = 96
"""Tokens of a row; half of them before the memory is cut."""
AT = LENGTH // 2
REFERENCE = 32
"""Rows of other documents, for means and constants."""
LAYERED = (("output", "zero"), ("output", "mean"), ("memory", "zero"))
"""Site and mode of the ablations that are repeated in every single layer."""
PREFIXED, PREFIXES = ("output", "zero"), 4
"""Site and mode of the ablation that is repeated in all layers up to some, and to how many."""


@probe("balance", "causal balance of the branches")
@torch.no_grad()
def balance(subject: Subject) -> list[Row]:
    """Loss without each branch and without both, by four ablations at three sites: Shapley shares,
    interaction, and whether a branch is dead; beside them gates, output shares and gradients."""
    model = subject.model
    study, clusters, reference = texts(subject)
    paired = Paired(measure(model, study, reference), clusters)
    effects = adjust([effect(paired, arm, present(model, arm)) for arm in emptied(paired)])
    rows: list[Row] = [("texts", about(study, paired, model))]
    rows += [("effect", asdict(found)) for found in effects]
    rows += [("layer", fields) for fields in mixing(paired)]
    rows += [("gradients", fields) for fields in gradients(subject)]
    return [*rows, *(("finding", finding.record()) for finding in findings(effects))]


def players(model: LanguageModel) -> Branches:
    """The branches whose worth is measured."""
    return tuple(branches(model)) or ("attention",)


def present(model: LanguageModel, arm: Arm) -> Branches:
    """The branches within the scope of an arm."""
    blocks = [block for i, block in enumerate(model.blocks) if arm.covers(i)]
    return tuple(name for name in players(model) if any(hasattr(block, name) for block in blocks))


def emptied(paired: Paired) -> list[Arm]:
    """The measured arms in which no branch is left: one for each effect."""
    return [arm for arm in paired.means if isinstance(arm, Arm) and not arm.active]


def texts(subject: Subject) -> tuple[Tensor, list[int], Tensor]:
    """Rows to study with their documents, and rows of other documents as a reference.

    Raises:
        UserError: fewer than two samples, or too little text.
    """
    if subject.samples < 2:
        raise UserError("probe balance compares texts: give --samples 2 or more (64 is usual)")
    rows, clusters = subject.stretches(subject.samples + REFERENCE, LENGTH)
    documents = list(dict.fromkeys(clusters))
    kept: set[int] = set()
    while len(kept) < REFERENCE and len(documents) > 1:
        document = documents.pop()
        kept |= {i for i, other in enumerate(clusters) if other == document}
    studied = [i for i in range(len(rows)) if i not in kept]
    return rows[studied], [clusters[i] for i in studied], rows[sorted(kept)]


def measure(model: LanguageModel, study: Tensor, reference: Tensor) -> dict[Any, Any]:
    """Every quantity on every row of `study`, numpy [rows]: the loss of each arm, that of the
    whole model by site, and what `mixing` needs."""
    parties, sites, doubles = players(model), sites_of(model), StandIns()
    if parties != ("attention",):
        doubles.mean = means(model, reference, parties, sites, AT)
        doubles.optimal = fit(model, reference, parties, sites, doubles.mean)
    found: dict[Any, list[Tensor]] = {}
    for tokens in study.tensor_split(-(-len(study) // BATCH)):
        for name, values in measured(model, tokens, doubles):
            found.setdefault(name, []).append(values)
    return {name: torch.cat(values).double().cpu().numpy() for name, values in found.items()}


def about(study: Tensor, paired: Paired, model: LanguageModel) -> dict[str, Any]:
    """What was read, and the loss of a guess: beyond it a cut model is broken, not deprived."""
    count, length = study.shape
    chance = math.log(model.config.vocab_size)
    return {"texts": count, "documents": paired.n, "length": length, "at": AT, "chance": chance}


def sites_of(model: LanguageModel) -> tuple[str, ...]:
    """Where the branches are cut: with one kind of mixer only its memory is of interest."""
    return SITES if len(players(model)) > 1 else ("memory",)


def measured(
    model: LanguageModel, tokens: Tensor, doubles: StandIns
) -> Iterator[tuple[Any, Tensor]]:
    """Name and values [B] of every quantity on one batch."""
    parties = players(model)
    for group, state, x in grouped(model, tokens, sites_of(model), AT):
        # Every group has a baseline of its own: a text read in two pieces rounds differently.
        loss = partial(row_losses, model, tokens=tokens[:, -x.shape[1] :])
        with fusions(model) as calls:
            whole = record(model, x, state, parties, group, doubles)
        if "output" in group:
            yield from quantities(model, calls)
        for site in group:
            yield site, loss(whole[-1])
            for arm in plan(model, site):
                cut = run(model, whole[arm.first], state, arm, parties, doubles)
                yield arm, loss(cut[-1])
                if arm.scope == "all" and (site, arm.mode) == PREFIXED:
                    every = max(1, -(-arm.layer // PREFIXES))
                    for layer in range(0, arm.layer, every):
                        with ablated(model):
                            rest = stream(model, cut[layer + 1], first=layer + 1)
                        yield replace(arm, scope="prefix", layer=layer), loss(rest[-1])


def plan(model: LanguageModel, site: str) -> Iterator[Arm]:
    """The arms at one site, but for prefixes."""
    last = len(model.blocks) - 1
    modes = MODES if players(model) != ("attention",) else MODES[:1]
    scopes = [("all", last, mode) for mode in modes]
    for layer in range(last + 1):
        scopes += [("layer", layer, mode) for where, mode in LAYERED if where == site]
    for scope, layer, mode in scopes:
        empty = Arm(scope, layer, site, mode, ())
        for active in subsets(present(model, empty)):
            yield replace(empty, active=active)


def gradients(subject: Subject) -> list[dict[str, Any]]:
    """Gradient and update sizes by component in the later half of training, as medians.

    They say which branch was being moved, not which one the model depends on.
    """
    records = [record for record in subject.records if record["kind"] == "balance"]
    late = records[len(records) // 2 :]
    if not late:
        return []
    fields: dict[str, Any] = {"records": len(late)}
    for name in ("grad_rms", "update_ratio"):
        kept = [record[name] for record in late if record.get(name)]
        fields[name] = {
            part: statistics.median(values)
            for part in (kept[0] if kept else ())
            if (values := [row[part] for row in kept if row.get(part) is not None])
        }
    return [fields]


def findings(effects: list[Effect]) -> Iterator[Finding]:
    """Verdicts: is a branch dead, in all layers against the constants that hurt least and in one
    against its mean; and does its memory matter."""
    judged = {
        ("all", "output", "optimal"): "contribution",
        ("layer", "output", "mean"): "contribution of a layer",
        ("all", "memory", "zero"): "memory",
    }
    for found in effects:
        quantity = judged.get((found.scope, found.site, found.mode))
        for branch, interval in found.phi.items() if quantity else ():
            where = branch if found.scope == "all" else f"blocks.{found.layer}.{branch}"
            note = f"p {found.p[branch]:.2g} after Holm" if found.scope == "layer" else ""
            yield judge("balance", quantity, interval, note, where)  # pyright: ignore
    if not any(found.site == "output" for found in effects):
        yield skipped("balance", "contribution", "with one kind of mixer there is no balance")
