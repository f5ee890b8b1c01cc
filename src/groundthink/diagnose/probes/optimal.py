"""The constants that hurt least in the place of a branch: what is still lost, the branch knew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from groundthink.diagnose.losses import token_losses
from groundthink.diagnose.probes.ablation import Replace, ablated
from groundthink.diagnose.probes.arms import Branches, Key, branch_of, cuts, subsets
from groundthink.layers.state import State
from groundthink.models.base import LanguageModel

STEPS = 100
"""Steps of Adam."""
RATES = {"output": 0.1, "read": 0.1, "memory": 0.02}
"""Its first step size at each site, in standard deviations of the part."""
PIECE = 16
"""Tokens that a row reads before it is cut, and after."""

Sets = list[tuple[str, Branches]]
"""(site, active branches) of each row."""


class Constants:
    """One vector, or state, for each part that a set cuts: where it starts and how far it moved."""

    def __init__(self, sets: Sets, mean: dict[Key, Tensor]):
        self.sets, self._starts, self.moves = sets, {}, {}
        for (site, name), value in mean.items():
            flat = value if site == "memory" else value.mean(0)
            scale = value.square().mean().sqrt() + 1e-6
            for where, active in sets:
                if where == site and branch_of(name) not in active:
                    self._starts[site, active, name] = flat, scale
                    self.moves[site, active, name] = torch.zeros_like(flat, requires_grad=True)

    def __getitem__(self, key: tuple[str, Branches, str]) -> Tensor:
        start, scale = self._starts[key]
        return start + scale * self.moves[key]

    def at(self, site: str) -> list[Tensor]:
        """What is fitted at a site."""
        return [move for (where, _, _), move in self.moves.items() if where == site]

    def into(self, site: str) -> Replace:
        """Puts the constants of a site into the rows whose set cuts the part."""

        def replace(name: str, part: Tensor) -> Tensor:
            keys = [(where, active, name) for where, active in self.sets]
            rows = [
                self[key].expand_as(row) if key[0] == site and key in self.moves else row
                for key, row in zip(keys, part, strict=True)
            ]
            return torch.stack(rows)

        return replace


def fit(
    model: LanguageModel,
    tokens: Tensor,
    branches: Branches,
    sites: Sequence[str],
    mean: dict[Key, Tensor],
    seed: int = 0,
) -> dict[tuple[str, Branches, str], Tensor]:
    """Constants for every site and set of active branches, in all layers at once, by Adam on
    stretches of `tokens` [R, T] from their `mean`.

    Every set has its own row of the batch, so that one pass serves them all: the sum of their
    losses keeps them apart. All read the same stretch, so that sets which differ by a branch that
    does nothing end alike. It begins in the middle of a text, with the state that it left.
    """
    sets = [(site, active) for site in sites for active in subsets(branches)]
    constants = Constants(sets, mean)
    every = [cut for s in sites if s != "memory" for cut in cuts(branches, s, constants.into(s))]
    optimizer = torch.optim.Adam(
        [{"params": constants.at(site), "lr": RATES[site]} for site in sites]
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    generator = torch.Generator().manual_seed(seed)
    with frozen(model), torch.enable_grad():
        for _ in range(STEPS):
            past, piece = (x.expand(len(sets), -1) for x in _stretch(tokens, generator))
            with torch.no_grad():
                state = model.features(past)[1]
            if "memory" in sites:
                replace = constants.into("memory")
                state = State.from_items({name: replace(name, x) for name, x in state.items()})
            with ablated(model, *every):
                features = model.features(piece[:, :-1], state)[0]
            optimizer.zero_grad()
            token_losses(model, features, piece[:, 1:]).mean(1).sum().backward()
            optimizer.step()
            schedule.step()
    return {key: constants[key].detach() for key in constants.moves}


def _stretch(tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random stretch of a random row [1, .]: what comes before a cut and what comes after it."""
    length = min(2 * PIECE, tokens.shape[1])
    row, start = (
        int(torch.randint(most, (), generator=generator))
        for most in (len(tokens), tokens.shape[1] - length + 1)
    )
    stretch = tokens[row : row + 1, start : start + length]
    return stretch[:, : length // 2], stretch[:, length // 2 :]


@contextmanager
def frozen(model: LanguageModel) -> Iterator[None]:
    """No parameter of the model takes a gradient while the context is open."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_()
