"""The desk without a page: what its widgets ask of the mixer, and what it says when something is wrong."""

import asyncio
import io
import math
import threading

import numpy as np
import pytest
import soundfile
import torch
from fakes import RATE, FakeTrack, Linear, NoisyDecoder, Placer

from lincae.listening import desk as listening
from lincae.listening.desk import Desk
from lincae.listening.loudness import amplitude, loudness_lufs
from lincae.listening.mixer import Mixer, Strip
from lincae.reencoder.module import ReEncoder


def desk(models=None, tracks=None, **kwargs) -> Desk:
    return Desk(models or [Linear()], tracks or [FakeTrack("one", 2.0)], seconds=1.5, device="cpu", **kwargs)


def heard(desk: Desk, key: str) -> torch.Tensor:
    """What the player was given, (channels, T), before the gain of equal loudness."""
    sound = desk.player.sounds[key]
    return torch.from_numpy(np.frombuffer(sound["samples"], "<f4").copy()).reshape(sound["channels"], -1)


def test_what_the_player_gets():
    at_work = desk([NoisyDecoder()])
    stems = FakeTrack("one", 2.0).stems(RATE, 0, 1.5)
    mixer = Mixer(NoisyDecoder(), stems)
    for strips in ([Strip()] * 4, [Strip(-6), Strip(mute=True), Strip(), Strip(pan=0.5, inverted=True)]):
        for channel, strip in zip(at_work.strips, strips, strict=True):
            channel.fader.value, channel.pan.value = strip.gain_db, strip.pan
            channel.mute.value, channel.invert.value = strip.mute, strip.inverted
        assert torch.equal(heard(at_work, "latent"), mixer.latent_mix(strips))
        assert torch.equal(heard(at_work, "waveform"), mixer.waveform_mix(strips))
        assert torch.equal(heard(at_work, "decoded"), mixer.decoded_mix(strips))
    assert at_work.player.sample_rate == RATE


def test_equal_loudness():
    at_work = desk([NoisyDecoder()])
    mixes = {key: (heard(at_work, key), at_work.player.sounds[key]["gain"]) for key in at_work.player.sounds}
    loudness = [loudness_lufs(gain * audio, RATE) for audio, gain in mixes.values()]
    assert loudness == pytest.approx([loudness[0]] * 3, abs=1e-6)
    assert mixes["latent"][1] == 1.0
    at_work.equal_loudness.value = False
    assert {sound["gain"] for sound in at_work.player.sounds.values()} == {1.0}


def test_master_and_typed_levels():
    at_work = desk()
    unity = heard(at_work, "latent")
    at_work.master.text.value = "-20 dB"
    assert at_work.master.fader.value == -20
    torch.testing.assert_close(heard(at_work, "latent"), 0.1 * unity, atol=1e-6, rtol=0)
    for text, level_db in (("−6.5", -6.5), ("-inf", -math.inf), ("99", 12.0), ("loud", 12.0)):
        at_work.strips[0].text.value = text
        assert at_work.strips[0].gain_db == level_db
    assert at_work.strips[0].text.value == "12.0"
    at_work.reset.click()
    assert torch.equal(heard(at_work, "latent"), unity)


def test_a_fader_is_not_set_back_by_its_own_number():
    """Pages send -3.000000000000007: setting -3.0 there would undo the keys that were pressed since."""
    at_work = desk()
    at_work.strips[0].fader.value = -3.000000000000007
    assert at_work.strips[0].text.value == "−3.0"
    assert at_work.strips[0].fader.value == -3.000000000000007


def test_meters_are_after_the_fader():
    at_work = desk(tracks=[FakeTrack(levels=(0.1, 0.1, 0.1, 0.0))])
    meter = at_work.strips[0].meter
    assert meter.level_db == pytest.approx(-20, abs=0.2)
    at_work.strips[0].fader.value = -6
    assert meter.level_db == pytest.approx(-26, abs=0.2)
    assert np.mean(meter.envelope_db) == pytest.approx(-26, abs=0.3)
    assert at_work.strips[3].meter.level_db < -200
    assert "vocals is silent here" in at_work.status.value


