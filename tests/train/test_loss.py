"""The chunked loss is the plain one, with its gradients, whatever the size of the chunks."""

from __future__ import annotations

import pytest
import torch
from toys import randomized, small

from groundthink.models.build import build
from groundthink.train import loss

pytestmark = pytest.mark.tiny


@pytest.mark.parametrize("held", [1, 40, 10**9])
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_chunks_give_the_loss_and_gradients_of_the_whole(held, dtype, bound):
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 7, 6, dtype=dtype), torch.randn(11, 6, dtype=dtype)
    targets = torch.randint(11, (2, 7))
    targets[0, 3:5] = -100
    results = []
    for run in (
        lambda x, w: loss.chunked_nats(x, w, targets, held),
        lambda x, w: loss.nats((x @ w.t()), targets),
    ):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        total = run(*leaves)
        results.append((total.to(dtype), *torch.autograd.grad(3 * total, leaves)))
    torch.testing.assert_close(*results, rtol=max(bound, 1e-6), atol=max(bound, 1e-6))


def test_a_vocabulary_too_large_to_hold_gives_the_same_loss(monkeypatch):
    model = randomized(build(small("gf-mh")))
    tokens = torch.randint(model.config.vocab_size, (2, 20))
    reset = torch.rand(2, 20) < 0.2
    whole, state = loss.predict(model, tokens, tokens, None, reset)
    monkeypatch.setattr(loss, "LARGE", 64)
    parts, again = loss.predict(model, tokens, tokens, None, reset)
    torch.testing.assert_close(parts, whole)
    assert all(
        torch.equal(x, y) for (_, x), (_, y) in zip(state.items(), again.items(), strict=True)
    )
