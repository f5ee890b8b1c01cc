"""The built-in corpora: read as data, whole without some files, free of repetition."""

from __future__ import annotations

import re

import pytest

from groundthink.data import builtin
from groundthink.data.config import DataConfig
from groundthink.data.corpora import BUILTIN, prepare
from groundthink.errors import UserError

MODULE = '''"""A module about nothing in particular, described at some length for the test."""
raise RuntimeError("never run")

class Thing:
    """Things are described here.

    >>> Thing()
    output

    And after the example the prose goes on, which is what we keep of it all, in the end."""

    def act(self):
        """Acting is described as well, as it should be in any library worth its salt."""
        "no docstring"
'''


@pytest.fixture
def library(tmp_path):
    root = tmp_path / "lib"
    (root / "test").mkdir(parents=True)
    (root / "thing.py").write_text(MODULE)
    (root / "again.py").write_text(MODULE)
    (root / "broken.py").write_text("def (:\n")
    (root / "test" / "test_thing.py").write_text(MODULE)
    return root


@pytest.mark.tiny
def test_docstrings_without_examples_and_repetition(library):
    (document,) = builtin.docs(library).read()
    assert document.name == "again.py"
    assert document.text.startswith("A module about nothing")
    assert "Thing()" not in document.text and "output" not in document.text
    assert "the prose goes on" in document.text and "Acting is" in document.text


@pytest.mark.tiny
def test_help_topics_are_parsed_not_imported(library):
    (library / "pydoc_data").mkdir()
    topic = "The with statement is used to wrap a block with methods of a context manager. "
    content = f"topics = {{'with': {topic * 3!r}, 'long': {topic * 3 + chr(10) * 2 + topic * 9!r}}}"
    (library / "pydoc_data" / "topics.py").write_text(content)
    names = [document.name for document in builtin.docs(library).read()]
    assert names == ["topic long", "again.py"]  # the shorter topic is part of the longer one


@pytest.mark.tiny
def test_source_code_is_one_document_per_file(library):
    documents = list(builtin.code(library).read())
    assert [document.name for document in documents] == ["again.py", "broken.py", "thing.py"]
    assert documents[2].text == MODULE


@pytest.mark.tiny
def test_a_python_without_sources(tmp_path):
    with pytest.raises(UserError, match="no source files"):
        builtin.docs(tmp_path)


@pytest.mark.tiny
def test_descriptions():
    assert set(BUILTIN) == {"python-docs", "python-source"} and all(BUILTIN.values())


@pytest.fixture(scope="module")
def python_docs(tmp_path_factory):
    config = DataConfig(cache_dir=str(tmp_path_factory.mktemp("docs")))
    return config, prepare(config)


def test_the_default_corpus_is_a_useful_size(python_docs):
    _, corpus = python_docs
    assert corpus.about["bytes"] > 1_000_000 and corpus.about["documents"] > 300
    assert len(corpus.splits["train"].tokens) > 1_000_000
    share = len(corpus.splits["val"].tokens) / corpus.about["tokens"]
    assert abs(share - 0.1) < 0.01
    assert corpus.tokenizer.vocab_size < 256


def test_the_default_corpus_is_prose_without_leaks(python_docs):
    _, corpus = python_docs
    texts = {
        s: corpus.tokenizer.decode(packed.tokens.tolist()) for s, packed in corpus.splits.items()
    }
    words = re.findall(r"[a-z]+", texts["train"])
    assert words.count("the") / len(words) > 0.03
    paragraphs = {s: set(re.split(r"\n\n|<\|eos\|>", t)) for s, t in texts.items()}
    shared = paragraphs["train"] & paragraphs["val"]
    assert max(map(len, shared), default=0) < builtin.LABEL


def test_the_second_call_opens_what_the_first_made(python_docs):
    config, corpus = python_docs
    lines = []
    again = prepare(config, log=lines.append)
    assert again.digest == corpus.digest and "from " in lines[-1] and len(lines) == 1