def test_a_range_of_the_track():
    at_work = desk()
    at_work.range.value = (0.5, 1.0)
    expected = FakeTrack("one", 2.0).stems(RATE, 0.5, 0.5).sum(0, keepdim=True)
    torch.testing.assert_close(heard(at_work, "waveform"), expected, atol=1e-6, rtol=0)
    long = desk(tracks=[FakeTrack("long", 40.0, stem_names=("a",), levels=(0.1,))])
    long.range.value = (0, 40.0)
    assert heard(long, "latent").shape[1] == 30 * RATE
    assert "the first 30 s of the range" in long.status.value


def test_another_track_has_its_own_strips():
    other = FakeTrack("two", 1.0, stem_names=("a", "b"), levels=(0.1, 0.1), seed=4)
    at_work = desk(tracks=[FakeTrack("one", 2.0), other])
    at_work.track_choice.value = 1
    assert [channel.name for channel in at_work.strips] == ["a", "b"]
    torch.testing.assert_close(
        heard(at_work, "latent"), other.stems(RATE, 0, 1.0).sum(0, keepdim=True), atol=1e-6, rtol=0
    )


def test_what_was_decoded_before_is_not_decoded_again():
    model = Linear()
    at_work = desk([model])
    count = model.decoded
    at_work.strips[0].fader.value = -6
    assert model.decoded == count + 1
    at_work.range.value = (0.5, 1.5)
    count = model.decoded
    at_work.range.value = (0, 1.5)
    at_work.strips[0].fader.value = 0
    assert model.decoded == count


def test_level_beyond_full_scale_is_kept_and_shown():
    at_work = desk(tracks=[FakeTrack(levels=(0.5, 0.5, 0.5, 0.5))])
    at_work.master.fader.value = 12
    assert heard(at_work, "latent").abs().max() > 2
    assert at_work.numbers.value.count('class="lc-over"') == 3


# ---------------------------------------------------------------- stems placed by a module


@pytest.fixture
def modules(tmp_path):
    """A folder with a module of the model "noisy", and for "stft" one that was trained with another."""
    (tmp_path / "noisy").mkdir()
    (tmp_path / "stft").mkdir()
    for folder in ("noisy", "stft"):
        Placer(NoisyDecoder()).save(tmp_path / folder / "stereo-left_right.safetensors")
    return tmp_path


def shown(widget) -> bool:
    return widget.layout.display != "none"


def test_stereo_is_offered_where_the_model_has_a_module(modules, tmp_path):
    at_work = desk([NoisyDecoder(), Linear()], modules=modules / "nothing")
    assert not shown(at_work.stereo)
    at_work = desk([NoisyDecoder(), Linear()], modules=modules)
    assert shown(at_work.stereo)
    assert not shown(at_work.stereo.image)
    assert at_work.stereo.choice.options == (("pan", "pan"), ("Re-Encoder left_right", "left_right"))
    at_work.stereo.choice.value = "left_right"
    assert shown(at_work.stereo.image)
    at_work.model_choice.value = "stft"
    assert not shown(at_work.stereo)
    assert at_work.stereo.module is None
    assert not at_work.strips[0].pan.disabled


def test_a_module_places_the_stems(modules):
    """What is heard is the mixer's, with the image on every strip; pan has no part in it, and waits."""
    model = NoisyDecoder()
    at_work = desk([model], modules=modules)
    at_work.strips[1].pan.value = 0.5
    panned = heard(at_work, "latent")
    module = ReEncoder.load(modules / "noisy" / "stereo-left_right.safetensors")
    mixer = Mixer(NoisyDecoder(), FakeTrack("one", 2.0).stems(RATE, 0, 1.5), module=module)
    at_work.stereo.choice.value = "left_right"
    for image in (0, 4):
        at_work.stereo.image.value = image
        count = model.decoded
        at_work.strips[0].fader.value = -6 - image
        assert model.decoded == count + 2
        strips = [Strip(-6 - image, image=image), *[Strip(image=image)] * 3]
        assert torch.equal(heard(at_work, "latent"), mixer.latent_mix(strips))
        assert torch.equal(heard(at_work, "decoded"), mixer.decoded_mix(strips))
    assert at_work.strips[1].pan.disabled
    assert "the waveform mix stays in the centre" in at_work.status.value
    at_work.strips[0].fader.value = 0
    at_work.stereo.choice.value = "pan"
    assert torch.equal(heard(at_work, "latent"), panned)
    assert not at_work.strips[1].pan.disabled
    at_work.stereo.choice.value = "left_right"
    at_work.reset.click()
    assert (at_work.stereo.module, at_work.stereo.image.value) == (None, 0)


