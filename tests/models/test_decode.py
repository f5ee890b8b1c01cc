"""A decoder says what the model says, from any state, whatever holds that state."""

from __future__ import annotations

import pytest
import torch
from toys import randomized, small

from groundthink import build
from groundthink.errors import UserError
from groundthink.models.decode import Decoder
from groundthink.models.recording import Recording
from groundthink.ops import ssd, wkv6
from groundthink.ops.fused import overwriting

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
every = pytest.mark.parametrize("variant", ["gf", "hgf", "ws", "cp", "rwkv6", "mamba2", "gpt2"])


def make(variant: str, device: str = "cpu"):
    return randomized(build(small(variant), device="cpu")).to(device).eval()


def texts(steps: int, batch: int = 3, device: str = "cpu", vocab: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocab, (batch, steps), generator=generator).to(device)


def same(state, other) -> bool:
    pairs = zip(state.items(), other.items(), strict=True)
    return all(name == twin and torch.equal(a, b) for (name, a), (twin, b) in pairs)


@pytest.mark.tiny
@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_those_of_the_model_to_the_last_bit(variant, dtype):
    check_steps(make(variant).to(dtype), texts(9), 4)


def check_steps(model, tokens, prompt):
    """A decoder against the model, after a prompt."""
    decoder = Decoder(model, len(tokens))
    with torch.inference_mode():
        logits, state = model(tokens[:, :prompt])
        assert torch.equal(decoder.read(tokens[:, :prompt]), logits[:, -1])
        for t in range(prompt, tokens.shape[1]):
            logits, state = model(tokens[:, t : t + 1], state)
            assert torch.equal(decoder.step(tokens[:, t]), logits[:, 0])
    assert same(decoder.state, state)


@every
def test_what_was_read_at_once_or_in_steps_is_the_full_pass(variant):
    model, tokens = make(variant).double(), texts(12)
    whole = model(tokens)[0]
    decoder = Decoder(model, 3)
    torch.testing.assert_close(decoder.read(tokens[:, :5]), whole[:, 4])
    for t in range(5, 12):
        torch.testing.assert_close(decoder.step(tokens[:, t]), whole[:, t])


def test_a_long_prompt_is_read_in_pieces(monkeypatch):
    model, tokens = make("gf").double(), texts(11)
    monkeypatch.setattr("groundthink.models.decode.PREFILL", 4)
    torch.testing.assert_close(Decoder(model, 3).read(tokens), model(tokens)[0][:, -1])


