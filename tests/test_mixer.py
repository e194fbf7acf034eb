import math

import pytest
import soundfile
import torch
from fakes import RATE, FakeTrack, Linear, NoisyDecoder, Placer

from lincae.data.audio import AudioFileError
from lincae.interop.references import TanhToy
from lincae.listening import mixer as mixing
from lincae.listening.mixer import Mixer, Strip, amplitudes, stem_files, stem_track
from lincae.machine import generator
from lincae.reencoder.module import stereo_modules

OFF = Strip(-math.inf)


@pytest.fixture
def stems():
    return FakeTrack(seconds=1.1).stems(RATE, 0, 1.1)


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


def test_pan_keeps_the_power():
    for position, left, right in ((-1.0, math.sqrt(2), 0.0), (0.5, 0.5411961, 1.306563)):
        factors = amplitudes([Strip(pan=position), Strip()])
        assert factors[:, 0].tolist() == pytest.approx([left, right], abs=1e-6)
        assert factors[:, 1].tolist() == [1.0, 1.0]
    off = Strip(pan=1.0, mute=True)
    assert len(amplitudes([off, Strip()])) == 1  # which needs no second channel


def test_latent_mix_is_the_hand_computation(stems):
    """On the exactly linear autoencoder, whatever the faders do."""
    strips = [Strip(-3.5, pan=-0.4), Strip(2.0, inverted=True), Strip(mute=True), OFF]
    angle = 0.6 * math.pi / 4
    sides = math.sqrt(2) * torch.tensor([[math.cos(angle)], [math.sin(angle)]])
    by_hand = 10 ** (-3.5 / 20) * sides * stems[0] - 10 ** (2.0 / 20) * stems[1]
    stems[3] = 0
    mixer = Mixer(Linear(), stems, "abcd")
    assert mixer.silent == ["d"]
    for mix in (mixer.latent_mix, mixer.waveform_mix, mixer.decoded_mix):
        torch.testing.assert_close(mix(strips), by_hand, atol=1e-6, rtol=0)


def test_one_fader_up_is_the_decoded_stem(stems):
    """Gains (1, 0, 0, 0), bit for bit, noise included."""
    model = NoisyDecoder()
    mixer = Mixer(model, stems, seed=5)
    alone = model.decode(model.encode(stems[:1]), length=stems.shape[1], seed=5)
    assert torch.equal(mixer.latent_mix([Strip(), OFF, OFF, OFF]), alone)
    assert torch.equal(mixer.decoded_stem(0), alone)


def test_a_mix_is_decoded_once(stems, monkeypatch):
    model = Linear()
    mixer = Mixer(model, stems)
    first = mixer.latent_mix([Strip()] * 4)
    assert (model.encoded, model.decoded) == (4, 1)
    mixer.latent_mix([Strip(-6)] * 4)
    assert torch.equal(mixer.latent_mix([Strip()] * 4), first)
    assert model.decoded == 2
    mixer.latent_mix([Strip(pan=1.0), *[Strip()] * 3])  # left and right
    assert (model.encoded, model.decoded) == (4, 4)

    monkeypatch.setattr(mixing, "MAX_CACHED", 4)
    mixer = Mixer(model, stems)
    mixes = [mixer.latent_mix([Strip(level_db)] * 4) for level_db in (0, -1, -2, -3, -4)]
    count = model.decoded
    assert torch.equal(mixer.latent_mix([Strip(-4)] * 4), mixes[4])
    assert model.decoded == count
    assert torch.equal(mixer.latent_mix([Strip(0)] * 4), mixes[0])  # forgotten: made again
    assert model.decoded == count + 1


def test_placed_stems_are_the_hand_computation(stems):
    """On the exactly linear autoencoder, with a module that is a known gain of its condition."""
    module = Placer(Linear())
    strips = [Strip(-6.0, image=3), Strip(pan=-0.4), Strip(inverted=True, image=5), Strip(image=3)]
    gains = [10 ** (-6.0 / 20), 0.0, -1.0, 1.0]
    left, right = math.sqrt(2) * math.cos(0.15 * math.pi), math.sqrt(2) * math.sin(0.15 * math.pi)
    by_hand = torch.tensor([[left], [right]]) * stems[1]
    for k, image in ((0, 3), (2, 5), (3, 3)):
        place = module.place(k, image)
        by_hand += gains[k] * torch.tensor([[1 + place], [1 - place]]) * stems[k]
    mixer = Mixer(Linear(), stems, module=module)
    torch.testing.assert_close(mixer.latent_mix(strips), by_hand, atol=1e-5, rtol=0)
    torch.testing.assert_close(mixer.decoded_mix(strips), by_hand, atol=1e-5, rtol=0)
    places = [module.place(k, image) for k in range(4) for image in (3, 5)]
    assert len(set(places)) == 8  # every stem of every image has its own


