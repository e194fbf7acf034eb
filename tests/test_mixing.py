import math

import pytest
import soundfile
import torch
from fakes import RATE, FakeTrack, Linear, LouderWhenLoud, NoisyDecoder

from lincae import mixing
from lincae.audio import AudioFileError, generator
from lincae.mixing import Mixer, Strip, amplitudes, stem_files, stem_track

OFF = Strip(-math.inf)


@pytest.fixture
def stems():
    return FakeTrack(seconds=1.1).stems(RATE, 0, 1.1)


# ---------------------------------------------------------------- what faders mean


@pytest.mark.parametrize(
    ("strips", "expected"),
    [
        ([Strip(), Strip(-6.0205999)], [1.0, 0.5]),
        ([Strip(20.0), OFF], [10.0, 0.0]),
        ([Strip(mute=True), Strip()], [0.0, 1.0]),
        ([Strip(solo=True), Strip()], [1.0, 0.0]),
        ([Strip(solo=True), Strip(solo=True)], [1.0, 1.0]),
        ([Strip(solo=True, mute=True), Strip()], [0.0, 0.0]),
        ([Strip(inverted=True), Strip()], [-1.0, 1.0]),
    ],
)
def test_amplitudes(strips, expected):
    factors = amplitudes(strips)
    assert factors.shape == (1, 2)
    assert factors[0].tolist() == pytest.approx(expected, abs=1e-7)
    assert amplitudes(strips, -20.0)[0].tolist() == pytest.approx([x / 10 for x in expected], abs=1e-7)


@pytest.mark.parametrize(
    ("position", "left", "right"),
    [(-1.0, math.sqrt(2), 0.0), (1.0, 0.0, math.sqrt(2)), (0.5, 0.5411961, 1.3065630)],
)
def test_pan_keeps_the_power(position, left, right):
    factors = amplitudes([Strip(pan=position), Strip()])
    assert factors[:, 0].tolist() == pytest.approx([left, right], abs=1e-6)
    assert factors[:, 1].tolist() == [1.0, 1.0]
    assert factors[:, 0].square().sum().item() == pytest.approx(2)


def test_a_stem_that_is_off_needs_no_second_channel():
    assert len(amplitudes([Strip(pan=1.0, mute=True), Strip()])) == 1


# ---------------------------------------------------------------- the linear reference


def test_latent_mix_is_the_hand_computation(stems):
    """On the exactly linear autoencoder, whatever the faders do."""
    strips = [Strip(-3.5, pan=-0.4), Strip(2.0, inverted=True), Strip(mute=True), OFF]
    gains = [10 ** (-3.5 / 20), -(10 ** (2.0 / 20))]
    angle = 0.6 * math.pi / 4
    by_hand = torch.stack(
        [
            math.sqrt(2) * side(angle) * gains[0] * stems[0] + gains[1] * stems[1]
            for side in (math.cos, math.sin)
        ]
    )
    mixer = Mixer(Linear(), stems)
    torch.testing.assert_close(mixer.latent_mix(strips), by_hand, atol=1e-6, rtol=0)
    torch.testing.assert_close(mixer.waveform_mix(strips), by_hand, atol=1e-6, rtol=0)
    torch.testing.assert_close(mixer.decoded_mix(strips), by_hand, atol=1e-6, rtol=0)


def test_one_fader_up_is_the_decoded_stem(stems):
    """Gains (1, 0, 0, 0), bit for bit, noise included."""
    model = NoisyDecoder()
    mixer = Mixer(model, stems, seed=5)
    alone = model.decode(model.encode(stems[:1]), length=stems.shape[1], seed=5)
    assert torch.equal(mixer.latent_mix([Strip(), OFF, OFF, OFF]), alone)
    assert torch.equal(mixer.decoded_stem(0), alone)


def test_a_mix_is_decoded_once(stems):
    model = Linear()
    mixer = Mixer(model, stems)
    first = mixer.latent_mix([Strip()] * 4)
    assert (model.encoded, model.decoded) == (4, 1)
    mixer.latent_mix([Strip(-6)] * 4)
    assert torch.equal(mixer.latent_mix([Strip()] * 4), first)
    assert model.decoded == 2
    mixer.latent_mix([Strip(pan=1.0), *[Strip()] * 3])  # left and right
    assert (model.encoded, model.decoded) == (4, 4)


