"""Generation continues a text exactly, and sampling does what its settings say."""

from __future__ import annotations

import pytest
import torch
from toys import randomized, small

from groundthink import build
from groundthink.errors import UserError
from groundthink.models.config import Sampling
from groundthink.models.generate import Session, draw, generate, stream_text


@pytest.fixture(params=["gf", "rwkv6", "mamba2", "gpt2"])
def model(request):
    return randomized(build(small(request.param))).eval()


def start(*tokens: int) -> Session:
    session = Session()
    session.extend(tokens)
    return session


def test_greedy_steps_equal_the_argmax_of_full_passes(model):
    drawn = list(generate(model, start(3, 1, 4), 12, Sampling(temperature=0)))
    text = [3, 1, 4]
    for token in drawn:
        assert token == int(model(torch.tensor([text]))[0][0, -1].argmax())
        text.append(token)


def test_a_saved_session_continues_the_text_exactly(model, tmp_path):
    sampling = Sampling(temperature=1.3, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=5)
    whole = list(generate(model, start(3, 1, 4), 24, sampling))
    session = start(3, 1, 4)
    first = list(generate(model, session, 10, sampling))
    session.save(tmp_path / "s")
    rest = list(generate(model, Session.load(tmp_path / "s", model), 14, sampling))
    assert first + rest == whole


def test_the_state_does_not_grow_with_the_text():
    model = build(small("gf"))
    session = start(1)
    sizes = [session.state.nbytes() for _ in generate(model, session, 20, Sampling())]
    assert len(set(sizes)) == 1


def test_the_seed_decides_the_text(model):
    texts = [list(generate(model, start(1), 16, Sampling(seed=s))) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_generation_ends_after_the_stop_token(model):
    whole = list(generate(model, start(1), 16, Sampling()))
    stopped = list(generate(model, start(1), 16, Sampling(), stop=whole[4]))
    assert stopped == whole[: whole.index(whole[4]) + 1]


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"temperature": 0.0}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.6}, {0}),
        ({"top_p": 0.7}, {0, 1}),
        ({"top_p": 1.0}, {0, 1, 2, 3}),
    ],
)
def test_what_top_k_and_top_p_keep(settings, allowed):
    logits = torch.tensor([0.64, 0.2, 0.1, 0.06]).log()
    seen = set()
    for position in range(300):
        session = Session(pending=[0], recent=[0], position=position)
        seen.add(draw(logits.clone(), session, Sampling(**{"temperature": 1.0} | settings)))
    assert seen == allowed


def test_the_repetition_penalty_weakens_seen_tokens():
    logits = torch.tensor([2.0, 1.5, -1.0])
    session = Session(pending=[0], recent=[0], position=1)
    greedy = Sampling(temperature=0, repetition_penalty=2.0)
    assert draw(logits.clone(), session, greedy) == 1


def test_characters_that_span_tokens_are_held_back():
    from groundthink.data.tokenizers import ByteTokenizer

    tokenizer = ByteTokenizer()
    text = "naïve — 日本"
    pieces = list(stream_text(tokenizer, iter(tokenizer.encode(text))))
    assert "".join(pieces) == text and all("\ufffd" not in piece for piece in pieces)


def test_bad_requests(model, tmp_path):
    with pytest.raises(UserError, match="prompt is empty"):
        next(generate(model, Session(), 3, Sampling()))
    with pytest.raises(UserError, match="temperature"):
        next(generate(model, start(1), 3, Sampling(temperature=-1)))
    model.init_state(1).save(tmp_path / "bare")
    with pytest.raises(UserError, match="no generation session"):
        Session.load(tmp_path / "bare", model)
