"""Hugging Face datasets: names, rows to documents, and clear errors without package or network."""

from __future__ import annotations

import sys

import pytest

from groundthink.data import hub
from groundthink.data.config import DataConfig
from groundthink.data.corpora import open_source
from groundthink.errors import UserError


@pytest.mark.tiny
def test_names():
    for name in ("roneneldan/TinyStories", "wikitext:wikitext-103-raw-v1", "a/b:c"):
        assert hub.is_name(name)
    for name in ("python-doc", "a/b/c", "a b/c", "a/", ""):
        assert not hub.is_name(name)


@pytest.mark.tiny
def test_rows_are_documents_and_lines_of_articles_are_joined():
    assert list(hub.documents(["One.", "Two.\nMore."])) == ["One.", "Two.\nMore.", ""]
    wikitext = [
        " = A = \n",
        " Text. \n",
        " = = Part = = \n",
        " More. \n",
        " = B b = \n",
        " End. \n",
    ]
    first, second = list(hub.documents(wikitext))
    assert first == "".join(wikitext[:4]) and second == "".join(wikitext[4:])


@pytest.mark.tiny
def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    source = open_source(DataConfig(corpus="roneneldan/TinyStories"))
    with pytest.raises(UserError, match=r"no file or folder.*pip install 'groundthink\[data\]'"):
        next(source.read())


def test_a_dataset_with_its_own_splits(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text('{"text": "One.", "id": 1}\n{"text": "Two."}\n')
    monkeypatch.chdir(tmp_path)
    documents = list(hub.source("owner/name", "text").read())
    assert [d.text for d in documents if d.text] == ["One.", "Two."] * 2
    assert [d.split for d in documents if d.text] == ["train", "train", "val", "val"]
    with pytest.raises(UserError, match=r"no text column 'id'.*it has: text"):
        list(hub.source("owner/name", "id").read())


def test_offline(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot load the Hugging Face dataset nobody/nothing"):
        next(hub.source("nobody/nothing", "text").read())
