"""Pairs of latents: what is encoded, crash and resume, crops, and what is refused."""

import pytest
import torch

from lincae.data.audio import write_audio
from lincae.interop.references import StftAutoencoder, TanhToy
from lincae.latents import store
from lincae.latents.store import LatentFileError
from lincae.reencoder import pairs as latent_pairs
from lincae.reencoder.pairs import (
    LatentPairs,
    Source,
    band_limited,
    folder_sources,
    synthetic_sources,
    track_sources,
    write_pairs,
)
from tests.fakes import FakeTrack

RATE = 8000


def model():
    return StftAutoencoder(RATE, hop=8)


def noise(channels=1, seconds=0.5, seed=0):
    return 0.1 * torch.randn(channels, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def sources(channels=1, count=3):
    return [Source(f"item {i}", lambda rate, i=i: noise(channels, seed=i)) for i in range(count)]


def quietly(*args, **kwargs):
    return LatentPairs(write_pairs(*args, **kwargs, progress=False))


@pytest.mark.parametrize("factor", [2, 4])
def test_band_limited_keeps_the_low_band_alone(factor):
    audio = noise(seconds=2.0)
    low = band_limited(audio, RATE, factor)
    assert low.shape == audio.shape
    limit_hz = RATE / (2 * factor)
    spectra = [torch.fft.rfft(x) for x in (low * torch.hann_window(low.shape[1]), low, audio)]
    frequency_hz = torch.fft.rfftfreq(audio.shape[1], 1 / RATE)
    power = spectra.pop(0).abs().square()
    assert power[:, frequency_hz > 1.1 * limit_hz].sum() < 1e-6 * power.sum()
    below = frequency_hz < 0.85 * limit_hz
    inner = [spectrum[:, below] for spectrum in spectra]
    assert ((inner[0] - inner[1]).norm() / inner[1].norm()).item() < 0.05


@pytest.mark.parametrize("task", ["bandwidth", "stereo"])
def test_synthetic_and_track_sources(task):
    song = synthetic_sources(task, "test", n_songs=1)[0]
    audio = song.read(RATE)
    assert (song.name, len(audio)) == ("test_000", 2 if task == "stereo" else 1)
    assert audio.any()
    part = track_sources(task, [FakeTrack(sample_rate=RATE, seconds=2.0)], seconds=0.5)[0].read(RATE)
    assert part.shape == (len(audio), RATE // 2)


def test_folder_sources_cut_long_files(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_pairs, "SEGMENT_S", 0.25)
    write_audio(tmp_path / "a.wav", noise(2), RATE)
    found = folder_sources("stereo", [tmp_path])
    assert [source.name for source in found] == [f"{tmp_path.name}/a.wav@{i}" for i in range(2)]
    torch.testing.assert_close(torch.cat([source.read(RATE) for source in found], 1), noise(2))
    mono = folder_sources("bandwidth", [tmp_path])[0].read(RATE)
    torch.testing.assert_close(mono, noise(2)[:, : RATE // 4].mean(0, keepdim=True))


def test_pairs_are_what_the_model_makes_and_crops_a_pure_function_of_seed_and_index(tmp_path):
    pairs = quietly(model(), sources(), tmp_path / "pairs", "bandwidth", 4)
    assert (pairs.task, pairs.factor, pairs.channels) == ("bandwidth", 4, 34)
    assert pairs.names == ["item 0", "item 1", "item 2"]
    expected = model().encode(band_limited(noise(seed=1), RATE, 4))
    torch.testing.assert_close(pairs.inputs.frames("item 1"), expected)
    torch.testing.assert_close(pairs.targets.frames("item 1"), model().encode(noise(seed=1)))

    z_in, z_target = pairs.crops(range(4), 30, seed=1)
    assert z_in.shape == z_target.shape == (4, 34, 30)
    again = pairs.crops([2], 30, seed=1)
    torch.testing.assert_close(again[0][0], z_in[2])
    torch.testing.assert_close(again[1][0], z_target[2])
    assert not torch.equal(pairs.crops([2], 30, seed=2)[0], again[0])
    assert pairs.latent_std(30, 0) == pytest.approx(pairs.crops(range(64), 30, 0)[1].std().item())


def test_stereo_crops_keep_the_mean_and_are_exchanged_half_of_the_time(tmp_path):
    pairs = quietly(model(), sources(2, count=1), tmp_path / "pairs", "stereo")
    z_in, z_target = pairs.crops(range(40), 500, seed=0)
    assert z_in.shape == (40, 34, 500)
    assert z_target.shape == (40, 2, 34, 500)
    torch.testing.assert_close(z_target.mean(1), z_in, rtol=1e-4, atol=1e-5)  # this encoder is linear
    whole = pairs.targets.frames("item 0")
    # the left channel of a crop is found in one of the two
    left = [any((part - z[0]).abs().max() < 1e-6 for part in whole[0].unfold(1, 500, 1).transpose(0, 1))
            for z in z_target]  # fmt: skip
    assert 10 <= sum(left) <= 30


def test_a_killed_writing_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_FILES", 2)
    counting, made = model(), []
    encode = counting.encode
    counting.encode = lambda audio: made.append(1) or encode(audio)

    class Killed(Exception):
        pass

    def killed(rate):
        raise Killed

    broken = [*sources(count=3), Source("item 3", killed)]
    with pytest.raises(Killed):
        write_pairs(counting, broken, tmp_path / "pairs", "bandwidth", progress=False)
    assert len(made) == 6
    pairs = quietly(counting, sources(count=4), tmp_path / "pairs", "bandwidth")
    assert len(made) == 8
    assert len(pairs.names) == 4
    torch.testing.assert_close(pairs.targets.frames("item 2"), encode(noise(seed=2)))
    quietly(counting, sources(count=4), tmp_path / "pairs", "bandwidth")
    assert len(made) == 8


def test_a_folder_has_the_pairs_of_one_list_of_sources(tmp_path):
    """More songs than before would be left out, fewer would not be all that is trained on."""
    folder = write_pairs(model(), sources(count=3), tmp_path / "pairs", "bandwidth", progress=False)
    for count in (2, 4):
        with pytest.raises(ValueError, match=rf"has pairs of sources 3 \(.*, not {count} \("):
            write_pairs(model(), sources(count=count), folder, "bandwidth", progress=False)
    write_audio(tmp_path / "in" / "a.wav", noise(), RATE)
    folder = tmp_path / "of a folder"
    write_pairs(model(), folder_sources("bandwidth", [tmp_path / "in"]), folder, "bandwidth", progress=False)
    write_audio(tmp_path / "in" / "a.wav", noise(seed=1), RATE)
    with pytest.raises(ValueError, match=r"has pairs of sources 1 \(.*, not 1 \("):
        write_pairs(model(), folder_sources("bandwidth", [tmp_path / "in"]), folder, "bandwidth")


def test_what_cannot_be_written_or_read(tmp_path):
    write_audio(tmp_path / "mono" / "mono.wav", noise(), RATE)
    folder = write_pairs(model(), sources(), tmp_path / "pairs", "bandwidth", progress=False)
    for parent in ("a", "b"):
        write_audio(tmp_path / parent / "train" / "song.wav", noise(), RATE)
    named_alike = [tmp_path / "a" / "train", tmp_path / "b" / "train"]
    mono = folder_sources("stereo", [tmp_path / "mono"])

    def write(task, found, out, made_by=None, factor=2):
        return write_pairs(made_by or model(), found, out, task, factor, progress=False)

    for call, error, words in (
        (lambda: write("stereo", mono, tmp_path / "new"), ValueError, r"mono\.wav: .*got \(1, 4000\)"),
        (lambda: write("bandwidth", sources(), folder, TanhToy(RATE)), LatentFileError, "another model"),
        (lambda: write("bandwidth", sources(), folder, factor=4), ValueError, "factor 2, not 4"),
        (lambda: LatentPairs(tmp_path / "nothing"), FileNotFoundError, "nothing holds no pairs"),
        (lambda: LatentPairs(folder).crops([0], 9999, 0), ValueError, "9999 .* the longest has 503"),
        (lambda: folder_sources("bandwidth", named_alike), ValueError, r"\['train', 'train'\]"),
        (lambda: synthetic_sources("denoising"), ValueError, "task must be one of .*'denoising'"),
        (lambda: band_limited(noise(), RATE, 3), ValueError, "divide 8000 Hz, got 3"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_halves_that_do_not_belong_together(tmp_path):
    folder = write_pairs(model(), sources(), tmp_path / "pairs", "bandwidth", progress=False)
    other = write_pairs(model(), sources(count=2), tmp_path / "other", "bandwidth", progress=False)
    (folder / "input").rename(tmp_path / "aside")
    (other / "input").rename(folder / "input")
    with pytest.raises(LatentFileError, match=r"1 items lack their other half: \['item 2'\]"):
        LatentPairs(folder)
