"""The desk without a page: what it computes for what is moved, and what it says when something is wrong."""

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


def move(desk: Desk, index: int, **settings) -> None:
    """What the page does when a strip is moved."""
    strips = [dict(strip) for strip in desk.strips]
    strips[index] |= settings
    desk.strips = strips


def heard(desk: Desk, key: str) -> torch.Tensor:
    """What the page was given, (channels, T), before the gain of equal loudness."""
    sound = desk.sounds[key]
    return torch.from_numpy(np.frombuffer(sound["samples"], "<f4").copy()).reshape(sound["channels"], -1)


def notes(desk: Desk) -> str:
    return "\n".join(desk.status["notes"])


def test_what_the_page_gets():
    at_work = desk([NoisyDecoder()])
    mixer = Mixer(NoisyDecoder(), FakeTrack("one", 2.0).stems(RATE, 0, 1.5))
    moved = [Strip(-6), Strip(mute=True), Strip(-math.inf), Strip(pan=0.5, inverted=True)]
    for strips, master_db in (([Strip()] * 4, 0.0), (moved, 0.0), (moved, -20.0)):
        at_work.master_db = master_db
        for index, strip in enumerate(strips):
            gain_db = strip.gain_db if math.isfinite(strip.gain_db) else None
            move(at_work, index, gain_db=gain_db, pan=strip.pan, mute=strip.mute, inverted=strip.inverted)
        for key in ("latent", "waveform", "decoded"):
            expected = getattr(mixer, f"{key}_mix")(strips, master_db)
            assert torch.equal(heard(at_work, key), expected)
    assert at_work.sample_rate == RATE


def test_equal_loudness():
    at_work = desk([NoisyDecoder()])
    loudness = [
        loudness_lufs(sound["gain"] * heard(at_work, key), RATE) for key, sound in at_work.sounds.items()
    ]
    assert loudness == pytest.approx([loudness[0]] * 3, abs=1e-6)
    assert at_work.sounds["latent"]["gain"] == 1.0
    at_work.equal_loudness = False
    assert {sound["gain"] for sound in at_work.sounds.values()} == {1.0}


def test_meters_are_after_the_fader():
    at_work = desk(tracks=[FakeTrack(levels=(0.1, 0.1, 0.1, 0.0))])
    assert at_work.levels[0]["level_db"] == pytest.approx(-20, abs=0.2)
    move(at_work, 0, gain_db=-6)
    assert at_work.levels[0]["level_db"] == pytest.approx(-26, abs=0.2)
    assert np.mean(at_work.levels[0]["envelope_db"]) == pytest.approx(-26, abs=0.3)
    assert at_work.levels[3]["level_db"] < -200
    assert len(at_work.levels) == 5  # the master is the last
    assert "vocals is silent here" in notes(at_work)


def test_another_range_or_track_has_its_own_sound_and_strips():
    other = FakeTrack("two", 1.0, stem_names=("a", "b"), levels=(0.1, 0.1), seed=4)
    at_work = desk(tracks=[FakeTrack("one", 2.0), other])
    at_work.range_s = [0.5, 1.0]
    expected = FakeTrack("one", 2.0).stems(RATE, 0.5, 0.5).sum(0, keepdim=True)
    torch.testing.assert_close(heard(at_work, "waveform"), expected, atol=1e-6, rtol=0)
    at_work.track = 1
    assert at_work.names == ["a", "b"]
    expected = other.stems(RATE, 0, 1.0).sum(0, keepdim=True)
    torch.testing.assert_close(heard(at_work, "latent"), expected, atol=1e-6, rtol=0)
    long = desk(tracks=[FakeTrack("long", 40.0, stem_names=("a",), levels=(0.1,))])
    long.range_s = [0, 40.0]
    assert heard(long, "latent").shape[1] == 30 * RATE
    assert "the first 30 s of the range" in notes(long)


def test_what_was_decoded_before_is_not_decoded_again(monkeypatch):
    model = Linear()
    at_work = desk([model])
    count = model.decoded
    move(at_work, 0, gain_db=-6)
    assert model.decoded == count + 1
    at_work.range_s = [0.5, 1.5]
    count = model.decoded
    at_work.range_s = [0, 1.5]
    move(at_work, 0, gain_db=0)
    assert model.decoded == count

    monkeypatch.setattr(listening, "MAX_MIXERS", 1)
    at_work.range_s = [0.5, 1.0]
    encoded = model.encoded
    at_work.range_s = [0, 1.5]  # what is kept is limited
    assert model.encoded == encoded + 4


