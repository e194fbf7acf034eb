"""Any length: windows on their grid, streams equal to the whole, excerpts, sliding GroupNorm, refusals."""

import dataclasses
import math
import re

import pytest
import torch
from fakes import randn
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_autoencoder import TEST, random_model

from lincae import streaming as windows
from lincae.machine import OutOfMemoryError, kernels
from lincae.network import Neighbourhood, Norm
from lincae.streaming import Tape, windowed

# short windows: the same paths as long ones in a fraction of the time
SHORT = dataclasses.replace(TEST, window_frames=24, context_frames=6, norm_frames=8)
HOP, STEP = SHORT.hop, SHORT.window_frames - 2 * SHORT.context_frames
MODELS = {pad: random_model(dataclasses.replace(SHORT, pad_edges=pad)) for pad in (False, True)}
sizes = st.lists(st.integers(1, 3000), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def model():
    return MODELS[True]


def db(windowed_signal: torch.Tensor, whole: torch.Tensor) -> float:
    """How far the difference lies below the signal."""
    return (10 * torch.log10(whole.square().sum() / (windowed_signal - whole).square().sum())).item()


@settings(max_examples=25, deadline=None)
@given(sizes, st.booleans())
def test_encode_stream_equals_encode(sizes, pad):
    audio = randn(2, sum(sizes))
    parts = list(MODELS[pad].encode_stream(audio.split(sizes, dim=1)))
    assert torch.equal(torch.cat(parts, dim=-1), MODELS[pad].encode(audio))
    assert all(part.shape[-1] > 0 for part in parts)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.booleans(), st.integers(0, 40), st.data())
def test_decode_stream_equals_decode(sizes, pad, first_frame, data):
    model, z = MODELS[pad], randn(1, 8, sum(sizes))
    assume(model.decoded_samples(sum(sizes)) > 0)
    length = data.draw(st.none() | st.integers(1, model.decoded_samples(sum(sizes))))
    parts = list(model.decode_stream(z.split(sizes, dim=-1), length, seed=3, first_frame=first_frame))
    whole = model.decode(z, length, seed=3, first_frame=first_frame)
    assert torch.equal(torch.cat(parts, dim=-1), whole)
    assert whole.shape[1] == (length or model.decoded_samples(sum(sizes)))
    assert all(part.shape[-1] > 0 for part in parts)


def test_several_steps_stream_too(model):
    z = randn(1, 8, 50)
    parts = list(model.decode_stream(z.split(7, dim=-1), steps=2))
    assert torch.equal(torch.cat(parts, dim=-1), model.decode(z, steps=2))
    assert model.decode(model.encode(randn(1, 1)), 1).shape == (1, 1)
    assert model.decode(randn(1, 8, 3), first_frame=10**9).shape == (1, model.decoded_samples(3))


def test_no_more_is_read_than_the_length_takes(model):
    taken = []

    def blocks():
        for index in range(1000):
            taken.append(index)
            yield randn(1, 8, 10, seed=index)

    assert sum(part.shape[1] for part in model.decode_stream(blocks(), length=40 * HOP)) == 40 * HOP
    assert len(taken) < 10