def check_a_taken_state(model, tokens, end):
    """Loaded states continue their texts, and neither decoder writes into what it gave or took."""
    decoder, other = Decoder(model, 3), Decoder(model, 3)
    decoder.read(tokens[:, :4])
    state = decoder.state
    kept = state.clone()
    first = [decoder.step(tokens[:, t]) for t in range(4, end)]
    assert same(state, kept)
    other.step(tokens[:, 0])
    other.load(state)
    again = [other.step(tokens[:, t]) for t in range(4, end)]
    third = Decoder(model, 3, state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(third.step(tokens[:, 4]), first[0])
    assert same(state, kept) and same(decoder.state, other.state)


@every
def test_a_taken_state_continues_its_text_and_stays_as_it_is(variant):
    check_a_taken_state(make(variant), texts(8), 8)


def test_new_values_of_the_weights_count():
    model, tokens = make("gf"), texts(3)
    decoder = Decoder(model, 3)
    decoder.step(tokens[:, 0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    state = decoder.state
    with torch.inference_mode():
        assert torch.equal(decoder.step(tokens[:, 1]), model(tokens[:, 1:2], state)[0][:, 0])


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
def test_kernels_that_are_no_operators_of_torch_are_recorded_too():
    config = small("rwkv6", n_layers=1, ffn="none")
    model = randomized(build(config, backend="triton", device=DEVICE))
    tokens = texts(3, 1, DEVICE)
    decoder = Decoder(model, 1)
    state = model.init_state(1)
    for t in range(3):
        with torch.inference_mode():
            logits, state = model(tokens[:, t : t + 1], state)
        assert torch.equal(decoder.step(tokens[:, t]), logits[:, 0])


def test_a_recording_computes_with_the_present_values():
    x, total = torch.arange(6.0).view(2, 3), torch.zeros(2)
    with Recording() as recording:
        rows = x.t().contiguous() * 2  # a view of a fresh copy, and a product
        y = torch.cat((rows[1:].t(), x.sum(1, keepdim=True)), 1).softmax(1)
        total += y[:, 0]
    before = y.clone()
    x.add_(torch.tensor([[1.0, 0, 3], [2, 5, 4]]))
    recording.replay()
    expected = torch.cat((2 * x[:, 1:], x.sum(1, keepdim=True)), 1).softmax(1)
    assert torch.equal(y, expected) and torch.equal(total, before[:, 0] + y[:, 0])


def test_code_that_looks_at_values_is_not_recorded():
    with pytest.raises(RuntimeError, match="reads values"), Recording():
        torch.ones(3).sum().item()


def test_a_decoder_trains_nothing_and_its_state_can_be_trained_from():
    model, tokens = make("gf"), texts(4)
    decoder = Decoder(model, 3)
    assert not decoder.step(tokens[:, 0]).requires_grad
    model(tokens, decoder.state)[0].sum().backward()


def test_a_state_of_another_batch_is_refused():
    model = make("gf")
    with pytest.raises(UserError, match="does not fit"):
        Decoder(model, 2, model.init_state(3))
    with pytest.raises(UserError, match="does not fit"):
        Decoder(model, 2).load(make("rwkv6").init_state(2))


@pytest.mark.usefixtures("interpreter")
def test_steps_over_their_own_state_compute_the_same():
    r, k, v, w, u = *(torch.randn(2, 1, 3, 16) for _ in range(4)), torch.randn(3, 16)
    x, dt, B = torch.randn(2, 1, 4, 24), torch.rand(2, 1, 4), torch.randn(2, 1, 2, 16)
    for op, state, args in (
        (wkv6, torch.randn(2, 3, 16, 16), (r, k, v, -w.abs(), u)),
        (ssd, torch.randn(2, 4, 24, 16), (x, dt, -torch.rand(4), B, B, torch.rand(4))),
    ):
        state, *args = (tensor.to(DEVICE) for tensor in (state, *args))
        y, last = op(*args, state.clone(), backend="triton")
        with overwriting(), torch.no_grad():
            again, here = op(*args, state, backend="triton")
        assert here.data_ptr() == state.data_ptr()
        assert torch.equal(y, again) and torch.equal(last, state)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_recorded_step_of_a_preset_is_that_of_the_model(batch):
    check_steps(build("gf-mh-tiny").eval(), texts(6, batch), 3)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["gf-mh-tiny", "gf-mh-5m", "rwkv6-tiny", "mamba2-tiny"])
def test_a_graph_computes_what_eager_steps_compute(name, batch):
    check_steps(build(name, device="cuda").eval(), texts(40, batch, "cuda", 97), 20)


@pytest.mark.gpu
@every
def test_a_taken_state_continues_its_text_on_a_gpu(variant):
    check_a_taken_state(make(variant, "cuda"), texts(8, device="cuda"), 8)


@pytest.mark.gpu
def test_a_step_runs_the_step_kernels_and_waits_for_nothing():
    from torch.profiler import ProfilerActivity, profile

    model, tokens = build("gf-mh-tiny", device="cuda").eval(), texts(4, 2, "cuda")
    decoder = Decoder(model, 2)
    decoder.step(tokens[:, 0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            decoder.step(tokens[:, 1])
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    names = [event.name for event in seen.events()]
    layers = model.config.n_layers
    assert sum("step_kernel" in name for name in names) == layers
    assert sum(name == "_step" for name in names) == layers


@pytest.mark.gpu
def test_a_token_takes_as_long_at_any_position():
    model = build("gf-mh-tiny", device="cuda").eval()
    decoder, token = Decoder(model, 1), texts(1, 1, "cuda")[:, 0]

    def seconds(steps: int = 200) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(steps):
            decoder.step(token)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    decoder.step(token)
    early = min(seconds() for _ in range(5))
    for _ in range(20_000):
        decoder.step(token)
    late = min(seconds() for _ in range(5))
    assert abs(late / early - 1) < 0.2
