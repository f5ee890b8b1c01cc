"""Figures of learning and of the machine: loss, bits per byte, learning rate, speed, GPU."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from groundthink.report.plot import (
    ACCENT,
    INK,
    MUTED,
    Figure,
    Json,
    Panel,
    axis,
    level,
    line,
    log_axis,
    noisy,
    smoothing,
    stacked,
    steps,
)
from groundthink.report.run import Run
from groundthink.report.series import column, known
from groundthink.report.text import compact, count, percent, short, sig


def learning(run: Run) -> list[Figure]:
    """Loss, bits per byte and learning rate."""
    return [*_loss(run), *_bpb(run), *_learning_rate(run)]


def speed(run: Run) -> list[Figure]:
    """Throughput, and the GPU's own counters where there are any."""
    return [*_throughput(run), *_gpu(run)]


def stability(run: Run) -> list[Figure]:
    """The gradient norm against its clip."""
    rows = run.of("train")
    traces = noisy(rows, "grad_norm", "gradient norm", INK)
    if not traces:
        return []
    norms = known(column(rows, "grad_norm")[1])
    median = statistics.median(norms)
    spikes = sum(norm > 3 * median for norm in norms)
    title = (
        f"{count(spikes)} of {count(len(norms))} steps have a gradient over three times the median"
        if spikes
        else f"No step has a gradient over three times the median of {sig(median)}"
    )
    clip = run.option("train", "grad_clip")
    caption = f"Norm over all parameters before clipping. {smoothing(rows)}"
    if clip:
        clipped = sum(norm > clip for norm in norms) / len(norms)
        x, _ = column(rows, "grad_norm")
        traces.append(
            line(
                [x[0], x[-1]], [clip, clip], f"clip at {short(clip)}", MUTED, width=1.25, dash="dot"
            )
        )
        caption += f" {percent(clipped)} of the steps lie above the dotted line and were clipped."
    layout = {"xaxis": steps(), "yaxis": log_axis("gradient norm", traces)}
    return [Figure("grad-norm", title, caption, traces, layout)]


def _validation(run: Run, field: str) -> Iterator[Json]:
    """One marked line per split, with bars of one standard error (in the unit of `field`)."""
    for split in dict.fromkeys(row.get("split", "val") for row in run.of("val")):
        rows = [row for row in run.val(split) if row.get(field) is not None]
        if not rows:
            continue
        scale = [row[field] / row["loss"] if row.get("loss") else 1.0 for row in rows]
        errors = [
            None if row.get("se") is None else row["se"] * ratio
            for row, ratio in zip(rows, scale, strict=True)
        ]
        name = "validation" if split == "val" else str(split)
        yield line(
            *column(rows, field),
            name,
            ACCENT if split == "val" else MUTED,
            mode="lines+markers",
            marker={"size": 6},
            error_y={"type": "data", "array": errors, "thickness": 1.25, "width": 3},
        )


def _against_baselines(traces: list[Json], levels: dict[str, float], unit: str) -> Json:
    marks = [level(y, f"{name} {sig(y)}") for name, y in levels.items()]
    return {
        "xaxis": steps(),
        "yaxis": axis(unit),
        "margin": {"r": 96 if marks else 24},
        "shapes": [shape for shape, _ in marks],
        "annotations": [note for _, note in marks],
    }


def _loss(run: Run) -> list[Figure]:
    rows, val = run.of("train"), run.val()
    traces = [*noisy(rows, "loss", "training", INK), *_validation(run, "loss")]
    if not traces:
        return []
    levels = run.baseline()
    caption = "Cross-entropy; lower is better." + (f" {smoothing(rows)}" if rows else "")
    if val:
        caption += " Bars are one standard error of the validation loss."
    if levels:
        caption += " Dotted lines are n-gram models of the training text, scored on validation."
    layout = _against_baselines(traces, levels, "loss (nats per token)")
    return [Figure("loss", _loss_title(run), caption, traces, layout, height=400, wide=True)]


def _loss_title(run: Run) -> str:
    val = [row for row in run.val() if row.get("loss") is not None]
    kind = "Validation" if val else "Training"
    losses = known(column(val or run.of("train"), "loss")[1])
    first, last = losses[0], losses[-1]
    if len(losses) == 1:
        return f"{kind} loss is {sig(last)} nats per token"
    verb = "fell" if last < first else "rose"
    return f"{kind} loss {verb} from {sig(first)} to {sig(last)} nats per token"


def _bpb(run: Run) -> list[Figure]:
    rows = run.of("train")
    traces = [*noisy(rows, "bpb", "training", INK), *_validation(run, "bpb")]
    if not traces:
        return []
    last = next((r for r in reversed(run.val()) if r.get("bpb") and r.get("loss")), None)
    levels = {}
    title = "Training loss in bits per byte, a unit no tokenizer can change"
    if last:
        levels = {k: y * last["bpb"] / last["loss"] for k, y in run.baseline().items()}
        title = f"That is {sig(last['bpb'])} bits for each byte of validation text"
    caption = (
        "The same losses in a unit that does not depend on the tokenizer; compare models here."
    )
    layout = _against_baselines(traces, levels, "bits per byte")
    return [Figure("bpb", title, caption, traces, layout)]


def _learning_rate(run: Run) -> list[Figure]:
    x, y = column(run.of("train"), "lr")
    rates = known(y)
    if not rates:
        return []
    peak = max(rates)
    title = f"The learning rate peaked at {short(peak)} at step {count(x[y.index(peak)])}"
    schedule = run.option("train", "schedule")
    caption = "Base rate of the optimizer, before the factors of the parameter groups" + (
        f"; schedule: {schedule} after {count(run.option('train', 'warmup_steps'))} warm-up steps."
        if schedule
        else "."
    )
    layout = {"xaxis": steps(), "yaxis": axis("learning rate", rangemode="tozero")}
    return [Figure("lr", title, caption, [line(x, y, "learning rate", INK)], layout)]


def _throughput(run: Run) -> list[Figure]:
    rows = run.of("train")
    traces = noisy(rows, "tok_per_s", "throughput", INK)
    if not traces:
        return []
    median = statistics.median(known(column(rows, "tok_per_s")[1]))
    title = f"The median step trained on {compact(median)} tokens per second"
    caption = f"Training tokens over the wall time of each step. {smoothing(rows)}"
    layout = {
        "xaxis": steps(),
        "yaxis": axis("tokens per second", rangemode="tozero", tickformat="~s"),
    }
    return [Figure("throughput", title, caption, traces, layout)]


_GPU = (
    ("util", "use (%)"),
    ("memory_mib", "memory (MiB)"),
    ("temperature_c", "°C"),
    ("power_w", "W"),
)


def _gpu(run: Run) -> list[Figure]:
    rows = run.of("gpu")
    panels = [(key, unit) for key, unit in _GPU if column(rows, key)[0]]
    if not panels:
        return []
    use = known(column([row for row in rows if row["step"]], "util")[1])
    title = (
        f"The GPU was {sig(statistics.fmean(use), 2)} % busy on average" if use else "GPU counters"
    )
    caption = "Counters of the driver, read beside the training loop: use, memory, heat and power."
    traces, layout = stacked(rows, [Panel(unit, [(key, unit, INK)]) for key, unit in panels])
    return [Figure("gpu", title, caption, traces, layout, height=90 * len(panels) + 60)]