def test_a_module_of_another_model_is_not_offered(modules):
    """Whatever its folder is called: the hub's "lin-cae" has not the latents of "desk/lin-cae"."""
    assert desk([Linear()], modules=modules).stereo.choice.options == (("pan", "pan"),)


def test_a_module_that_cannot_be_read(modules):
    (modules / "stft" / "stereo-left_right.safetensors").write_bytes(b"no weights")
    at_work = desk([Linear()], modules=modules)
    before = heard(at_work, "latent")
    at_work.stereo.choice.value = "left_right"
    assert "stereo-left_right.safetensors" in at_work.status.value
    assert 'class="lc-error"' in at_work.status.value
    assert at_work.stereo.module is None
    assert torch.equal(heard(at_work, "latent"), before)
    at_work.strips[0].fader.value = -60  # still alive
    assert not torch.equal(heard(at_work, "latent"), before)


def test_a_failing_model_leaves_the_stereo_as_it_was(modules):
    at_work = desk([NoisyDecoder(), "no-such-model"], modules=modules)
    at_work.stereo.choice.value = "left_right"
    before = heard(at_work, "latent")
    at_work.model_choice.value = "no-such-model"
    assert "unknown model" in at_work.status.value
    assert (at_work.model_choice.value, at_work.stereo.module) == ("noisy", "left_right")
    assert torch.equal(heard(at_work, "latent"), before)


# ---------------------------------------------------------------- in an event loop


class Slow(Linear):
    """Decodes when told to, and says what it was asked for."""

    name = "slow"

    def __init__(self):
        super().__init__()
        self.go, self.levels = threading.Event(), []

    def decode(self, z, length=None, seed=0):
        audio = super().decode(z, length, seed)
        self.levels.append(audio.square().mean().sqrt().item())
        assert self.go.wait(20)
        return audio


def test_moves_while_decoding_are_answered_once():
    """The desk takes every move at once; of those made during a decode only the last is decoded."""
    model = Slow()

    async def scene():
        at_work = desk([model], [FakeTrack("one", 2.0, stem_names=("a",), levels=(0.1,))])
        while not model.levels:
            await asyncio.sleep(0.01)
        for level_db in range(-1, -11, -1):
            at_work.strips[0].fader.value = level_db
            await asyncio.sleep(0.01)
        assert at_work.strips[0].text.value == "−10.0"
        assert at_work.progress.layout.visibility == "visible"
        model.go.set()
        while at_work.progress.layout.visibility != "hidden":
            await asyncio.sleep(0.01)
        return at_work

    at_work = asyncio.run(scene())
    first, after = model.levels[0], model.levels[1]
    assert after / first == pytest.approx(amplitude(-10), rel=1e-3)
    assert at_work.progress.layout.visibility == "hidden"
    assert heard(at_work, "latent").square().mean().sqrt() == pytest.approx(after, rel=1e-3)


# ---------------------------------------------------------------- bad input


def upload(desk: Desk, *files: tuple[str, bytes], piece: int = 30_000) -> None:
    """What the page does with files: piece by piece, each an own message."""
    for index, (name, content) in enumerate(files):
        for at in range(0, max(1, len(content)), piece):
            desk.upload.receive({"file": index, "name": name, "at": at}, [content[at : at + piece]])
    desk.upload.receive({"files": len(files)})


