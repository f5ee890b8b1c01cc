"""From text to shards: what is in them, when they are made anew, and that damage is noticed."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace

import numpy as np
import pytest

from groundthink.data import packed, tokenizers
from groundthink.data.config import DataConfig
from groundthink.data.corpora import open_corpus, pieces, prepare
from groundthink.errors import UserError


def documents(corpus, split):
    """Texts of a split, decoded between the document ends; each must end with eos."""
    text, found, start = corpus.splits[split], [], 0
    for end in text.doc_ends:
        assert text.tokens[end - 1] == corpus.tokenizer.eos
        found.append(corpus.tokenizer.decode(text.tokens[start : end - 1].tolist()))
        start = end
    assert start == len(text.tokens)
    return found


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_every_document_comes_back_once(stories, tokenizer):
    config = DataConfig(
        corpus=str(stories),
        tokenizer=tokenizer,
        bpe_vocab_size=300,
        val_fraction=0.2,
        test_fraction=0.1,
    )
    corpus = prepare(config)
    texts = stories.read_text(encoding="utf-8").split("\n<|endoftext|>\n")[:-1]
    found = [text for split in ("train", "val", "test") for text in documents(corpus, split)]
    assert sorted(found) == sorted(texts)
    for part in corpus.splits.values():
        assert part.tokens.dtype == np.uint16 and isinstance(part.tokens, np.memmap)
    sizes = {split: part.bytes for split, part in corpus.splits.items()}
    assert sum(sizes.values()) == sum(len(text.encode()) for text in texts)
    about = corpus.about
    assert about["documents"] == 40 and about["bytes"] == sum(sizes.values())
    assert about["vocab_size"] == corpus.tokenizer.vocab_size and about["split"]


def test_bpe_learns_from_the_training_split_alone(tmp_path):
    (tmp_path / "train.txt").write_text("abab cdcd " * 50)
    (tmp_path / "val.txt").write_text("xyxy zwzw " * 50)
    corpus = prepare(DataConfig(corpus=str(tmp_path), tokenizer="bpe", bpe_vocab_size=290))
    learnt = [token for token in corpus.tokenizer.inner.get_vocab() if len(token) in (2, 3, 4)]
    assert any("ab" in token for token in learnt)
    assert not any("x" in token or "z" in token for token in learnt)
    assert documents(corpus, "val") == ["xyxy zwzw " * 50]


def test_a_wide_vocabulary_takes_four_bytes(tmp_path):
    path = tmp_path / "wide.txt"
    path.write_text("".join(map(chr, [*range(0x4E00, 0xA000), *range(0x20000, 0x2C000)])) * 2)
    corpus = prepare(DataConfig(corpus=str(path)))
    assert corpus.splits["train"].tokens.dtype == np.uint32
    assert corpus.tokenizer.decode(corpus.splits["train"].tokens[:9]) == path.read_text()[:9]


@pytest.mark.tiny
def test_reuse_and_renewal(stories, cache, monkeypatch):
    config = DataConfig(corpus=str(stories), val_fraction=0.2)
    first = prepare(config)
    assert first.folder.is_relative_to(cache)

    with monkeypatch.context() as patch:
        patch.setattr(tokenizers.CharTokenizer, "encode_batch", None)  # cannot tokenize now
        again = prepare(config)
    assert (again.digest, again.about) == (first.digest, first.about)

    changed = [
        replace(config, val_fraction=0.3),
        replace(config, tokenizer="byte"),
        replace(config, separator=""),
    ]
    assert len({prepare(c).folder for c in [config, *changed]}) == 4
    with stories.open("a") as file:
        file.write("One more story.\n")
    assert prepare(config).digest != first.digest
    assert sorted(p.name for p in (cache / "data").iterdir() if ".tmp" in p.name) == []


@pytest.mark.tiny
def test_the_digest_names_the_tokens_not_the_place(stories, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    copy = other / "copy.txt"
    copy.write_bytes(stories.read_bytes())
    one = prepare(DataConfig(corpus=str(stories)))
    two = prepare(DataConfig(corpus=str(copy), cache_dir=str(other / "cache")))
    assert one.digest == two.digest and one.folder != two.folder


@pytest.mark.tiny
def test_a_given_tokenizer_is_used_and_shares_the_shards_it_made(stories, tmp_path):
    config = DataConfig(corpus=str(stories))
    first = prepare(config)
    assert prepare(config, tokenizer=first.tokenizer).folder == first.folder
    alien = tokenizers.CharTokenizer("Story 0123456789.")
    corpus = prepare(config, tokenizer=alien)
    assert corpus.tokenizer.digest == alien.digest and corpus.folder != first.folder
    assert (corpus.splits["train"].tokens == tokenizers.UNK).any()
    alien.save(tmp_path / "own.json")
    by_path = prepare(replace(config, tokenizer=str(tmp_path / "own.json")))
    assert by_path.digest == corpus.digest


@pytest.mark.tiny
def test_damaged_shards_are_named(stories):
    config = DataConfig(corpus=str(stories))
    folder = prepare(config).folder
    shard = folder / "train.bin"
    whole = shard.read_bytes()
    for damaged, what in ((whole[:-1], "bytes instead of"), (b"x" + whole[1:], "altered")):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"train\.bin .*{what}.*; delete the folder"):
            prepare(config)
    shard.unlink()
    with pytest.raises(UserError, match=r"train\.bin is missing"):
        prepare(config)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        open_corpus(folder)


@pytest.mark.tiny
def test_a_failed_build_leaves_nothing(stories, cache):
    with stories.open("ab") as file:
        file.write(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        prepare(DataConfig(corpus=str(stories)))
    assert list((cache / "data").iterdir()) == []


@pytest.mark.tiny
def test_of_two_builders_the_faster_wins(cache):
    with packed.building(cache / "data") as slow:
        (slow / "who").write_text("slow")
        with packed.building(cache / "data") as fast:
            (fast / "who").write_text("fast")
    assert (cache / "data" / "who").read_text() == "fast"
    assert [path.name for path in cache.iterdir()] == ["data"]


@pytest.mark.tiny
def test_a_cache_that_cannot_be_written(stories, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write tokens .*data.cache_dir"):
        prepare(DataConfig(corpus=str(stories), cache_dir=str(tmp_path / "file")))


@pytest.mark.tiny
def test_the_manifest_says_what_the_shards_are(stories):
    corpus = prepare(DataConfig(corpus=str(stories)))
    manifest = json.loads((corpus.folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {p.name for p in corpus.folder.iterdir()} - {"manifest.json"}
    assert manifest["about"]["tokenizer_digest"] == corpus.tokenizer.digest
    assert manifest["about"]["licence"] == "unknown" and manifest["dtype"] == "<u2"
    assert manifest["splits"]["train"]["tokens"] == len(corpus.splits["train"].tokens)


@pytest.mark.tiny
def test_impossible_settings(stories):
    cases = [
        ({"val_fraction": 0.8, "test_fraction": 0.2}, "leave some to train on"),
        ({"val_fraction": -0.1}, "leave some to train on"),
        ({"split": "track", "test_fraction": 0.1}, "no test split"),
        ({"tokenizer": "chars"}, "unknown tokenizer.*did you mean char"),
        ({"tokenizer": "gone.json"}, r"gone\.json"),
    ]
    for changes, message in cases:
        with pytest.raises(UserError, match=message):
            prepare(DataConfig(corpus=str(stories), **changes), lanes=2)
    with pytest.raises(UserError, match="needs a batch size"):
        prepare(DataConfig(corpus=str(stories), split="track"))
    stories.write_text("x")
    with pytest.raises(UserError, match="too little text"):
        prepare(DataConfig(corpus=str(stories)))


@pytest.mark.tiny
@pytest.mark.parametrize("length", [1, 7, 50])
def test_a_long_text_in_pieces_has_the_tokens_of_the_whole(length):
    text = "One line here.\n\n  Indented.\nNext, it's\n\n\nfar\tapart \n then.\nEnd\n" * 20
    tokenizer = tokenizers.train_bpe([text], 320)
    cut = list(pieces(text, length))
    assert "".join(cut) == text and len(cut) > 5
    assert [i for piece in cut for i in tokenizer.encode(piece)] == tokenizer.encode(text)


def test_the_studys_tracks_on_shakespeare(shakespeare):
    """Batch 4: 1,115,392 tokens, 278,848 per track, boundary at 250,963."""
    corpus = prepare(DataConfig(corpus=str(shakespeare), split="track"), lanes=4)
    text = shakespeare.read_text(encoding="utf-8")
    tracks = np.array(corpus.tokenizer.encode(text))[: 4 * 278_848].reshape(4, 278_848)
    train, val = corpus.splits["train"], corpus.splits["val"]
    assert corpus.tokenizer.vocab_size == 97 and corpus.about["tokens"] == 1_115_392
    assert (train.tokens.reshape(4, 250_963) == tracks[:, :250_963]).all()
    assert (val.tokens.reshape(4, -1) == tracks[:, 250_963:]).all()
    assert train.lanes == 4 and train.doc_ends.tolist() == [250_963 * i for i in (1, 2, 3, 4)]


@pytest.mark.tiny
def test_tracks_keep_the_document_ends_inside_them(stories):
    corpus = prepare(DataConfig(corpus=str(stories), split="track", val_fraction=0.25), lanes=3)
    for part in corpus.splits.values():
        lane = len(part.tokens) // 3
        ends = np.flatnonzero(part.tokens == corpus.tokenizer.eos) + 1
        expected = np.union1d(ends, lane * np.arange(1, 4))
        assert part.doc_ends.tolist() == expected.tolist()


def test_one_text_without_separators_is_cut_at_a_line(shakespeare):
    corpus = prepare(DataConfig(corpus=str(shakespeare)))
    assert "largest document" in corpus.about["split"]
    (train,), (val,) = documents(corpus, "train"), documents(corpus, "val")
    assert train + val == shakespeare.read_text(encoding="utf-8")
    assert train.endswith("\n") and abs(len(val) / 1_115_394 - 0.1) < 0.001


def test_the_layout_of_the_shared_data_is_honoured(shakespeare):
    stories = shakespeare.parent / "stories"
    corpus = prepare(DataConfig(corpus=str(stories)))
    assert "source names" in corpus.about["split"]
    with lzma.open(stories / "tinystories-val.txt.xz", "rt", encoding="utf-8", newline="") as file:
        held_out = file.read().split("\n<|endoftext|>\n")[:-1]
    assert documents(corpus, "val") == held_out