def test_levels_beyond_full_scale_are_kept_and_silence_has_none():
    at_work = desk(tracks=[FakeTrack(levels=(0.5, 0.5, 0.5, 0.5))])
    at_work.master_db = 12
    assert heard(at_work, "latent").abs().max() > 2
    assert all(sound["peak_dbtp"] > 0 for sound in at_work.sounds.values())

    silent = desk(tracks=[FakeTrack(levels=(0.0, 0.0, 0.0, 0.0))])
    assert silent.sounds["waveform"]["snr_db"] is None
    assert silent.sounds["waveform"]["lufs"] < -200
    assert silent.sounds["waveform"]["gain"] == 1.0
    assert "drums is silent here" in notes(silent)


@pytest.fixture
def modules(tmp_path):
    """A folder with a module of the model "noisy", and for "stft" one that was trained with another."""
    for folder in ("noisy", "stft"):
        (tmp_path / folder).mkdir()
        Placer(NoisyDecoder()).save(tmp_path / folder / "stereo-left_right.safetensors")
    return tmp_path


def test_a_module_places_the_stems(modules):
    """What is heard is the mixer's, with the image on every strip; pan has no part in it, and waits. Offered
    where the model has a module, whatever its folder is called."""
    model = NoisyDecoder()
    assert desk([NoisyDecoder()], modules=modules / "nothing").modules == []
    at_work = desk([model, Linear()], modules=modules)
    assert at_work.modules == ["left_right"]
    move(at_work, 1, pan=0.5)
    panned = heard(at_work, "latent")
    module = ReEncoder.load(modules / "noisy" / "stereo-left_right.safetensors")
    mixer = Mixer(NoisyDecoder(), FakeTrack("one", 2.0).stems(RATE, 0, 1.5), module=module)
    at_work.module = "left_right"
    for image in (0, 4):
        at_work.image = image
        count = model.decoded
        move(at_work, 0, gain_db=-6 - image)
        assert model.decoded == count + 2
        strips = [Strip(-6 - image, image=image), *[Strip(image=image)] * 3]
        assert torch.equal(heard(at_work, "latent"), mixer.latent_mix(strips))
        assert torch.equal(heard(at_work, "decoded"), mixer.decoded_mix(strips))
    assert "the waveform mix stays in the centre" in notes(at_work)
    move(at_work, 0, gain_db=0)
    at_work.module = ""
    assert torch.equal(heard(at_work, "latent"), panned)
    at_work.module = "left_right"
    at_work.model = "stft"
    assert (at_work.modules, at_work.module) == ([], "")


def test_a_module_or_model_that_fails_leaves_the_desk_as_it_was(modules, tmp_path):
    (modules / "noisy" / "stereo-broken.safetensors").write_bytes(b"no weights")
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    broken = str(tmp_path)
    at_work = desk([NoisyDecoder(), broken, "no-such-model"], modules=modules)
    at_work.module = "left_right"
    before = heard(at_work, "latent")
    for trait, value, named in (
        ("module", "broken", "stereo-broken.safetensors"),
        ("model", broken, "model.safetensors"),
        ("model", "no-such-model", "unknown model"),
    ):
        setattr(at_work, trait, value)
        assert named in at_work.status["error"]
        assert (at_work.model, at_work.module) == ("noisy", "left_right")
        assert torch.equal(heard(at_work, "latent"), before)
    move(at_work, 0, gain_db=None)
    assert at_work.status["error"] == ""
    assert not torch.equal(heard(at_work, "latent"), before)


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
        await asyncio.sleep(0.3)
        assert not model.levels  # nothing is asked of it before the page is there
        at_work.receive({"kind": "ready"})
        while not model.levels:
            await asyncio.sleep(0.01)
        for level_db in range(-1, -11, -1):
            move(at_work, 0, gain_db=level_db)
            await asyncio.sleep(0.01)
        assert at_work.status["message"] == "decoding the latent mix"
        model.go.set()
        while "message" in at_work.status:
            await asyncio.sleep(0.01)
        return at_work

    at_work = asyncio.run(scene())
    first, after = model.levels[0], model.levels[1]
    assert after / first == pytest.approx(amplitude(-10), rel=1e-3)
    assert heard(at_work, "latent").square().mean().sqrt() == pytest.approx(after, rel=1e-3)


