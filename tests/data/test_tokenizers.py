"""Ids, exact round trips, bytes per id and files of the three tokenizers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from groundthink.data.tokenizers import (
    EOS,
    RESERVED,
    SPECIALS,
    UNK,
    ByteTokenizer,
    CharTokenizer,
    HFTokenizer,
    load_tokenizer,
    train_bpe,
)
from groundthink.errors import UserError

TEXT = "The quick brown fox,\n\n  naïve café – 東京 😀!\tA tab.\n" * 3


@pytest.fixture(params=["char", "byte", "bpe"])
def tokenizer(request):
    make = {
        "char": lambda: CharTokenizer(TEXT),
        "byte": ByteTokenizer,
        "bpe": lambda: train_bpe([TEXT] * 5, 300),
    }
    return make[request.param]()


@pytest.mark.tiny
def test_text_round_trips_exactly(tokenizer):
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.encode("") == []


@pytest.mark.tiny
def test_a_special_string_is_one_token(tokenizer):
    user, turn = SPECIALS.index("<|user|>"), SPECIALS.index("<|endofturn|>")
    ids = tokenizer.encode("<|user|>The fox<|endofturn|><|eos|>")
    assert ids[0] == user and ids[-2:] == [turn, EOS] == [turn, tokenizer.eos]
    assert tokenizer.decode(ids) == "<|user|>The fox<|endofturn|><|eos|>"
    assert not {*tokenizer.encode("<|nobody|>")} & set(range(UNK + 1, len(SPECIALS)))


@pytest.mark.tiny
def test_token_bytes_add_up_to_the_utf8_length(tokenizer):
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes.dtype == np.int32
    assert tokenizer.token_bytes[tokenizer.encode(TEXT)].sum() == len(TEXT.encode())
    assert tokenizer.token_bytes[: len(SPECIALS)].sum() == 0


@pytest.mark.tiny
def test_file_round_trip(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(again) is type(tokenizer)
    assert again.digest == tokenizer.digest and len(again.digest) == 12
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert (again.token_bytes == tokenizer.token_bytes).all()


@pytest.mark.tiny
def test_ids_of_characters_and_bytes():
    chars = CharTokenizer("cab")
    assert chars.encode("abc") == [RESERVED, RESERVED + 1, RESERVED + 2]
    assert chars.encode("b\U0010ffff-") == [RESERVED + 1, UNK, UNK]
    assert chars.vocab_size == RESERVED + 3
    assert ByteTokenizer().encode("A") == [RESERVED + 65]
    assert ByteTokenizer().vocab_size == 288


def test_digest_tells_vocabularies_apart():
    digests = {CharTokenizer("ab").digest, CharTokenizer("abc").digest, ByteTokenizer().digest}
    assert len(digests) == 3


def test_bpe_is_reproducible_and_begins_with_the_specials():
    one, two = train_bpe([TEXT], 280), train_bpe([TEXT], 280)
    assert one.digest == two.digest and one.vocab_size <= 280
    assert [one.inner.id_to_token(i) for i in range(8)] == list(SPECIALS)
    assert one.encode("x") != one.encode(" x")  # no space is put before a text
    with pytest.raises(UserError, match="at least 264"):
        train_bpe([TEXT], 100)


def test_a_tokenizer_json_of_others(tmp_path):
    """A SentencePiece-like vocabulary with byte fallback and its own end-of-document token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<unk>", "</s>", "<0xC3>", "<0xA9>", "▁", "c", "a", "f", "ca", "caf", "▁caf"]
    vocab, merges = (
        {piece: i for i, piece in enumerate(pieces)},
        [("c", "a"), ("ca", "f"), ("▁", "caf")],
    )
    inner = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    inner.add_special_tokens(["<unk>", "</s>"])
    inner.enable_truncation(2)
    inner.save(str(tmp_path / "other.json"))
    tokenizer = load_tokenizer(tmp_path / "other.json")
    assert tokenizer.eos == 1
    assert tokenizer.token_bytes.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 2, 3, 4]
    assert tokenizer.decode(tokenizer.encode("caf é caf é")) == "caf é caf é"


def test_unusable_tokenizer_files_are_named(tmp_path):
    from tokenizers import Tokenizer, models

    path = tmp_path / "bad.json"
    for content in ("{", "[]", '{"type": "word"}', '{"chars": "ab"}', '{"model": {"type": "X"}}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"bad\.json") as error:
            load_tokenizer(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"gone\.json"):
        load_tokenizer(tmp_path / "gone.json")
    path.write_text(Tokenizer(models.WordLevel({"a": 0}, "a")).to_str())
    with pytest.raises(UserError, match=r"bad\.json.*ends a document"):
        load_tokenizer(path)


def test_97_ids_on_tiny_shakespeare(shakespeare):
    text = shakespeare.read_text(encoding="utf-8")
    tokenizer = CharTokenizer(text)
    assert tokenizer.vocab_size == 97
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert json.loads(tokenizer.to_json())["chars"] == "".join(sorted(set(text)))


def test_ids_of_models_decode(tokenizer):
    """A model may produce any id below the vocabulary size."""
    assert isinstance(tokenizer.decode(np.arange(tokenizer.vocab_size)), str)
    assert isinstance(tokenizer, HFTokenizer) or tokenizer.decode([9]) == ""
