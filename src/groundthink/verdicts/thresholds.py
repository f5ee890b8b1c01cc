"""The only numbers that verdicts are measured against: two-sided ranges, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class Threshold:
    """Closed ranges of one measured quantity: good inside `passes`, broken outside `warns`."""

    gate: str
    """Id of the gate or test that measures it."""
    quantity: str
    """What is measured."""
    unit: str
    """Unit of the quantity; empty for a ratio."""
    passes: Range
    """Lowest and highest value that pass."""
    warns: Range
    """Lowest and highest value that are no failure; contains `passes`."""
    reason: str
    """Why the edges lie where they do, in one line."""

    @property
    def text(self) -> str:
        """The ranges in words, for tables and records."""
        if self.warns == self.passes:
            return _words(self.passes)
        return f"{_words(self.passes)} (warn {_words(self.warns)})"


def _words(edges: Range) -> str:
    low, high = edges
    if low == high:
        return f"{low:g}"
    if math.isinf(low) and math.isinf(high):
        return "any"
    if math.isinf(high):
        return f">= {low:g}"
    if math.isinf(low):
        return f"<= {high:g}"
    return f"{low:g}..{high:g}"


ANY: Range = (-math.inf, math.inf)
ZERO: Range = (0.0, 0.0)

MIN_STEPS = 1000
"""Training steps that the full G3 needs."""
MIN_POSITIONS = 1024
"""Token positions that G2 averages over."""
MIN_BATCHES = 20
"""Batches that G4 takes its median over."""
SPIKE = 3.0
"""A gradient norm above this many running medians is a spike."""
OUTLIER = 6.0
"""A state entry above this many root mean squares is an outlier."""

# fmt: off
TABLE = (
    Threshold("G0", "fp32 error", "", (0, 1e-3), (0, 1e-3),
              "fp32 accumulation over a few hundred tokens"),
    Threshold("G0", "bf16 error", "", (0, 2e-2), (0, 2e-2),
              "bf16 keeps 8 bits, errors average over the head"),
    Threshold("G1", "wrong shapes", "lengths", ZERO, ZERO,
              "not one is allowed"),
    Threshold("G1", "non-finite logits", "logits", ZERO, ZERO,
              "not one is allowed"),
    Threshold("G1", "memory share", "", (0, 0.9), (0, 1),
              "a training step must fit, with room for the allocator"),
    Threshold("G1", "future leak", "", (0, 1e-4), (0, 1e-3),
              "no more than fp32 rounding, by kernels that choose their algorithm by the data"),
    Threshold("G1", "pieces against whole", "", (0, 1e-4), (0, 1e-3),
              "fp32 rounding through all layers"),
    Threshold("G1", "state round trip", "", ZERO, ZERO,
              "a saved state is the state, to the last bit"),
    Threshold("G2", "init entropy / ln V", "", (0.90, 1), (0.75, 1),
              "a fresh model that is sure of itself is wrong"),
    Threshold("G2", "init loss - ln V", "nats", (-0.1, 0.1), (-0.5, 0.5),
              "uniform guessing costs ln V"),
    Threshold("G3", "non-finite steps", "steps", ZERO, ZERO,
              "not one is allowed"),
    Threshold("G3", "loss slope", "nats/1000 steps", (-math.inf, 0), (-math.inf, 0),
              "one-sided t-test, p < 0.01"),
    Threshold("G3", "loss drop", "", (0.1, 1), (0.05, 1),
              "real text gives 10 % within 1000 steps"),
    Threshold("G3", "gradient spikes", "", (0, 0.01), (0, 0.05),
              "share of steps above 3 running medians"),
    Threshold("G3.5", "non-finite state entries", "entries", ZERO, ZERO,
              "not one is allowed"),
    Threshold("G3.5", "state RMS", "", (1e-4, 1e3), (1e-6, 1e6),
              "below it the state holds nothing, above it fp32 suffers"),
    Threshold("G3.5", "cosine at lag 64", "", (-1, 0.99), (-1, 0.99),
              "a state that 64 tokens do not turn is frozen"),
    Threshold("G3.5", "cosine at lag 1", "", (0.2, 1), (-1, 1),
              "a state that one token turns round keeps no past"),
    Threshold("G3.5", "effective rank", "", (0.05, 0.95), (0.02, 1),
              "share of the rank in use: collapsed below, noise above"),
    Threshold("G3.5", "outlier share", "", (0, 0.01), (0, 0.02),
              "entries above 6 RMS; 1/36 is the most there can be"),
    Threshold("G4", "gradient R/M", "", (0.3, 3), (0.1, 10),
              "RMS per parameter, RWKV-6 over Mamba-2"),
    Threshold("outputs", "non-finite outputs", "values", ZERO, ZERO,
              "not one is allowed"),
    Threshold("outputs", "output std", "", (1e-3, 1e2), (1e-4, 1e3),
              "below 0.001 the epsilon of the branch norm silences it, above 100 it drowns all"),
    Threshold("independence", "branch cosine", "", (-0.3, 0.3), (-0.9, 0.9),
              "above 0.9 one branch is a copy of the other"),
    Threshold("gradient-flow", "parameters without gradient", "tensors", ZERO, ZERO,
              "not one is allowed"),
    Threshold("pre-balance", "RWKV share at init", "", (0.2, 0.8), (0, 1),
              "published output projections may start at zero: never a failure"),
    Threshold("evolution", "output growth", "", (0.1, 10), (0.01, 100),
              "last quarter over first quarter of training: collapse or blow-up"),
    Threshold("baseline", "val loss - uniform", "nats", (-math.inf, 0), (-math.inf, 0),
              "better than guessing"),
    Threshold("baseline", "val loss - unigram", "nats", (-math.inf, 0), (-math.inf, 0),
              "better than token frequencies"),
    Threshold("baseline", "val loss - bigram", "nats", (-math.inf, 0), ANY,
              "better than one token of context; a short run may stop before"),
    Threshold("overfit", "training loss", "nats", (-math.inf, 0.05), (-math.inf, 0.5),
              "640 tokens are few enough to know by heart"),
    Threshold("checkpoint", "logit difference", "logits", ZERO, (0, 1e-5),
              "weights are stored exactly"),
    Threshold("isolation", "session leak", "logits", ZERO, ZERO,
              "sessions with states of their own share nothing"),
    Threshold("isolation", "served against alone", "", (0, 1e-4), (0, 1e-3),
              "fp32 rounding of rows that are computed together"),
    Threshold("balance", "contribution", "nats", (0.005, math.inf), (0.001, math.inf),
              "constants could stand in for a branch that is worth a thousandth of a nat: dead"),
    Threshold("balance", "contribution of a layer", "nats", (0.001, math.inf), (0.001, math.inf),
              "a branch worth less in one layer is not missed there"),
    Threshold("balance", "memory", "nats", (0.005, math.inf), (0.001, math.inf),
              "nobody would notice the loss of a state that is worth a thousandth of a nat"),
    Threshold("context", "reconstruction error", "", (0, 1e-5), (0, 1e-4),
              "fp32 rounding of a layer against its operator in fp64"),
    Threshold("memory", "error of a whole exchange", "logits", (0, 1e-4), (0, 1e-3),
              "with the whole state of another run the answer is that run's, up to rounding"),
    Threshold("memory", "recall", "nats", (0.01, math.inf), ANY,
              "a fact in no language need not be learnt by a language model: never a failure"),
    Threshold("memory", "share read", "", (0.05, math.inf), ANY,
              "below a twentieth the answer hardly comes from that branch"),
    Threshold("memory", "information", "bits", (0.01, math.inf), ANY,
              "a half percent of the two bits that four values have"),
    Threshold("memory", "shuffled information", "bits", (-0.05, 0.05), (-0.1, 0.1),
              "nothing can be known about labels drawn at random"),
    Threshold("flow", "shuffled information", "bits", (-0.05, 0.05), (-0.1, 0.1),
              "nothing can be known about labels drawn at random"),
    Threshold("flow", "information share", "", (0.2, 1), (0.05, 1),
              "the study's line: a fifth of what both know for each branch, a twentieth is dead"),
    Threshold("flow", "coupling share", "", (0.4, 0.6), (0.2, 0.8),
              "the study's line: a branch below a fifth of all gradient times state is unused"),
    Threshold("flow", "gain over untrained", "bits", (0.01, math.inf), ANY,
              "what random weights know of the next token was not learnt"),
    Threshold("flow", "value against zeroing", "", (0.5, 1), ANY,
              "rank correlation; below a half first-order values are not to be trusted"),
    Threshold("S0", "wrong states", "layers", ZERO, ZERO,
              "not one is allowed"),
    Threshold("S1", "non-finite state entries", "entries", ZERO, ZERO,
              "not one is allowed"),
    Threshold("S1", "state RMS", "", (1e-4, 1e2), (1e-6, 1e3),
              "RWKV-6 adds k v^T without a scale: small trained models hold entries of up to 50"),
    Threshold("S2", "distance between texts", "", (0.05, 2), (0.01, 2),
              "below 5 % of its size the state hardly depends on the text"),
    Threshold("S3", "difference of two passes", "", (0, 1e-5), (0, 1e-5),
              "rounding may follow the order of a sum, no more"),
    Threshold("S3b", "parts without gradient", "parts", ZERO, ZERO,
              "a part that the loss does not depend on is not state"),
    *(threshold for id in ("S4", "D3") for threshold in (
        Threshold(id, "loss without RWKV-6", "nats", (0.005, math.inf), (0.001, math.inf),
                  "nobody would notice a thousandth of a nat"),
        Threshold(id, "loss without Mamba-2", "nats", (0.005, math.inf), (0.001, math.inf),
                  "nobody would notice a thousandth of a nat"),
        Threshold(id, "RWKV share of the loss", "", (0.3, 0.7), (1 / 11, 10 / 11),
                  "beyond ten to one the other branch could go"),
    )),
    Threshold("S4b", "state moved by a token", "", (0.01, 2), (0.001, 2),
              "after 64 tokens one of them is still 1 % of the state"),
    Threshold("D1", "growth exponent", "", (-math.inf, 0.25), (-math.inf, 0.58),
              "over sixteen training lengths the size doubles at 0.25 and is fivefold at 0.58"),
    Threshold("D1", "loss rise", "nats", (-math.inf, 0.02), (-math.inf, 0.02),
              "growth is a divergence only where the loss rises with it"),
    Threshold("D2", "input share", "", (0.1, 2), (0.01, 2),
              "share of the energy that lies in the difference of two texts; 1 if all of it does"),
    Threshold("D2", "change of the input share", "", (-0.05, 2), (-0.2, 2),
              "training must not wear away what the states tell apart"),
    Threshold("D4a", "benefit of context", "", (0.05, 1), (0, 1),
              "share of the loss that 128 tokens of context save over 8"),
    Threshold("D4a", "loss beyond training length", "nats", (-math.inf, 0.02), (-math.inf, 0.1),
              "more context must not hurt; 0.1 nats are 10 % of the perplexity"),
    Threshold("D4b", "influence at 64", "nats", (1e-4, math.inf), (1e-6, math.inf),
              "1e-4 is about 1 % of the size of the logits, 1e-6 about 0.1 %"),
    Threshold("D4b", "influence at 256", "nats", (1e-4, math.inf), ANY,
              "a small model may forget that far: never a failure"),
    Threshold("D4b", "RWKV share of the flow", "", (0.2, 0.8), (0.05, 0.95),
              "below 5 % of what the states change in the predictions a branch's state is dead"),
    Threshold("states", "norm stability", "", (0, 0.1), (0, math.inf),
              "deviation over mean of the RMS along a text; a long memory still fills: no failure"),
    Threshold("states", "turn similarity", "", (0.7, 1), (-1, 1),
              "cosine of states 64 tokens apart; a short memory is no failure"),
    Threshold("states", "gate saturation", "", (0, 0.1), (0, 0.5),
              "share of gates below 0.01 or above 0.99: there one branch is shut out"),
    Threshold("states", "activation ratio", "", (0.1, 10), (0.01, 100),
              "RMS of the branch outputs, RWKV-6 over Mamba-2"),
    Threshold("states", "superposition residual", "", (0, 1e-5), (0, 1e-4),
              "both recurrences are linear in the state: in the first layer only rounding is left"),
    Threshold("states", "order of edits", "", (0.8, 1), (0.5, 1),
              "rank correlation of the number of edits with the distance of the states"),
    Threshold("states", "spread of like edits", "", (1, 5), (1, 10),
              "farthest over nearest state, one token for another in one place: no cliffs"),
    Threshold("states", "interpolation barrier", "nats", (-math.inf, 0.05), ANY,
              "loss from a mixed state above the line between its ends; never a failure"),
    Threshold("B3", "loss change", "nats", (-math.inf, 0), (-math.inf, 0),
              "the loss ends below its start"),
    Threshold("parity", "fp32 forward", "", (0, 1e-5), (0, 1e-5),
              "rounding over a few thousand tokens"),
    Threshold("parity", "fp32 gradient", "", (0, 1e-4), (0, 1e-4),
              "rounding, where decays cancel"),
    Threshold("parity", "half forward", "", (0, 4e-3), (0, 2e-2),
              "half precision keeps 8 bits of every operand"),
    Threshold("parity", "half gradient", "", (0, 1e-2), (0, 5e-2),
              "products of operands with 8 bits"),
    Threshold("parity", "half model over reference", "x", (0, 2), (0, 4),
              "errors against fp32, as multiples of what the reference loops lose to 8 bits"),
    Threshold("parity", "half logits", "", (0, 0.1), (0, 0.2),
              "two forms of one model with weights of 8 bits, through all layers"),
    Threshold("speed", "WKV6 over the fastest peer, short", "x", (5, math.inf), (5, math.inf),
              "training shapes of small models, forward and backward"),
    Threshold("speed", "WKV6 over the fastest peer, long", "x", (4, math.inf), (4, math.inf),
              "16x2048x12x64 and 1x32768x12x64, forward and backward"),
    Threshold("speed", "SSD over the fastest peer", "x", (3, math.inf), (3, math.inf),
              "forward and backward"),
    Threshold("speed", "WKV6 share of the memory limit, forward", "", (0.30, 1), (0.30, 1),
              "every operand moved once in two bytes is the limit"),
    Threshold("speed", "WKV6 share of the memory limit", "", (0.25, 1), (0.25, 1),
              "forward and backward"),
    Threshold("speed", "launches of a block", "", (0, 60), (0, 60),
              "a third of what the peers' layers launch"),
    Threshold("speed", "training at 5M", "tok/s", (1e6, math.inf), (1e6, math.inf),
              "64x256, 16,384 token ids"),
    Threshold("speed", "memory at 5M", "MiB", (0, 2048), (0, 2048),
              "64x256, 16,384 token ids"),
    Threshold("speed", "training at 125M", "tok/s", (250e3, math.inf), (250e3, math.inf),
              "16x1024, 16,384 token ids"),
    Threshold("speed", "memory at 125M", "MiB", (0, 14336), (0, 14336),
              "16x1024, 16,384 token ids"),
    Threshold("speed", "training over chunked+compile", "x", (2, math.inf), (2, math.inf),
              "what plain PyTorch reaches when compiled"),
    Threshold("speed", "training over GPT-2", "x", (0.8, math.inf), (0.8, math.inf),
              "as many parameters outside the embedding, compiled"),
    Threshold("speed", "slowest length over fastest", "", (0.8, 1), (0.8, 1),
              "256 to 65,536 tokens, as many a step: cost is linear in the length"),
    Threshold("speed", "first step", "s", (0, 20), (0, 20),
              "empty caches: what a new user waits"),
    Threshold("speed", "first step, compiled", "s", (0, 60), (0, 60),
              "empty caches: what a new user waits"),
    Threshold("speed", "decoding over the peers", "x", (5, math.inf), (5, math.inf),
              "one token of the whole model"),
    Threshold("speed", "decoding, late over early", "x", (0.95, 1.05), (0.9, 1.1),
              "a state does not grow: position 100,000 costs what position 100 costs"),
    Threshold("drift", "p of no change in training", "", (0.05, 1), (0, 1),
              "share of stationary series that look as changed; a change may be for the better"),
    Threshold("drift", "p of no drift over turns", "", (0.05, 1), (0, 1),
              "a drift of the states is no failure; it says that length matters"),
)
# fmt: on

THRESHOLDS = {(t.gate, t.quantity): t for t in TABLE}
