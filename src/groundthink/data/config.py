"""Where text comes from and how it becomes tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Corpus, tokenizer, split and order of the training data."""

    corpus: str = "python-docs"
    """Built-in corpus (groundthink list data), a text file, a folder, a glob, or a Hugging Face
    dataset (owner/name, name:config)."""
    separator: str = "<|endoftext|>"
    """Line that ends a document in .txt and .md files; a file without it is one document."""
    text_field: str = "text"
    """Field that holds the text in .jsonl files and Hugging Face datasets."""
    tokenizer: str = "char"
    """char, byte, bpe (trained on the training split) or the path of a tokenizer.json."""
    bpe_vocab_size: int = 16000
    """Vocabulary of the trained BPE."""
    split: Literal["document", "track"] = "document"
    """document: whole documents are held out, those of files named train, val or test if there are
    such; track: the tail of each batch lane, as in the study."""
    val_fraction: float = 0.1
    """Share of the text held out for validation."""
    test_fraction: float = 0.0
    """Share of the text held out and never read in training."""
    order: Literal["lanes", "windows"] = "lanes"
    """lanes: contiguous text per row, state can carry over; windows: shuffled and independent."""
    cache_dir: str = ""
    """Where tokenized shards are kept; $GROUNDTHINK_CACHE or the user's cache folder if empty."""


@dataclass(frozen=True, kw_only=True)
class DataInspect:
    """A look at a corpus as training sees it."""

    data: DataConfig = field(default_factory=DataConfig)
    windows: int = 3
    """Windows of text to show."""
    seq_len: int = 256
    """Tokens per window."""