def test_old_mixes_are_forgotten(stems, monkeypatch):
    monkeypatch.setattr(mixing, "MAX_CACHED", 2)
    model = Linear()
    mixer = Mixer(model, stems)
    for level_db in (0, -1, -2, 0):
        mixer.latent_mix([Strip(level_db)] * 4)
    assert model.decoded == 4
    mixer.latent_mix([Strip(-2)] * 4)
    assert model.decoded == 4


def test_effective_gain(stems):
    mixer = Mixer(Linear(), stems)
    for strip, gain in ((Strip(-6.0), 10 ** (-6 / 20)), (Strip(3.0, inverted=True), -(10 ** (3 / 20)))):
        strips = [Strip(), strip, Strip(), Strip()]
        assert mixer.effective_gain(strips, 1) == pytest.approx(gain, abs=1e-5)
    louder = Mixer(LouderWhenLoud(decoder_error=0.5, threshold=0.15), 0.5 * stems)
    both_loud = [Strip(20.0), Strip(20.0), OFF, OFF]  # with and without the stem above the threshold
    assert louder.effective_gain(both_loud, 0) == pytest.approx(15.0, rel=0.02)


# ---------------------------------------------------------------- bad input


def test_more_than_eight_stems():
    with pytest.raises(ValueError, match="at most 8 strips, got 9"):
        Mixer(Linear(), torch.ones(9, 100))


def test_bad_strips(stems):
    with pytest.raises(ValueError, match=r"gain_db must be a number of dB or -inf, got nan"):
        Strip(math.nan)
    with pytest.raises(ValueError, match="got inf"):
        Strip(math.inf)
    with pytest.raises(ValueError, match=r"pan must lie between -1 \(left\) and 1 \(right\), got 1.5"):
        Strip(pan=1.5)
    with pytest.raises(ValueError, match="a strip for each of 4 stems, got 2"):
        Mixer(Linear(), stems).latent_mix([Strip(), Strip()])
    with pytest.raises(ValueError, match="a name for each of 4 stems"):
        Mixer(Linear(), stems, ["one"])
    with pytest.raises(ValueError, match="stems has 1 non-finite samples"):
        Mixer(Linear(), torch.tensor([[0.0, math.nan]]))


def test_silent_stems(stems):
    stems[2] = 0
    mixer = Mixer(Linear(), stems, "abcd")
    assert mixer.silent == ["c"]
    assert torch.isfinite(mixer.latent_mix([Strip()] * 4)).all()
    assert not Mixer(Linear(), torch.zeros(2, 5000)).latent_mix([Strip()] * 2).any()
    assert math.isnan(mixer.effective_gain([Strip()] * 4, 2))


def written(folder, name, seconds, rate, channels=1):
    noise = 0.1 * torch.randn(round(seconds * rate), channels, generator=generator(3))
    soundfile.write(folder / name, noise.numpy(), rate)
    return folder / name


def test_stems_of_different_rates_and_lengths(tmp_path):
    files = [written(tmp_path, "a.wav", 1.0, 16000), written(tmp_path, "b.flac", 0.5, 44100, channels=2)]
    track, notes = stem_track(files, "mine")
    assert (track.sample_rate, track.stem_names, track.duration_s) == (44100, ("a", "b"), 1.0)
    assert notes == [
        "a.wav has 16000 Hz: resampled to 44100 Hz",
        "b.flac lasts 0.50 s: silence to 1.00 s",
    ]
    stems = track.stems(44100)
    assert stems.shape == (2, 44100)
    assert stems[1, :22050].any()
    assert not stems[1, 22050:].any()
    torch.testing.assert_close(track.stems(44100, 0.25, 0.5), stems[:, 11025:33075])


def test_files_that_are_no_audio(tmp_path):
    (tmp_path / "notes.wav").write_text("not audio at all")
    with pytest.raises(AudioFileError, match=r"notes\.wav: cannot be read as audio"):
        stem_track([written(tmp_path, "a.wav", 1.0, 16000), tmp_path / "notes.wav"], "mine")


def test_folders_of_stems(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder or audio file"):
        stem_files(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="holds no file"):
        stem_files(tmp_path)
    for name in ("mixture.wav", "vocals.wav", "bass.wav"):
        written(tmp_path, name, 0.1, 8000)
    assert [path.name for path in stem_files(tmp_path)] == ["bass.wav", "vocals.wav"]
    assert stem_files(tmp_path / "bass.wav") == [tmp_path / "bass.wav"]
    for number in range(9):
        written(tmp_path, f"{number}.wav", 0.1, 8000)
    with pytest.raises(ValueError, match="a desk takes 1 to 8 stems, got 11 audio files"):
        stem_files(tmp_path)
