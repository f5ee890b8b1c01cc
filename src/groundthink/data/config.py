"""Where text comes from and how it becomes tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Corpus, tokenizer, split and order of the training data."""

    corpus: str = "python-docs"
    """Built-in corpus, a text file, a folder, a glob, or a Hugging Face dataset name."""
    separator: str = "<|endoftext|>"
    """Text on a line of its own that ends a document in .txt files; a file without it is one document."""
    text_field: str = "text"
    """Field that holds the text in .jsonl files and Hugging Face datasets."""
    tokenizer: str = "char"
    """char, byte, bpe (trained on the training split) or the path of a tokenizer.json."""
    bpe_vocab_size: int = 16000
    """Vocabulary of the trained BPE."""
    split: Literal["document", "track"] = "document"
    """document: whole documents are held out; track: the tail of each batch lane, as in the study."""
    val_fraction: float = 0.1
    """Share of the text held out for validation."""
    test_fraction: float = 0.0
    """Share of the text held out and never read in training."""
    order: Literal["lanes", "windows"] = "lanes"
    """lanes: contiguous text per batch row, state can carry over; windows: shuffled independent windows."""
    cache_dir: str = ""
    """Where tokenized shards are kept; the user's cache folder if empty."""
