"""Audio block by block: the same as at once, whatever the rate, the length and the format."""

import resource
import signal

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lincae.data import audio as audio_room
from lincae.data import streams
from lincae.data.audio import AudioFileError, read_audio, write_blocks
from lincae.data.streams import decode_blocks, encode_file, read_blocks
from tests.fakes import RATE, Linear, Streams


def noise(n_samples, channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (n_samples, channels)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(
    n_samples=st.integers(1, 3000),
    rates=st.sampled_from([(8000, RATE), (192000, RATE), (44100, RATE), (RATE, RATE), (22050, 44100)]),
    channels=st.sampled_from(["mean", "all"]),
    block_s=st.sampled_from([0.003, 0.05, 10.0]),
)
def test_blocks_are_the_file(tmp_path_factory, n_samples, rates, channels, block_s):
    path = tmp_path_factory.mktemp("file") / "a.wav"
    soundfile.write(path, noise(n_samples, 2), rates[0], "FLOAT")
    blocks = list(read_blocks(path, rates[1], channels, block_s))
    expected, _ = read_audio(path, rates[1], channels=channels)
    joined = torch.cat(blocks, 1)
    assert joined.shape == torch.atleast_2d(expected).shape
    torch.testing.assert_close(joined, torch.atleast_2d(expected), atol=1e-6, rtol=0)


def test_a_fault_within_a_file_is_named_when_it_is_reached(tmp_path):
    samples = noise(RATE)[:, 0]
    samples[9000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, RATE, "FLOAT")
    blocks = read_blocks(tmp_path / "nan.wav", block_s=0.5)
    assert next(blocks).shape == (1, 8000)
    with pytest.raises(AudioFileError, match=r"nan\.wav: 1 non-finite samples, first at frame 9000"):
        next(blocks)
    with pytest.raises(AudioFileError, match=r"absent\.wav: no such audio file"):
        encode_file(Linear(), tmp_path / "absent.wav")


def test_a_file_that_ends_early_is_an_error(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", noise(RATE), RATE)
    monkeypatch.setattr(soundfile.SoundFile, "frames", property(lambda self: RATE + 5))
    with pytest.raises(AudioFileError, match=r"a\.wav: truncated, 16000 of 16005 frames"):
        list(read_blocks(tmp_path / "a.wav"))


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_written_blocks_are_read_back(tmp_path, suffix):
    audio = torch.from_numpy(noise(5000, 2).T.copy())
    write_blocks(tmp_path / "sub" / f"a.{suffix}", audio.split(700, 1), RATE)
    read, rate = read_audio(tmp_path / "sub" / f"a.{suffix}", channels="all")
    assert rate == RATE
    torch.testing.assert_close(read, audio, atol=0 if suffix == "wav" else 2**-23, rtol=0)
    loud = [audio, 3 * audio]
    if suffix == "flac":
        with pytest.raises(ValueError, match=r"a\.flac: peak 1\.\d+ would be clipped"):
            write_blocks(tmp_path / "sub" / "a.flac", loud, RATE)
        assert torch.equal(read_audio(tmp_path / "sub" / "a.flac", channels="all")[0], read)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == [f"a.{suffix}"]
    for blocks, said in (([], "nothing to write"), ([audio, audio / 0], "are not finite")):
        with pytest.raises(ValueError, match=rf"b\.{suffix}.*{said}"):
            write_blocks(tmp_path / f"b.{suffix}", blocks, RATE)
    assert len(list(tmp_path.iterdir())) == 1


def test_long_files_are_rf64(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_room, "WAV_BYTES", 100)
    write_blocks(tmp_path / "a.wav", [torch.ones(1, 50)], RATE, n_samples=50)
    assert (tmp_path / "a.wav").read_bytes()[:4] == b"RF64"
    assert torch.equal(read_audio(tmp_path / "a.wav")[0], torch.ones(50))


def test_a_full_disk_is_said(tmp_path):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot be written, is the disk full"):
            write_blocks(tmp_path / "a.wav", [torch.zeros(1, 16000)] * 10, 16000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_file_is_encoded_and_decoded_block_by_block(tmp_path, monkeypatch):
    """A model with streams is never given more than a block; the others are given all."""
    soundfile.write(tmp_path / "a.wav", noise(5 * RATE, 2), RATE, "FLOAT")
    audio, _ = read_audio(tmp_path / "a.wav", channels="all")
    streaming, whole = Streams(), Linear()
    monkeypatch.setattr(streams.read_blocks, "__defaults__", (None, "mean", 0.2))
    latents = {}
    for model in (streaming, whole):
        n_samples, parts = encode_file(model, tmp_path / "a.wav", "all")
        assert n_samples == audio.shape[1]
        latents[model] = torch.cat(list(parts), -1)
        decoded = list(decode_blocks(model, latents[model].split(9, -1), n_samples))
        torch.testing.assert_close(torch.cat(decoded, 1), audio, atol=1e-5, rtol=0)
    assert streaming.longest == 0.2 * RATE
    assert streaming.encoded == 0  # items encoded at once
    torch.testing.assert_close(latents[streaming], latents[whole])
