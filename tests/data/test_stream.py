"""Laws of the batches: continuity, conservation, resets, fixed order and exact resumption."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from groundthink.data.config import DataConfig
from groundthink.data.corpora import prepare
from groundthink.data.packed import Packed
from groundthink.data.stream import IGNORE, Batch, Lanes, Windows, evaluation
from groundthink.errors import UserError

pytestmark = pytest.mark.tiny
DOCUMENTS = (5, 1, 17, 30, 2, 45)  # lengths; tokens are 100, 101, ... through the split
STARTS = {100, 105, 106, 123, 153, 155}


def packed(*lengths: int, lanes: int = 0) -> Packed:
    """Documents of the given lengths whose tokens count up from 100 through the whole split."""
    return Packed(100 + np.arange(sum(lengths)), np.cumsum(lengths), lanes=lanes)


def take(stream, n) -> list[Batch]:
    return [stream.next() for _ in range(n)]


def same(one: list[Batch], two: list[Batch]) -> bool:
    return all(
        torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("kind", [Lanes, Windows])
def test_shapes_targets_and_document_starts(kind):
    for batch in take(kind(packed(*DOCUMENTS), 3, 4, seed=1), 30):
        assert batch.tokens.shape == batch.targets.shape == batch.reset.shape == (3, 4)
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64
        assert batch.reset.dtype == torch.bool
        assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
        starts = torch.tensor([[int(t) in STARTS for t in row] for row in batch.tokens])
        assert (batch.reset | ~starts).all()  # every document start resets
        assert (~batch.reset | starts)[:, 1:].all()  # and nothing else inside a window
        inside = ~torch.tensor([[int(t) in STARTS for t in row] for row in batch.targets])
        assert (batch.targets - batch.tokens == 1)[inside].all()  # documents stay whole


def test_lanes_continue_their_rows():
    stream = Lanes(packed(*DOCUMENTS), 3, 4)
    epoch = take(stream, stream.steps_per_epoch)
    for before, after in zip(epoch, epoch[1:], strict=False):
        assert torch.equal(before.targets[:, -1], after.tokens[:, 0])
    assert epoch[0].reset[:, 0].all()
    assert not all(batch.reset[:, 0].all() for batch in epoch[1:])
    assert stream.next().reset[:, 0].all()  # a new epoch begins afresh


def test_an_epoch_of_lanes_reads_each_token_at_most_once_and_skips_few():
    text = packed(*DOCUMENTS)
    for seed in range(5):
        stream = Lanes(text, 3, 4, seed)
        tokens = torch.cat([b.tokens for b in take(stream, stream.steps_per_epoch)], 1).flatten()
        assert len(tokens.unique()) == len(tokens) >= len(text.tokens) - 3 * 4 - 3


def test_an_epoch_of_windows_reads_each_window_at_most_once():
    stream = Windows(packed(*DOCUMENTS), 4, 4)
    epoch = take(stream, stream.steps_per_epoch)
    first = torch.cat([batch.tokens[:, 0] for batch in epoch])
    assert ((first - 100) % 4 == 0).all() and len(first.unique()) == len(first) == 24
    assert all(batch.reset[:, 0].all() for batch in epoch)


@pytest.mark.parametrize("kind", [Lanes, Windows])
def test_the_seed_fixes_the_order_and_epochs_differ(kind):
    text = packed(*DOCUMENTS)
    one, two, other = (kind(text, 2, 5, seed) for seed in (3, 3, 4))
    n = one.steps_per_epoch
    first = take(one, n)
    assert same(first, take(two, n))
    assert not same(first, take(other, n))
    assert not same(first, take(one, n))


@pytest.mark.parametrize("kind", [Lanes, Windows])
@pytest.mark.parametrize("at", [0, 3, 40])
def test_resumption_is_exact(kind, at):
    text = packed(*DOCUMENTS)
    stream = kind(text, 2, 5, seed=1)
    take(stream, at)
    state = stream.state_dict()
    assert state == {"position": at}
    resumed = kind(text, 2, 5, seed=1)
    resumed.next()
    resumed.load_state_dict(state)
    assert same(take(stream, 15), take(resumed, 15))


@pytest.mark.parametrize("batch_size, seq_len", [(1, 7), (3, 4), (4, 100), (7, 1), (200, 3)])
def test_evaluation_scores_every_token_but_the_first_once(batch_size, seq_len):
    text = packed(*DOCUMENTS)
    batches = list(evaluation(text, batch_size, seq_len))
    scored = torch.cat([batch.targets[batch.targets != IGNORE] for batch in batches])
    assert sorted(scored.tolist()) == list(range(101, 100 + sum(DOCUMENTS)))
    for batch in batches:
        hit = batch.targets != IGNORE
        assert (batch.targets - batch.tokens)[hit].eq(1).all()
        starts = torch.tensor([[int(t) in STARTS for t in row] for row in batch.tokens])
        assert (batch.reset | ~starts).all()
    for before, after in zip(batches, batches[1:], strict=False):
        goes_on = before.targets[:, -1] != IGNORE
        assert torch.equal(before.targets[goes_on, -1], after.tokens[goes_on, 0])


def test_a_share_of_the_evaluation_is_its_first_batches():
    text = packed(*DOCUMENTS)
    share = list(evaluation(text, 3, 4, max_tokens=13))
    assert len(share) == 2 and same(share, list(evaluation(text, 3, 4))[:2])
    assert same(share, list(evaluation(text, 3, 4, max_tokens=13)))
    assert same(list(evaluation(text, 3, 4, max_tokens=10**9)), list(evaluation(text, 3, 4)))


def test_a_text_shorter_than_one_batch():
    for kind, needed in ((Lanes, "110"), (Windows, "101")):
        with pytest.raises(UserError, match=rf"has 100 tokens.*10 x 10 needs {needed}; lower"):
            kind(packed(60, 40), 10, 10)
    assert Lanes(packed(110), 10, 10).steps_per_epoch == 1
    assert Windows(packed(101), 10, 10).steps_per_epoch == 1
    with pytest.raises(UserError, match="fewer than 2"):
        next(evaluation(packed(1), 1, 1))


def test_tracks_keep_their_order_and_their_number():
    text = packed(30, 20, 50, lanes=2)
    batch = Lanes(text, 2, 8, seed=9).next()
    assert batch.tokens[:, 0].tolist() == [100, 150] and batch.reset[:, 0].all()
    with pytest.raises(UserError, match="2 lanes, not for a batch of 4"):
        Lanes(text, 4, 8)


def test_the_studys_step_counts_on_shakespeare(shakespeare):
    """Batch 4, sequence 256: 980 training and 108 validation steps."""
    splits = prepare(DataConfig(corpus=str(shakespeare), split="track"), lanes=4).splits
    assert Lanes(splits["train"], 4, 256).steps_per_epoch == 980
    assert Lanes(splits["val"], 4, 256).steps_per_epoch == 108
    scored = sum(int((b.targets != IGNORE).sum()) for b in evaluation(splits["val"], 4, 256))
    assert scored == len(splits["val"].tokens) - 1


def test_batches_own_their_memory():
    """Writing into one tensor of a batch changes neither the others nor the corpus."""
    text = packed(40)
    stream = Lanes(text, 2, 5)
    batch = stream.next()
    before = batch.tokens.clone()
    batch.targets.fill_(IGNORE)
    assert torch.equal(batch.tokens, before) and (np.diff(text.tokens) == 1).all()