def wav(seconds=1.0, rate=RATE, level=0.1, channels=1):
    t = np.arange(round(seconds * rate)) / rate
    tone = level * np.sin(2 * np.pi * 440 * t)
    file = io.BytesIO()
    soundfile.write(file, np.stack([tone] * channels, 1), rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_stems_of_ones_own(tmp_path):
    at_work = desk()
    upload(at_work, ("a.wav", wav(1.0, channels=2)), ("b.wav", wav(0.5, 8000)))
    assert [channel.name for channel in at_work.strips] == ["a", "b"]
    for note in (
        "a.wav has 2 channels: heard as mono, their mean",
        "b.wav has 8000 Hz: resampled to 16000 Hz",
        "b.wav lasts 0.50 s: silence to 1.00 s",
    ):
        assert note in at_work.status.value
    assert heard(at_work, "latent").shape[1] == RATE

    (tmp_path / "drums.wav").write_bytes(wav(0.7))
    at_work.path.value = str(tmp_path)
    at_work.open_button.click()
    assert [channel.name for channel in at_work.strips] == ["drums"]
    assert at_work.track.name == tmp_path.name
    assert "a.wav" not in at_work.status.value
    at_work.track_choice.value = 1
    assert "a.wav has 2 channels" in at_work.status.value, "notes belong to their track"


def test_an_upload_is_whole_whatever_its_size():
    """More than the 10 MB that servers take in one message; and files of one name are two files."""
    at_work = desk()
    first, second = wav(60.0, level=0.2, channels=4), wav(60.0, level=0.1)
    assert len(first) > 15e6
    upload(at_work, ("song.wav", first), ("song.wav", second), piece=2**20)
    assert [round(channel.meter.level_db) for channel in at_work.strips] == [-17, -23]
    assert at_work.range.max == 60.0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("song.wav", b"this is text")], "song.wav: cannot be read as audio"),
        ([("empty.wav", wav(0))], "empty.wav: holds no samples"),
        ([(f"{k}.wav", wav(0.1)) for k in range(9)], "upload: a desk takes 1 to 8 stems, got 9"),
    ],
)
def test_uploads_that_cannot_be_used(files, message):
    at_work = desk()
    before = heard(at_work, "latent")
    upload(at_work, *files)
    assert f">{message}" in at_work.status.value  # the name of the file, not of its temporary copy
    assert 'class="lc-error"' in at_work.status.value
    assert at_work.track.name == "one"
    at_work.strips[0].fader.value = -60  # still alive
    assert not torch.equal(heard(at_work, "latent"), before)


def test_a_path_that_does_not_exist():
    at_work = desk()
    at_work.load_stems("/nowhere/at/all")
    assert "/nowhere/at/all: no such folder or audio file" in at_work.status.value
    assert heard(at_work, "latent").any()


def test_a_model_that_fails_to_load(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    at_work = desk([Linear(), str(tmp_path), "no-such-model"])
    for name, message in ((str(tmp_path), "model.safetensors"), ("no-such-model", "unknown model")):
        at_work.model_choice.value = name
        assert message in at_work.status.value
        assert at_work.model_choice.value == "stft"
    at_work.strips[0].mute.value = True
    expected = FakeTrack("one", 2.0).stems(RATE, 0, 1.5)[1:].sum(0, keepdim=True)
    torch.testing.assert_close(heard(at_work, "latent"), expected, atol=1e-6, rtol=0)


def test_a_decoder_that_fails():
    class Failing(Linear):
        name = "failing"

        def decode(self, z, length=None, seed=0):
            raise RuntimeError("out of memory, say")

    at_work = desk([Linear(), Failing()])
    at_work.model_choice.value = "failing"
    assert "out of memory, say" in at_work.status.value
    at_work.model_choice.value = "stft"
    assert "error" not in at_work.status.value


def test_silence_has_no_signal_to_noise_ratio():
    at_work = desk(tracks=[FakeTrack(levels=(0.0, 0.0, 0.0, 0.0))])
    assert "undefined" in at_work.numbers.value
    assert at_work.player.sounds["waveform"]["gain"] == 1.0
    assert "drums is silent here" in at_work.status.value


def test_a_desk_needs_a_model_and_a_track():
    with pytest.raises(ValueError, match="a desk needs a model and a track, got 0 and 1"):
        Desk([], [FakeTrack()])


def test_kept_mixers_are_limited(monkeypatch):
    monkeypatch.setattr(listening, "MAX_MIXERS", 1)
    model = Linear()
    at_work = desk([model])
    encoded = model.encoded
    at_work.range.value = (0.5, 1.5)
    at_work.range.value = (0, 1.5)
    assert model.encoded == encoded + 8