def upload(desk: Desk, *files: tuple[str, bytes], piece: int = 30_000) -> None:
    """What the page does with files: piece by piece, each an own message."""

    for index, (name, content) in enumerate(files):
        for at in range(0, max(1, len(content)), piece):
            message = {"kind": "piece", "file": index, "name": name, "at": at}
            desk.receive(message, [content[at : at + piece]])
    desk.receive({"kind": "files"})


def wav(seconds=1.0, rate=RATE, level=0.1, channels=1):
    t = np.arange(round(seconds * rate)) / rate
    tone = level * np.sin(2 * np.pi * 440 * t)
    file = io.BytesIO()
    soundfile.write(file, np.stack([tone] * channels, 1), rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_stems_of_ones_own(tmp_path):
    at_work = desk()
    upload(at_work, ("a.wav", wav(1.0, channels=2)), ("b.wav", wav(0.5, 8000)))
    assert (at_work.names, at_work.chosen.name) == (["a", "b"], "a, b")
    for note in (
        "a.wav has 2 channels: heard as mono, their mean",
        "b.wav has 8000 Hz: resampled to 16000 Hz",
        "b.wav lasts 0.50 s: silence to 1.00 s",
    ):
        assert note in notes(at_work)
    assert heard(at_work, "latent").shape[1] == RATE

    (tmp_path / "drums.wav").write_bytes(wav(0.7))
    at_work.load_stems(tmp_path)
    assert (at_work.names, at_work.chosen.name) == (["drums"], tmp_path.name)
    assert "a.wav" not in notes(at_work)
    at_work.track = 1
    assert "a.wav has 2 channels" in notes(at_work), "notes belong to their track"


def test_an_upload_is_whole_whatever_its_size():
    """More than the 10 MB that servers take in one message; and files of one name are two files."""
    at_work = desk()
    first, second = wav(60.0, level=0.2, channels=3), wav(2.0, level=0.1)
    assert len(first) > 11e6
    upload(at_work, ("song.wav", first), ("song.wav", second), piece=2**20)
    assert [round(levels["level_db"]) for levels in at_work.levels[:2]] == [-17, -23]
    assert at_work.tracks[-1] == ["song, song", 60.0]


def test_a_rendered_song_is_named_by_its_place():
    tracks = [FakeTrack("A recording", 2.0), FakeTrack("test_000", 2.0)]
    assert desk(tracks=tracks).tracks == [["A recording", 2.0], ["Song 2", 2.0]]


class Failing(Linear):
    name = "failing"

    def decode(self, z, length=None, seed=0):
        raise RuntimeError("out of memory, say")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda desk: upload(desk, ("song.wav", b"this is text")), "song.wav: cannot be read as audio"),
        (lambda desk: upload(desk, ("empty.wav", wav(0))), "empty.wav: holds no samples"),
        (lambda desk: upload(desk, *[(f"{k}.wav", wav(0.1)) for k in range(9)]), "takes 1 to 8 stems, got 9"),
        (lambda desk: desk.load_stems("/nowhere/at/all"), "/nowhere/at/all: no such folder or audio file"),
        (lambda desk: setattr(desk, "model", "failing"), "out of memory, say"),
        (lambda desk: move(desk, 0, pan=2.0), "pan must lie between -1 (left) and 1 (right), got 2.0"),
    ],
)
def test_what_goes_wrong_is_said(ask, message):
    with pytest.raises(ValueError, match="a desk needs a model and a track, got 0 and 1"):
        Desk([], [FakeTrack()])
    at_work = desk([Linear(), Failing()])
    before = heard(at_work, "latent")
    ask(at_work)
    assert message in at_work.status["error"]
    assert "/tmp" not in at_work.status["error"]  # the name of the file, not of its temporary copy
    assert at_work.chosen.name == "one"
    at_work.model = "stft"
    move(at_work, 0, gain_db=None, pan=0.0)  # still alive
    assert at_work.status["error"] == ""
    assert not torch.equal(heard(at_work, "latent"), before)
