"""From the name of a corpus to tokens on disk, split and ready to be read."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from groundthink.data import builtin, files, hub, packed, tokenizers
from groundthink.data.config import DataConfig
from groundthink.data.packed import Packed, ShardWriter
from groundthink.data.source import Document, Source
from groundthink.data.split import Plan, content_hash, plan
from groundthink.data.tokenizers import Tokenizer
from groundthink.errors import UserError, unknown

BUILTIN = {name: (make.__doc__ or "").partition("\n")[0] for name, make in builtin.BUILTIN.items()}
SPLITS = ("train", "val", "test")
PIECE, BATCH = 1 << 16, 1 << 20  # characters: one text for the tokenizer, and all in memory
ENOUGH = 1_000_000  # training tokens below which an experiment says little
_line_start = re.compile(r"(?<=\S\n)(?=\S)")

Log = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """A tokenized corpus.

    Attributes:
        splits: train, val and test; one that would be empty is not there.
        digest: names the tokens and the tokenizer, the same wherever they were made.
        about: source, licence, documents, bytes, tokens, vocabulary, bytes per token, split.
        folder: where the shards lie.
    """

    tokenizer: Tokenizer
    splits: dict[str, Packed]
    digest: str
    about: dict[str, Any]
    folder: Path


def prepare(
    config: DataConfig, *, tokenizer: Tokenizer | None = None, lanes: int = 0, log: Log = print
) -> Corpus:
    """Tokenize a corpus, or open the shards of an earlier call with the same settings and files.

    Args:
        tokenizer: used instead of the one that `config` names (that of a checkpoint).
        lanes: the batch size, needed by `split: track` only.
        log: takes one line on what was found or done.

    Raises:
        UserError: the corpus cannot be found or read, holds no text, or leaves a split empty;
            the shards are damaged or cannot be written.
    """
    start = time.perf_counter()
    _check(config)
    lanes = lanes if config.split == "track" else 0
    if config.split == "track" and not lanes:
        raise UserError("data.split track needs a batch size; use data.split document here")
    source = open_source(config)
    wanted = tokenizer or _named_tokenizer(config.tokenizer)
    by_name = f"bpe {config.bpe_vocab_size}" if config.tokenizer == "bpe" else config.tokenizer
    folders = [_folder(config, source, lanes, by_name)]
    if wanted:
        folders.append(_folder(config, source, lanes, wanted.digest))
    for folder in folders:
        if folder.exists():
            corpus = open_corpus(folder)
            if wanted is None or corpus.tokenizer.digest == wanted.digest:
                log(f"{_summary(corpus)}, from {folder}")
                return corpus
    log(f"tokenizing {source.name} ...")
    with packed.building(folders[-1]) as work:
        _build(work, config, source, wanted, lanes)
    corpus = open_corpus(folders[-1])
    log(f"{_summary(corpus)}, tokenized in {time.perf_counter() - start:.1f} s")
    return corpus


def open_source(config: DataConfig) -> Source:
    """What `config.corpus` names: a built-in corpus, files, or a Hugging Face dataset.

    Raises:
        UserError: it names none of them.
    """
    name = config.corpus
    if name in builtin.BUILTIN:
        return builtin.BUILTIN[name]()
    if files.is_path(name):
        return files.source(name, config.separator, config.text_field)
    if hub.is_name(name):
        return hub.source(name, config.text_field)
    raise unknown("corpus (and no such file or folder)", name, BUILTIN)


def open_corpus(folder: Path) -> Corpus:
    """Open a folder of shards (see `packed.read_manifest` for what is checked)."""
    manifest = packed.read_manifest(folder)
    tokenizer = tokenizers.load_tokenizer(folder / "tokenizer.json")
    splits = packed.open_splits(folder, manifest)
    return Corpus(tokenizer, splits, packed.digest_of(manifest), manifest["about"], folder)


def _check(config: DataConfig) -> None:
    val, test = config.val_fraction, config.test_fraction
    if min(val, test) < 0 or val + test >= 1:
        raise UserError(
            f"data.val_fraction {val} and test_fraction {test} must leave some to train on"
        )
    if config.split == "track" and test:
        raise UserError("data.split track has no test split; set data.test_fraction to 0")


def _named_tokenizer(name: str) -> Tokenizer | None:
    """The tokenizer that exists without the corpus; char and bpe are made from it."""
    if name == "byte":
        return tokenizers.ByteTokenizer()
    if name in tokenizers.BUILTIN:
        return None
    if not (name.endswith(".json") or Path(name).exists()):
        raise unknown("tokenizer (and no such file)", name, tokenizers.BUILTIN)
    return tokenizers.load_tokenizer(name)


def _folder(config: DataConfig, source: Source, lanes: int, tokenizer: str) -> Path:
    held_out = [config.split, config.val_fraction, config.test_fraction, lanes]
    key = json.dumps([packed.FORMAT, source.identity, tokenizer, held_out])
    name = re.sub(r"\W+", "-", Path(source.name).name)[:32].strip("-")
    name = f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return packed.cache_folder(config.cache_dir) / "data" / name


@dataclass
class _Survey:
    """What one pass over the documents finds, besides the documents."""

    named: list[str]
    hashes: list[bytes]
    sizes: list[int]
    alphabet: set[str]


def _documents(source: Source) -> Iterator[Document]:
    return (d for d in source.read() if d.text and not d.text.isspace())


def _survey(source: Source) -> _Survey:
    found = _Survey([], [], [], set())
    for document in _documents(source):
        found.named.append(document.split)
        found.hashes.append(content_hash(document.text))
        found.sizes.append(len(document.text.encode()))
        found.alphabet.update(document.text)
    if not found.sizes:
        raise UserError(f"{source.name} is empty: it holds no text")
    return found


def _build(
    work: Path, config: DataConfig, source: Source, tokenizer: Tokenizer | None, lanes: int
) -> None:
    """Three passes: survey and plan, the vocabulary, the tokens."""
    found = _survey(source)
    val, test = (0.0, 0.0) if lanes else (config.val_fraction, config.test_fraction)
    chosen = plan(found.named, found.hashes, found.sizes, val, test)
    tokenizer = tokenizer or _make_tokenizer(config, source, found, chosen)
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    out = {split: ShardWriter(work / split, dtype, tokenizer.token_bytes) for split in SPLITS}
    if lanes:
        whole = ShardWriter(work.parent / "whole", dtype, tokenizer.token_bytes)
        _write(_parts(source, chosen, "train"), tokenizer, {"train": whole})
        whole.close()
        text = packed.open_split(whole.path, dtype)
        packed.lay_in_tracks(text, lanes, config.val_fraction, out["train"], out["val"])
        how = f"the tail of each of {lanes} lanes is held out"
    else:
        _write(_parts(source, chosen, *SPLITS), tokenizer, out)
        how = chosen.how
    counts = {split: writer.close() for split, writer in out.items()}
    for split, wanted in zip(
        SPLITS, (True, config.val_fraction, config.test_fraction), strict=True
    ):
        if wanted and not counts[split]["tokens"]:
            raise UserError(f"{source.name} has too little text: nothing is left for {split}")
    tokenizer.save(work / "tokenizer.json")
    documents = chosen.splits.count("train") if lanes else len(chosen.splits)
    about = _about(source, tokenizer, counts, documents, how)
    packed.seal(work, {"dtype": dtype, "lanes": lanes, "splits": counts, "about": about})


def _make_tokenizer(config: DataConfig, source: Source, found: _Survey, chosen: Plan) -> Tokenizer:
    """char knows every character of the corpus, held-out ones too, so that bits per byte stay
    those of a lossless code; bpe sees the training split alone."""
    if config.tokenizer == "char":
        return tokenizers.CharTokenizer(found.alphabet)
    train = _parts(source, chosen, "train")
    return tokenizers.train_bpe((text for _, text, _ in train), config.bpe_vocab_size)


def _parts(source: Source, chosen: Plan, *keep: str) -> Iterator[tuple[str, str, bool]]:
    """(split, text, whether a document ends after it) in order, in pieces of bounded length."""
    for index, document in enumerate(_documents(source)):
        for split, text in chosen.parts(index, document.text):
            if split in keep and text:
                *first, last = pieces(text)
                yield from ((split, piece, False) for piece in first)
                yield split, last, True


def pieces(text: str, length: int = PIECE) -> Iterator[str]:
    """Cut a long text where a line starts and no other white space is near: the pre-tokenizer of
    a byte-level BPE cuts there too, so the tokens are those of the whole."""
    start = 0
    while len(text) - start > length:
        cut = _line_start.search(text, start + length)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _write(
    parts: Iterable[tuple[str, str, bool]], tokenizer: Tokenizer, out: dict[str, ShardWriter]
) -> None:
    eos = np.array([tokenizer.eos])
    for batch in _batches(parts):
        ids = tokenizer.encode_batch([text for _, text, _ in batch])
        for (split, _, ends), tokens in zip(batch, ids, strict=True):
            out[split].add(tokens)
            if ends:
                out[split].add(eos)
                out[split].end()


def _batches(parts: Iterable[tuple[str, str, bool]]) -> Iterator[list[tuple[str, str, bool]]]:
    batch, size = [], 0
    for part in parts:
        batch.append(part)
        size += len(part[1])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _about(
    source: Source,
    tokenizer: Tokenizer,
    counts: dict[str, dict[str, int]],
    documents: int,
    how: str,
) -> dict[str, Any]:
    size, tokens = (sum(count[key] for count in counts.values()) for key in ("bytes", "tokens"))
    return {
        "source": source.name,
        "licence": source.licence or "unknown",
        "documents": documents,
        "bytes": size,
        "tokens": tokens,
        "splits": {split: count for split, count in counts.items() if count["tokens"]},
        "split": how,
        "tokenizer": tokenizer.name,
        "tokenizer_digest": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": round(size / tokens, 3),
    }


def _summary(corpus: Corpus) -> str:
    about = corpus.about
    sizes = ", ".join(f"{split} {len(p.tokens):,}" for split, p in corpus.splits.items())
    few = " (few: below 1 million)" if len(corpus.splits["train"].tokens) < ENOUGH else ""
    return (
        f"{about['source']}: {about['documents']:,} documents, {about['bytes'] / 1e6:.2f} MB; "
        f"tokens {sizes}{few}; {about['tokenizer']}, {about['vocab_size']:,} ids"
    )
