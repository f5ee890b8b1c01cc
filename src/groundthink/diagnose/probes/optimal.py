"""The constants that hurt least in the place of a branch: what is still lost, the branch knew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from groundthink.diagnose.components import frozen
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
READ = 16
"""Steps whose first tokens are read in one pass."""

Sets = list[tuple[str, Branches]]
"""(site, active branches) of each row."""


class Constants:
    """For each part one vector, or state, for each set that cuts it: its start and how far it has
    moved [sets, ...]."""

    def __init__(self, sets: Sets, mean: dict[Key, Tensor]):
        self.sets: dict[Key, Tensor] = {}
        """Sets that cut each part, as their places, int64."""
        self.moves: dict[Key, Tensor] = {}
        self._starts: dict[Key, tuple[Tensor, Tensor]] = {}
        for (site, name), value in mean.items():
            cut = [at == site and branch_of(name) not in active for at, active in sets]
            start = value if site == "memory" else value.mean(0)
            scale = value.square().mean().sqrt() + 1e-6
            rows = torch.tensor(cut, device=value.device).nonzero()[:, 0]
            self.sets[site, name] = rows
            self._starts[site, name] = start, scale
            moves = torch.zeros(len(rows), *start.shape).to(start)
            self.moves[site, name] = moves.requires_grad_()

    def __getitem__(self, key: Key) -> Tensor:
        start, scale = self._starts[key]
        return start + scale * self.moves[key]

    def at(self, site: str) -> list[Tensor]:
        """What is fitted at a site."""
        return [move for (where, _), move in self.moves.items() if where == site]

    def into(self, site: str) -> Replace:
        """Puts the constants of a site into the rows whose set cuts the part."""

        def replace(name: str, part: Tensor) -> Tensor:
            if (site, name) not in self.sets:  # the shift of a channel mixing is no branch's
                return part
            new, rows = self[site, name], self.sets[site, name]
            new = new if site == "memory" else new[:, None]
            return part.index_copy(0, rows, new.expand(len(rows), *part.shape[1:]))

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
    with frozen(model), torch.enable_grad():
        for state, piece in _pieces(model, tokens, seed):
            piece = piece.expand(len(sets), -1)
            state = state.map(lambda x: x.expand(len(sets), *x.shape[1:]))
            if "memory" in sites:
                replace = constants.into("memory")
                state = State.from_items({name: replace(name, x) for name, x in state.items()})
            with ablated(model, *every):
                features = model.features(piece[:, :-1], state)[0]
            optimizer.zero_grad()
            token_losses(model, features, piece[:, 1:]).mean(1).sum().backward()
            optimizer.step()
            schedule.step()
    return {
        (site, sets[row][1], name): constant.detach()
        for (site, name), rows in constants.sets.items()
        for row, constant in zip(rows.tolist(), constants[site, name], strict=True)
    }


def _pieces(model: LanguageModel, tokens: Tensor, seed: int) -> Iterator[tuple[State, Tensor]]:
    """For each step a random piece of a random row [1, .], and the state that the tokens before it
    have left."""
    generator = torch.Generator().manual_seed(seed)
    length = min(2 * PIECE, tokens.shape[1])
    rows, starts = (
        torch.randint(most, (STEPS,), generator=generator)
        for most in (len(tokens), tokens.shape[1] - length + 1)
    )
    places = starts[:, None] + torch.arange(length)
    stretches = tokens[rows[:, None].to(tokens.device), places.to(tokens.device)]
    for part in stretches.split(READ):
        with torch.no_grad():
            states = model.features(part[:, : length // 2])[1]
        for i, stretch in enumerate(part):
            yield states.map(lambda x, i=i: x[i : i + 1]), stretch[None, length // 2 :]
