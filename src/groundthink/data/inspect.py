"""A corpus made visible: what was found, how it is split, and text as the model will meet it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator

import numpy as np

from groundthink.data.config import DataInspect
from groundthink.data.corpora import Corpus, prepare
from groundthink.data.tokenizers import Tokenizer

WIDTH = 100
RESET, END = "▶", "■"


def run(config: DataInspect) -> None:
    """Print what `inspect` says."""
    print(inspect(config))


def inspect(config: DataInspect, log: Callable[[str], None] = print) -> str:
    """Tokenize or open a corpus and describe it: source, sizes, splits and decoded windows.

    Raises:
        UserError: see `corpora.prepare`.
    """
    corpus = prepare(config.data, lanes=max(config.windows, 1), log=log)
    lines = [*_facts(corpus), ""]
    if config.windows:
        lines += _windows(corpus, config)
    return "\n".join(lines)


def _facts(corpus: Corpus) -> Iterator[str]:
    about = corpus.about
    yield f"corpus      {about['source']}"
    yield f"licence     {about['licence']}"
    yield f"documents   {about['documents']:,}"
    yield f"bytes       {about['bytes']:,}"
    yield f"tokens      {about['tokens']:,}, {about['bytes_per_token']:.2f} bytes each"
    yield f"tokenizer   {about['tokenizer']}, {about['vocab_size']:,} ids"
    yield f"split       {about['split']}"
    yield f"shards      {corpus.folder}"
    yield f"data hash   {corpus.digest}"
    yield ""
    columns = (("tokens", 13), ("share", 8), ("documents", 12), ("shortest", 11))
    columns += (("median", 11), ("longest", 11))
    yield " " * 12 + "".join(f"{name:>{width}}" for name, width in columns)
    for split, packed in corpus.splits.items():
        tokens = len(packed.tokens)
        lengths = np.diff(packed.doc_ends, prepend=0)
        sizes = (lengths.min(), int(np.median(lengths)), lengths.max())
        row = f"{split:<12}{tokens:>13,}{tokens / about['tokens']:>8.1%}{len(lengths):>12,}"
        yield row + "".join(f"{size:>11,}" for size in sizes)


def _windows(corpus: Corpus, config: DataInspect) -> Iterator[str]:
    from groundthink.data.stream import Lanes, Windows

    train = corpus.splits["train"]
    longest = len(train.tokens) // config.windows - 1
    order = Lanes if config.data.order == "lanes" else Windows
    batch = order(train, config.windows, max(1, min(config.seq_len, longest))).next()
    yield f"{RESET} state is reset before the next token    {END} end of a document"
    for row in range(config.windows):
        ids, reset = batch.tokens[row].numpy(), batch.reset[row].numpy()
        head = (
            f"─ train, row {row + 1} of {config.windows}, {len(ids)} tokens, resets: {reset.sum()} "
        )
        yield ""
        yield head + "─" * (WIDTH - len(head))
        for line in _marked(corpus.tokenizer, ids, reset).split("\n"):
            wrapped = textwrap.wrap(line, WIDTH - 2, expand_tabs=False, replace_whitespace=False)
            yield from (f"  {part}".rstrip() for part in wrapped or [""])


def _marked(tokenizer: Tokenizer, ids: np.ndarray, reset: np.ndarray) -> str:
    """Text of the tokens with RESET and END in it; control characters are spelt out."""
    cuts = np.flatnonzero(reset | (ids == tokenizer.eos))
    parts = []
    for part, start in zip(np.split(ids, cuts), [0, *cuts], strict=True):
        if len(part):
            ends = part[0] == tokenizer.eos
            text = tokenizer.decode(part[1:] if ends else part)
            parts.append((RESET if reset[start] else "") + (END + "\n" if ends else "") + text)
    shown = "".join(parts)
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in shown)