@pytest.mark.parametrize("block", [37, 5000])
def test_memory_does_not_grow_with_the_stream(model, monkeypatch, block):
    """Twelve hours would take too long here: the numbers held are counted, after 20 and after 200 windows."""
    room = []

    class Measured(Tape):
        def append(self, part):
            super().append(part)
            room.append(self.end - self.start)

    monkeypatch.setattr(windows, "Tape", Measured)
    monkeypatch.setattr(model.network.encoder, "forward", lambda s: s[:, 0, :8, ::2])
    n_blocks = 200 * STEP * HOP // 5000 if block == 5000 else 2000
    z = sum(part.shape[-1] for part in model.encode_stream(torch.zeros(1, block) for _ in range(n_blocks)))
    assert z == model.latent_frames(block * n_blocks)
    # two windows, one of them in a block
    assert max(room) <= 2 * model.config.window_frames * HOP + 256


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=20),
    st.integers(0, 200),
    st.sampled_from([(24, 6), (9, 4), (5, 0)]),
    st.sampled_from([(1, 0), (4, 3)]),
)
def test_windows_keep_every_frame_once(sizes, first, window, geometry):
    (size, context), (hop, overlap) = window, geometry
    end = first * hop + sum(sizes) + overlap
    stream = torch.arange(first * hop, end).expand(2, -1)
    blocks = stream.split([*sizes, overlap] if overlap else sizes, dim=1)
    kept, starts = [], []
    for start, data, keep in windowed(blocks, size, context, first, hop, overlap):
        assert torch.equal(data[0], torch.arange(start * hop, start * hop + data.shape[1]))
        assert data.shape[1] <= size * hop + overlap
        kept += range(start + keep.start, start + keep.stop)
        starts.append(start)
        assert keep.start >= context or start == first
    assert kept == list(range(first, first - (-sum(sizes) // hop)))
    assert all(start % (size - 2 * context) == 0 for start in starts[1:])


@pytest.mark.parametrize(("start", "stop"), [(24, 90), (31, 100), (5, 77)])
def test_an_excerpt_is_the_middle_of_the_whole(model, start, stop):
    """Bit for bit within the windows of the whole that it holds, close to it beyond the context."""
    z = randn(1, 8, 120)
    whole = model.decode(z, seed=5)[:, start * HOP :]
    part = model.decode(z[..., start:stop], seed=5, first_frame=start)
    size, context = SHORT.window_frames, SHORT.context_frames
    grid = [k for k in range(0, 120, STEP) if k > start and k + size < stop]
    first, last = (grid[0] + context - start) * HOP, (grid[-1] + size - context - start) * HOP
    edge = 3 * SHORT.transform.hop  # where windows overlap-add
    assert torch.equal(part[:, first : last - edge], whole[:, first : last - edge])
    inner = slice(context * HOP, (stop - start - context) * HOP)
    assert db(part[:, inner], whole[:, inner]) > 25
    elsewhere = model.decode(z[..., start:stop], seed=5)
    assert db(elsewhere[:, inner], whole[:, inner]) < 15  # other noise, another grid


def norm_over(latent_frames: int | None, channels: int, per_latent: int = 1) -> Norm:
    norm = Norm(channels, Neighbourhood(latent_frames, per_latent))
    with torch.no_grad():
        norm.weight.copy_(randn(channels, seed=1))
        norm.bias.copy_(randn(channels, seed=2))
    return norm


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 8, 5, 30), (1, 12, 30)])
def test_a_frame_is_normalised_with_the_frames_around_it(shape, order):
    x = 3 * randn(*shape) + 2
    if len(shape) == 4:
        x = x.contiguous(memory_format=order)
    n_frames, width = shape[-1], 9
    slid, whole = norm_over(width, shape[1])(x), norm_over(None, shape[1])
    assert slid.stride() == x.stride()
    for frame in range(n_frames):
        lower = min(max(frame - width // 2, 0), n_frames - width)
        of_these = whole(x[..., lower : lower + width])
        torch.testing.assert_close(slid[..., frame], of_these[..., frame - lower], rtol=1e-4, atol=1e-4)
    silu = torch.nn.functional.silu(slid)
    torch.testing.assert_close(norm_over(width, shape[1])(x, silu=True), silu)
    assert torch.equal(norm_over(n_frames, shape[1])(x), whole(x))  # short signals: the norm of all


def test_neighbourhoods_on_finer_grids():
    """As many latent frames on every grid; a last latent frame may lack some of its frames."""
    assert Neighbourhood(8, 4).width(64) == 32
    assert Neighbourhood(8, 4).width(33) == 8 * 33 // 9
    assert Neighbourhood(8, 4).width(32) is None
    assert Neighbourhood(None, 4).width(10**6) is None
    assert TEST.network.neighbourhood(0, 8).per_latent == TEST.network.time_factor
    assert TEST.network.neighbourhood(2, 8).per_latent == 1


def test_normalisation_after_a_loud_passage():
    """Running sums must not lose a quiet passage behind one 100 dB louder."""
    x = randn(1, 4, 8, 400)
    x[..., :200] *= 1e5
    norm = Norm(4, Neighbourhood(50))
    slid = norm(x)[..., 300:]
    assert abs(slid.std().item() - 1) < 0.02


def test_windows_agree_only_with_sliding_norms():
    """Every normalisation of the network goes through the sliding one: windows agree 20 dB better."""
    audio = 0.1 * randn(1, 300 * HOP) * torch.linspace(0.01, 1, 300 * HOP).square()  # level changes
    agreement = {}
    for norm_frames in (16, 10**6):
        settings = [{"window_frames": 1000}, {"window_frames": 80, "context_frames": 16}]
        configs = [dataclasses.replace(TEST, norm_frames=norm_frames, **s) for s in settings]
        whole, in_windows = (random_model(config).encode(audio) for config in configs)
        agreement[norm_frames] = db(in_windows, whole)
    assert agreement[16] > 35
    assert agreement[16] > agreement[10**6] + 15


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tiles_leave_the_result_as_it_is(monkeypatch, precision):
    """Large maps go through the finest layers a few rows at a time: the very numbers of whole maps."""
    network = dataclasses.replace(SHORT.network, odd=True, attention=(True, True, True))
    model = random_model(dataclasses.replace(SHORT, network=network))
    monkeypatch.setattr(model, "precision", precision)
    audio = randn(2, 40 * HOP)
    expected = model.encode(audio)
    decoded = model.decode(expected, steps=2)
    monkeypatch.setattr(kernels, "TILED_BYTES", 0)
    for rows_bytes in (1, 10**5):
        monkeypatch.setattr(kernels, "TILE_BYTES", rows_bytes)
        assert torch.equal(model.encode(audio), expected)
        assert torch.equal(model.decode(expected, steps=2), decoded)


def test_memory_chooses_windows_and_items():
    """Enough for all: the same bits. Less: items in turns. Too little for a window of one item: the result of
    a shorter window. Less still is refused, with what would do."""
    model = random_model(SHORT)
    audio = randn(3, 60 * HOP)
    whole, of_window = model.encode(audio), model.frame_bytes * SHORT.window_frames / 1e9
    decoded = model.decode(whole)
    for budget in (3.01 * of_window, math.inf, "free"):
        model.memory_gb = budget
        assert torch.equal(model.encode(audio), whole)
        assert torch.equal(model.decode(whole), decoded)

    model.memory_gb = 1.01 * of_window
    torch.testing.assert_close(model.encode(audio), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.decode(whole), decoded, rtol=0, atol=1e-4)

    model.memory_gb = 20.5 / SHORT.window_frames * of_window
    shorter = random_model(dataclasses.replace(SHORT, window_frames=20))
    torch.testing.assert_close(model.decode(whole), shorter.decode(whole), rtol=0, atol=1e-4)
    assert db(model.decode(whole), decoded) > 10

    for budget in (0.5 * of_window, 0, -1.0, math.nan):
        model.memory_gb = budget
        with pytest.raises(ValueError, match="memory_gb"):
            model.encode(audio)


def test_out_of_memory_names_a_window_that_fits(monkeypatch):
    model = random_model(SHORT)
    audio = randn(3, 60 * HOP)
    encoder = model.network.encoder
    forward = encoder.forward
    fits = 0.5 * SHORT.window_frames * model.config.network.time_factor  # half a window of one item

    def full(spectrogram):
        if len(spectrogram) * spectrogram.shape[-1] > fits:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to")
        return forward(spectrogram)

    monkeypatch.setattr(encoder, "forward", full)
    for message in (
        r"for 3 items in windows of 24 latent frames; 1 in windows of 24 take half.*memory_gb = (\S+)\. ",
        r"for 1 items in windows of 24 latent frames; 1 in windows of 12 take half.*memory_gb = (\S+)\. ",
    ):
        with pytest.raises(OutOfMemoryError, match=message) as refused:
            model.encode(audio)
        model.memory_gb = float(re.search(message, str(refused.value))[1])
    with pytest.raises(ValueError, match=r"memory_gb .* is too little"):  # three contexts of 6 frames
        model.encode(audio)


@pytest.mark.parametrize(
    ("stream", "blocks", "arguments", "message"),
    [
        ("encode", [], {}, "no blocks"),
        ("encode", [torch.zeros(1, 9), torch.zeros(1, 0)], {}, "block 1 is empty"),
        ("encode", [torch.zeros(1, 9), torch.zeros(2, 9)], {}, "block 1 has 2 items, the blocks before .* 1"),
        ("encode", [torch.zeros(1, 9), torch.full((1, 9), float("nan"))], {}, "block 1 are not finite"),
        ("decode", [], {}, "no blocks"),
        ("decode", [torch.zeros(1, 8, 2), torch.zeros(1, 9, 2)], {}, r"block 1 of toy must be \(B, 8, L\)"),
        (
            "decode",
            [torch.full((1, 8, 2), float("inf"))],
            {},
            "block 0 of toy are not finite, first at item 0",
        ),
        ("decode", [torch.zeros(1, 8, 4)], {"length": 10_000}, r"10000 samples were wanted, .* held \d+"),
    ],
)
def test_streams_refuse(model, stream, blocks, arguments, message):
    with pytest.raises(ValueError, match=message):
        list(getattr(model, f"{stream}_stream")(blocks, **arguments))