def test_a_placed_mix_is_two_decodes(stems):
    """Whatever is placed; the module runs once a stem and image, and what is off is not placed at all."""
    model, module = Linear(), Placer(Linear())
    mixer = Mixer(model, stems, module=module)
    first = mixer.latent_mix([Strip(image=2)] * 4)
    assert first.shape == (2, stems.shape[1])
    assert (model.encoded, model.decoded, module.runs) == (4, 2, 4)
    mixer.latent_mix([Strip(-6, image=2)] * 4)
    assert (model.encoded, model.decoded, module.runs) == (4, 4, 4)
    mixer.latent_mix([Strip(image=7), *[Strip(image=2)] * 3])
    assert (model.encoded, model.decoded, module.runs) == (4, 6, 5)
    assert torch.equal(mixer.latent_mix([Strip(image=2)] * 4), first)
    assert model.decoded == 6
    assert mixer.latent_mix([Strip(mute=True, image=9), *[Strip()] * 3]).shape[0] == 1
    assert mixer.decoded_mix([Strip(mute=True, image=9), *[Strip()] * 3]).shape[0] == 1
    assert module.runs == 5


def test_another_module_places_anew(stems, monkeypatch):
    monkeypatch.setattr(mixing, "MAX_CACHED", 1)  # less than one mix needs: it is made again, not lost
    mixer = Mixer(Linear(), stems, module=Placer(Linear()))
    strips = [Strip(image=2)] * 4
    first = mixer.latent_mix(strips)
    torch.testing.assert_close(first, mixer.decoded_mix(strips), atol=1e-5, rtol=0)
    mixer.place_by(Placer(Linear(), width=0.0))
    torch.testing.assert_close(mixer.latent_mix(strips), mixer.waveform_mix(strips), atol=1e-5, rtol=0)
    assert (mixer.latent_mix(strips) - first).abs().max() > 0.01


def test_modules_belong_to_the_model_whose_latents_they_know(tmp_path):
    """Not to one whose name ends alike, as the hub's "lin-cae" does with "desk/lin-cae"."""
    ours = NoisyDecoder()
    for path, model in (
        ("noisy/stereo-left_right", ours),
        ("deeper/down/stereo-mid_side", ours),
        ("stft/stereo-left_right", Linear()),
        ("other/noisy/stereo-left_right", Linear()),
    ):
        Placer(model).save(tmp_path / f"{path}.safetensors")
    found = {name: path.parent.name for name, path in stereo_modules(ours, tmp_path).items()}
    assert found == {"mid_side": "down", "left_right": "noisy"}
    assert stereo_modules(NoisyDecoder(), tmp_path / "nothing") == {}

    (tmp_path / "noisy" / "stereo-left_right.safetensors").write_bytes(b"no weights")
    assert "left_right" in stereo_modules(ours, tmp_path), "choosing it says what is wrong"
    impostor = TanhToy()
    impostor.name = "lin-cae"
    assert stereo_modules(impostor) == {}


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda stems: Strip(math.nan), "gain_db .* nan"),
        (lambda stems: Strip(pan=1.5), r"pan .* 1\.5"),
        (lambda stems: Strip(image=-1), "image must be 0 or more"),
        (lambda stems: Strip(pan=0.5, image=1), "not panned"),
        (lambda stems: Mixer(Linear(), torch.ones(9, 100)), "at most 8 strips, got 9"),
        (lambda stems: Mixer(Linear(), stems).latent_mix([Strip(), Strip()]), "each of 4 stems, got 2"),
        (lambda stems: Mixer(Linear(), torch.tensor([[0.0, math.nan]])), "stems"),
        (lambda stems: Mixer(Linear(), stems).latent_mix([Strip(image=4), *[Strip()] * 3]), "'stem 1' .* 4"),
        (lambda stems: Mixer(NoisyDecoder(), stems, module=Placer(Linear())), "stft .* noisy"),
        (lambda stems: Mixer(Linear(), stems, module=Placer(Linear(), task="bandwidth")), "'bandwidth'"),
    ],
)
def test_what_cannot_be_is_named(stems, call, named):
    with pytest.raises(ValueError, match=named):
        call(stems)


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
        "b.flac has 2 channels: heard as mono, their mean",
        "b.flac lasts 0.50 s: silence to 1.00 s",
    ]
    stems = track.stems(44100)
    assert stems.shape == (2, 44100)
    assert stems[1, :22050].any()
    assert not stems[1, 22050:].any()
    torch.testing.assert_close(track.stems(44100, 0.25, 0.5), stems[:, 11025:33075])


def test_folders_of_stems(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing: no such folder or audio file"):
        stem_files(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="holds no file"):
        stem_files(tmp_path)
    (tmp_path / "notes.wav").write_text("not audio at all")
    with pytest.raises(AudioFileError, match=r"notes\.wav: cannot be read as audio"):
        stem_track([tmp_path / "notes.wav"], "mine")
    (tmp_path / "notes.wav").unlink()
    for name in ("mixture.wav", "vocals.wav", "bass.wav"):
        written(tmp_path, name, 0.1, 8000)
    assert [path.name for path in stem_files(tmp_path)] == ["bass.wav", "vocals.wav"]
    assert stem_files(tmp_path / "bass.wav") == [tmp_path / "bass.wav"]
    for number in range(9):
        written(tmp_path, f"{number}.wav", 0.1, 8000)
    with pytest.raises(ValueError, match="a desk takes 1 to 8 stems, got 11 audio files"):
        stem_files(tmp_path)
