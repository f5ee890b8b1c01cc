"""Two models side by side on the same texts: loss, balance, states; or proof that they are one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.diagnose.measures import sketch
from groundthink.diagnose.probes.change import debiased_cka
from groundthink.diagnose.probes.information import SHARD
from groundthink.diagnose.probes.registry import Row
from groundthink.diagnose.states import matrices
from groundthink.diagnose.subject import Subject
from groundthink.records import Record
from groundthink.verdicts.statistics import Paired


def compare(a: Subject, b: Subject) -> list[Row]:
    """Rows "comparison": a quantity of A and of B, and B - A with its interval over documents; then
    rows "likeness": debiased CKA of the states of every layer and branch that both have.

    Both read the same characters of the held-out documents of A, each with its own tokenizer, so
    that losses are comparable in bits per byte; no more of them than either learned to read.

    Raises:
        UserError: too little held-out text.
    """
    assert a.tokenizer is not None
    rows, clusters = a.stretches(a.samples, min(a.train_length, b.train_length))
    texts = [a.tokenizer.decode(row) for row in rows.tolist()]
    bits, shares, states = zip(*(_read(subject, texts) for subject in (a, b)), strict=True)
    found = [("comparison", _paired("loss", "bits/byte", bits, clusters))]
    if all(shares):
        found.append(("comparison", _paired("mean RWKV-6 share", "", shares, clusters)))
    for where in states[0].keys() & states[1].keys() if len(texts) > 3 else ():
        cka = debiased_cka(states[0][where], states[1][where])
        found.append(("likeness", {"where": where, "cka": cka, "n": len(states[0][where])}))
    return sorted(found, key=lambda row: (row[0], row[1].get("where", "")))


def _paired(
    name: str, unit: str, values: Sequence[Sequence[float]], clusters: Sequence[int]
) -> Record:
    paired = Paired(dict(zip("ab", values, strict=True)), clusters)
    difference = asdict(paired.interval(lambda mean: mean["b"] - mean["a"]))
    return {"name": name, "unit": unit, **paired.means, **difference}


@torch.inference_mode()
def _read(
    subject: Subject, texts: Sequence[str]
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Bits per byte and mean RWKV-6 share of each text, and sketches of the states after it."""
    assert subject.tokenizer is not None
    bits, shares, states = [], [], {}
    for text in texts:
        ids = torch.tensor([[subject.tokenizer.eos, *subject.tokenizer.encode(text)]])
        ids = ids.to(subject.device)
        logits, named = subject.model(ids[:, :-1], return_states=True)
        nats = F.cross_entropy(logits[0].float(), ids[0, 1:], reduction="sum")
        bits.append(float(nats) / math.log(2) / len(text.encode()))
        if "gate" in named:
            shares.append(float(named["gate"].mean()))
        for where, matrix in matrices(named["state"]).items() if len(bits) <= SHARD else ():
            states.setdefault(where, []).append(sketch(matrix).cpu())
    return bits, shares, {where: torch.cat(parts) for where, parts in states.items()}


def differences(a: Subject, b: Subject) -> Iterator[str]:
    """In what two runs are not equal to the last bit: records of training steps, then weights."""
    losses = [
        {r["step"]: (r["loss"], r["grad_norm"]) for r in subject.records if r["kind"] == "train"}
        for subject in (a, b)
    ]
    if losses[0].keys() != losses[1].keys():
        yield f"A has records of {len(losses[0])} training steps, B of {len(losses[1])}"
    for step in sorted(losses[0].keys() & losses[1].keys()):
        if losses[0][step] != losses[1][step]:
            (loss_a, norm_a), (loss_b, norm_b) = losses[0][step], losses[1][step]
            yield (
                f"training differs from step {step} on: loss {loss_a!r} and {loss_b!r}, "
                f"gradient norm {norm_a!r} and {norm_b!r}"
            )
            break
    weights = [subject.model.state_dict() for subject in (a, b)]
    for name in sorted(weights[0].keys() ^ weights[1].keys()):
        yield f"only {'A' if name in weights[0] else 'B'} has the weight {name}"
    for name in sorted(weights[0].keys() & weights[1].keys()):
        x, y = weights[0][name].cpu(), weights[1][name].cpu()
        if x.shape != y.shape:
            yield f"{name} is {list(x.shape)} in A and {list(y.shape)} in B"
        elif not torch.equal(x, y):
            yield f"{name} differs, by {float((x - y).abs().max()):.3g} at most"
