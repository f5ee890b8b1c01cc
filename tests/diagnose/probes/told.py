"""A language whose next token two known bits decide, and blocks that know what they are told to.

The text alternates between a question, one of four tokens that stand for bits (a, b) = (+-1, +-1),
and its answer, no or yes. What the two branches add is set by hand; the channel mixing multiplies
the two directions that they write to, and the head reads the first of them or the product.
"""

from __future__ import annotations

import torch
from torch import Tensor
from toys import small

from groundthink.diagnose.subject import Subject
from groundthink.layers.mamba2 import Mamba2
from groundthink.layers.rwkv6 import RWKV6
from groundthink.models.build import build

BITS = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]]).float()
NO, YES, TOKENS, WIDTH = 4, 5, 6, 32
U, V, PRODUCT = 8, 9, 10
"""Directions of the stream."""


class PlantedRWKV6(RWKV6):
    def forward(self, x, state=None, reset=None):
        return x @ self.table, super().forward(x, state, reset)[1]


class PlantedMamba2(Mamba2):
    def forward(self, x, state=None, reset=None):
        return x @ self.table, super().forward(x, state, reset)[1]


def model(rwkv6: tuple[int, int] | None, mamba2: tuple[int, int] | None, reads: int):
    """One block whose branches write the bit (column of BITS, direction) they are given; the
    answer is the sign of what the head reads in the direction `reads`."""
    net = build(
        small("gf", n_layers=1, vocab_size=TOKENS, branch_norm="none", tie_embeddings=False)
    ).eval()
    block = net.blocks[0]
    block.rwkv6.__class__, block.mamba2.__class__ = PlantedRWKV6, PlantedMamba2
    for mixer, knows in ((block.rwkv6, rwkv6), (block.mamba2, mamba2)):
        mixer.table = torch.zeros(WIDTH, WIDTH)
        if knows:
            bit, direction = knows
            mixer.table[:4, direction] = BITS[:, bit]
    with torch.no_grad():
        torch.nn.init.eye_(net.embed.weight)
        net.head.weight.zero_()
        net.head.weight[YES, reads], net.head.weight[NO, reads] = 6, -6
        net.head.weight[[NO, YES], :4] = 6
        net.head.weight[:4, [NO, YES]] = 6
        multiply(block.ffn)
    return net


def multiply(ffn) -> None:
    """PRODUCT += f(u + v) - f(u - v) with the even f(z) = gelu(z) + gelu(-z): the sign of u v, and
    zero where either is zero."""
    for parameter in ffn.parameters():
        parameter.zero_()
    signs = torch.tensor([[1, 1], [-1, -1], [1, -1], [-1, 1]]).float()
    ffn.up.weight[:4, [U, V]] = signs
    ffn.down.weight[PRODUCT, :4] = signs.prod(1)


def subject(net, answers: Tensor, seed: int, samples: int = 16) -> Subject:
    """The model with texts in which question q is answered by yes if answers[q] > 0."""
    generator = torch.Generator().manual_seed(seed)
    questions = torch.randint(4, (2 * samples, 32), generator=generator)
    texts = torch.stack((questions, torch.where(answers[questions] > 0, YES, NO)), 2).flatten(1)
    return Subject(net, [], documents=list(texts), samples=samples, steps=1)
