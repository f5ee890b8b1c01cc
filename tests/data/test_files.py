"""Reading text files: forms, separators, splits by name, and one clear line for bad ones."""

from __future__ import annotations

import gzip
import json
import lzma
import sys

import pytest

from groundthink.data import files
from groundthink.data.config import DataConfig
from groundthink.data.corpora import open_source, prepare
from groundthink.errors import UserError

TEXT = "One.\nMore.\n<|endoftext|>\nTwo é.\n<|endoftext|>\n"


def read(spec, separator="<|endoftext|>", field="text"):
    return [tuple(document) for document in files.source(str(spec), separator, field).read()]


def texts(spec, **options):
    return [text for _, text, _ in read(spec, **options)]


def compress(suffix: str, data: bytes) -> bytes:
    if suffix == ".zst":
        return pytest.importorskip("zstandard").compress(data)
    return {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix](data)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_every_compression_gives_the_same_documents(tmp_path, suffix):
    for name, data in (("a.txt", TEXT), ("b.jsonl", json.dumps({"text": "Three."}) + "\n\n")):
        (tmp_path / (name + suffix)).write_bytes(compress(suffix, data.encode()))
    assert texts(tmp_path) == ["One.\nMore.", "Two é.", "", "Three."]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_damaged_compressed_file_is_named(tmp_path, suffix):
    whole = compress(suffix, TEXT.encode() * 50)
    path = tmp_path / f"damaged.txt{suffix}"
    for data in (whole[:-6], b"not compressed"):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"cannot read .*damaged\.txt"):
            texts(path)


def test_zst_of_several_frames(tmp_path):
    frames = [compress(".zst", part.encode()) for part in ("One", " two", " three")]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    assert texts(tmp_path) == ["One two three"]


def test_zst_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.txt.zst").write_bytes(b"")
    with pytest.raises(UserError, match="pip install zstandard"):
        texts(tmp_path)


@pytest.mark.tiny
def test_separator_and_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfA\r\n\r\nB\r\n---\r\nC ---\nD")
    assert texts(path, separator="---") == ["A\n\nB", "C ---\nD"]
    assert texts(path, separator="") == ["A\n\nB\n---\nC ---\nD"]
    assert texts(path) == ["A\n\nB\n---\nC ---\nD"]


@pytest.mark.tiny
def test_folders_globs_and_single_files(tmp_path):
    names = ["b.md", "sub/a.txt", "ignored.py", ".hidden/c.txt", "odd.text"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["b.md", "sub/a.txt"]
    assert texts(tmp_path / "*.text") == ["odd.text"]
    assert texts(tmp_path / "**/a.*") == ["sub/a.txt"]
    assert texts(tmp_path / "odd.text") == ["odd.text"]


@pytest.mark.tiny
@pytest.mark.parametrize(
    "name, split",
    [
        ("train-00.txt.xz", "train"),
        ("sgd-val.txt", "val"),
        ("wikitext-2-raw.valid.txt", "val"),
        ("validation/a.txt", "val"),
        ("dev.jsonl", "val"),
        ("Test_2.md", "test"),
        ("training.txt", "train"),
        ("trains.txt", ""),
        ("contest.txt", ""),
        ("devotion.txt", ""),
    ],
)
def test_names_of_splits(name, split):
    assert files.split_of(name) == split


@pytest.mark.tiny
def test_identity_follows_the_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = files.source(str(path), "", "text").identity
    assert files.source(str(path), "", "text").identity == first
    path.write_text("other")
    assert files.source(str(path), "", "text").identity != first


BAD = {
    "a.txt": (b"abc\nde\0f", r"a\.txt is binary.*byte 6"),
    "b.txt": (b"abc\nd\xffe", r"b\.txt is not UTF-8 text \(byte 5\)"),
    "c.jsonl": (b'{"text": "x"}\nnope\n', r"c\.jsonl: line 2 is not JSON"),
    "d.jsonl": (b'{"body": "x", "id": 1}\n', r"d\.jsonl: line 1 .*'text'.*body, id.*text_field"),
    "e.jsonl": (b"[1]\n", r"e\.jsonl: line 1 has no text"),
    "f.txt": (b"", r"f\.txt is empty"),
    "g.txt": (b"  \n\n", r"g\.txt is empty"),
}


@pytest.mark.tiny
@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_clear_line(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        prepare(DataConfig(corpus=str(tmp_path / name)))
    assert "\n" not in str(error.value)


@pytest.mark.tiny
def test_names_that_lead_nowhere(tmp_path):
    (tmp_path / "empty").mkdir()
    cases = {
        str(tmp_path / "empty"): r"holds no text files \(\.txt",
        str(tmp_path / "*.none"): "no file matches",
        str(tmp_path / "gone"): "there is no file or folder",
        "gone.txt": "there is no file or folder gone.txt",
        "pyhton-docs": r"did you mean python-docs",
        "": "unknown corpus",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            open_source(DataConfig(corpus=name))


def test_half_a_character_in_json_does_not_stop_the_reading(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}')
    assert texts(tmp_path) == ["a?b"]
