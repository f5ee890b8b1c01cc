"""Text <-> token ids: characters, bytes, or a byte-level BPE; each is one JSON file.

Ids 0 to 7 are the special tokens. In the character and byte vocabularies ids up to 31 are
reserved and text begins at 32. The string of a special token in a text becomes that one token.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from groundthink.errors import UserError

_NAMES = ("pad", "unk", "bos", "eos", "system", "user", "assistant", "endofturn")
SPECIALS = tuple(f"<|{name}|>" for name in _NAMES)
PAD, UNK, BOS, EOS = range(4)
RESERVED = 32
BUILTIN = {
    "char": "one token per character of the corpus",
    "byte": "one token per UTF-8 byte; 288 ids",
    "bpe": "byte-level BPE trained on the training split (data.bpe_vocab_size)",
}
# End-of-document tokens of other people's vocabularies, tried in this order.
END_OF_DOCUMENT = (
    SPECIALS[EOS],
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "[EOS]",
    "[SEP]",
)
_special = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")


class Tokenizer:
    """What every tokenizer has.

    Attributes:
        vocab_size: ids are below it.
        eos: id that ends a document.
        token_bytes: int32 [vocab_size], UTF-8 bytes of text that each id stands for, 0 for
            special tokens; they turn a loss per token into bits per byte.
    """

    name: str
    vocab_size: int
    eos: int = EOS
    token_bytes: np.ndarray

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with nothing added at its ends."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, as integer arrays."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens show as their strings, broken UTF-8 as U+FFFD."""
        raise NotImplementedError

    def to_json(self) -> str:
        """The whole tokenizer as JSON."""
        raise NotImplementedError

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits that name the vocabulary."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def save(self, path: str | Path) -> None:
        """Write the one JSON file that `load_tokenizer` reads."""
        Path(path).write_text(self.to_json(), encoding="utf-8")


class _Table(Tokenizer):
    """A fixed-size symbol per id: characters or bytes."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        if "<|" not in text:
            return self._symbols(text)
        parts = _special.split(text)
        ids = [
            np.array([SPECIALS.index(part)]) if i % 2 else self._symbols(part)
            for i, part in enumerate(parts)
        ]
        return np.concatenate(ids)

    def _symbols(self, text: str) -> np.ndarray:
        raise NotImplementedError


class CharTokenizer(_Table):
    """Sorted characters of an alphabet from id 32; any other character is unk."""

    name = "char"

    def __init__(self, alphabet: Iterable[str]):
        self.chars = sorted(set(alphabet))
        self.vocab_size = RESERVED + len(self.chars)
        self._text = [*SPECIALS, *[""] * (RESERVED - len(SPECIALS)), *self.chars]
        sizes = [len(char.encode("utf-8", "replace")) for char in self.chars]
        self.token_bytes = np.array([0] * RESERVED + sizes, dtype=np.int32)
        codes = [ord(char) for char in self.chars]
        self._ids = np.full(max(codes, default=0) + 2, UNK)  # the last entry is for all beyond
        self._ids[codes] = np.arange(RESERVED, self.vocab_size)

    def _symbols(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        return self._ids[np.minimum(codes, len(self._ids) - 1)]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self._text[i] for i in ids)

    def to_json(self) -> str:
        return json.dumps({"type": "char", "chars": "".join(self.chars)}, ensure_ascii=False)


class ByteTokenizer(_Table):
    """UTF-8 bytes: byte b is id 32 + b, 288 ids in all."""

    name = "byte"
    vocab_size = RESERVED + 256

    def __init__(self):
        self.token_bytes = np.array([0] * RESERVED + [1] * 256, dtype=np.int32)
        specials = [special.encode() for special in SPECIALS]
        empty = [b""] * (RESERVED - len(SPECIALS))
        self._bytes = [*specials, *empty, *(bytes([b]) for b in range(256))]

    def _symbols(self, text: str) -> np.ndarray:
        data = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)
        return data.astype(np.int64) + RESERVED

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", "replace")

    def to_json(self) -> str:
        return json.dumps({"type": "byte"})


class HFTokenizer(Tokenizer):
    """A `tokenizer.json` of the Hugging Face tokenizers library: our BPE or any other.

    `token_bytes` is exact for byte-level and SentencePiece-like vocabularies.
    """

    def __init__(self, inner: Any):
        inner.no_truncation()
        inner.no_padding()
        self.inner = inner
        self.name = type(inner.model).__name__.lower()
        ids = inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        ends = [ids[token] for token in END_OF_DOCUMENT if token in ids]
        if not ends:
            known = ", ".join(END_OF_DOCUMENT)
            raise UserError(f"the tokenizer has no token that ends a document (one of {known})")
        self.eos = ends[0]
        added = inner.get_added_tokens_decoder()
        size = len if type(inner.decoder).__name__ == "ByteLevel" else _piece_bytes
        self.token_bytes = np.zeros(self.vocab_size, dtype=np.int32)
        for token, i in ids.items():
            plain = i in added and not added[i].special
            if i not in added or plain:
                self.token_bytes[i] = len(token.encode()) if plain else size(token)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(item.ids, dtype=np.int64) for item in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        return self.inner.decode([int(i) for i in ids], skip_special_tokens=False)

    def to_json(self) -> str:
        return self.inner.to_str()


def _piece_bytes(token: str) -> int:
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return 1
    return len(token.replace("\u2581", " ").removeprefix("##").encode())


def train_bpe(texts: Iterable[str], vocab_size: int) -> HFTokenizer:
    """A byte-level BPE: no prefix space, pairs seen at least twice, special tokens first.

    Raises:
        UserError: `vocab_size` leaves no room for the 256 bytes and the special tokens.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    smallest = len(SPECIALS) + 256
    if vocab_size < smallest:
        raise UserError(f"data.bpe_vocab_size {vocab_size} must be at least {smallest}")
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    inner.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return HFTokenizer(inner)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer file: one that `save` wrote, or any tokenizer.json.

    Raises:
        UserError: the file is missing, damaged or of an unknown type.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the tokenizer {path}: {error}") from error
    kind = values.get("type") if isinstance(values, dict) else None
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char" and isinstance(values.get("chars"), str):
        return CharTokenizer(values["chars"])
    if kind is not None or not isinstance(values, dict) or "model" not in values:
        raise UserError(f"{path} is not a tokenizer: no type char or byte and no model in it")
    from tokenizers import Tokenizer as Inner

    try:
        return HFTokenizer(Inner.from_str(text))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"cannot read the tokenizer {path}: {error}") from error
