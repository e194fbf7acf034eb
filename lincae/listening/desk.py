"""The latent mixing desk: faders on latents, in JupyterLab, VS Code, and by Voila as a page (`lincae desk`).

    Desk(["study/listen", "desk/m2l"], tracks("embedded", n_tracks=4))

The desk shows and asks; what it computes is `mixer.py`.
"""

import asyncio
import math
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import torch
import traitlets
from torch import Tensor

from lincae.data.tracks import Track
from lincae.evaluation.pictures import COLOURS, frequency_ticks, spectrogram_bytes, spectrogram_db
from lincae.interface import AutoencoderLike
from lincae.listening import asset
from lincae.listening.loudness import amplitude, decibels, loudness_lufs, rms_dbfs, true_peak_dbtp
from lincae.listening.mixer import Mixer, Strip, song_title, stem_files, stem_track
from lincae.metrics import is_silent, snr_db
from lincae.reencoder.module import MODULES, ReEncoder, stereo_modules

DEBOUNCE_S = 0.06
ARRIVAL_S = 0.1
"""A new latent mix has so long to arrive before all else is computed: one core cannot do both at once."""

MAX_RANGE_S = 30.0
MIN_RANGE_S = 0.5
LATENT = "latent"
WAVEFORM = "waveform"
DECODED = "decoded"
MAX_MIXERS = 6
"""Ranges, tracks and models whose latents and mixes are kept."""

ENVELOPE_HZ = 30
SILENT_DB = -300.0
"""What stands for -inf dB in JSON, which has no infinities."""

UNITY = {"gain_db": 0.0, "pan": 0.0, "mute": False, "solo": False, "inverted": False}
"""A strip as the page knows it: the fields of `Strip`; `gain_db` is None where the fader is off."""

ATTRIBUTION = {"clip": "The Easton Ellises, CC BY-NC-SA 3.0: for listening, not for distribution."}
PROBLEMS = (ValueError, OSError, ImportError, RuntimeError)
"""What models, tracks and files may raise: it is shown on the desk."""


class Overtaken(Exception):
    """What is computed is not wanted any more, as the desk was moved again."""


class Upload:
    """Files that arrive piece by piece.

    A server between page and kernel closes the connection on a message of more than 10 MB, in silence: a
    minute of stereo in one message would never arrive.
    """

    def __init__(self):
        self._folder: tempfile.TemporaryDirectory | None = None

    def take(self, number: int, name: str, at: int, piece: bytes) -> None:
        """A piece of file `number`, from byte `at` on."""
        if number == at == 0:
            self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, str(number), Path(name).name)
        path.parent.mkdir(exist_ok=True)
        with path.open("r+b" if at else "wb") as file:
            file.seek(at)
            file.write(piece)

    @contextmanager
    def files(self) -> Iterator[list[Path]]:
        """What has arrived, in order; gone at the end."""
        with self._folder as folder:
            yield sorted(Path(folder).glob("*/*"), key=lambda path: int(path.parent.name))


class Desk(anywidget.AnyWidget):
    """The desk. `models`: names and paths for `lincae.load`, or models; the first is loaded at once, others
    when chosen. `seconds`: of each of the `tracks`, to begin with. `modules`: a folder below which
    mono-to-stereo Re-Encoders of these models lie. Raises ValueError for no model or track.

    A change is answered a moment after the last move, by one worker thread, and a move that comes meanwhile
    drops what is not wanted any more; where no event loop runs, in a script, before it returns. Nothing is
    normalised. Whatever goes wrong with a model, a track or a file is said, and the desk stays as it was.
    """

    _esm = "\n".join(asset(name) for name in ("parts.js", "strip.js", "player.js", "desk.js"))
    _css = asset("desk.css")

    # What the page chooses: of what is offered a model, a track, and a module ("": pan) with its image.
    model = traitlets.Unicode().tag(sync=True)
    track = traitlets.Int().tag(sync=True)
    module = traitlets.Unicode().tag(sync=True)
    image = traitlets.Int().tag(sync=True)
    range_s = traitlets.List([0.0, MIN_RANGE_S]).tag(sync=True)
    strips = traitlets.List().tag(sync=True)
    master_db = traitlets.Float(0.0, allow_none=True).tag(sync=True)
    equal_loudness = traitlets.Bool(True).tag(sync=True)

    # What the page shows.
    models = traitlets.List().tag(sync=True)
    tracks = traitlets.List().tag(sync=True)
    modules = traitlets.List().tag(sync=True)
    names = traitlets.List().tag(sync=True)
    colours = traitlets.List(list(COLOURS)).tag(sync=True)
    sample_rate = traitlets.Int(1).tag(sync=True)
    sounds = traitlets.Dict().tag(sync=True)
    pictures = traitlets.Dict().tag(sync=True)
    levels = traitlets.List().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        models: Sequence[str | AutoencoderLike],
        tracks: Sequence[Track],
        seconds: float = 6.0,
        device: str = "auto",
        seed: int = 0,
        modules: str | Path = MODULES,
    ):
        if not models or not tracks:
            raise ValueError(f"a desk needs a model and a track, got {len(models)} and {len(tracks)}")
        super().__init__()
        self.device = device
        self.seed = seed
        self.seconds = seconds
        self._loaded = {model.name: model for model in models if not isinstance(model, str)}
        self._tracks = list(tracks)
        self._notes: dict[int, list[str]] = {}  # what had to be done to a track of one's own
        self._upload = Upload()
        self._folder = modules
        self._paths: dict[str, Path] = {}
        self._placers: dict[Path, ReEncoder] = {}
        self._mixers: OrderedDict[tuple, Mixer] = OrderedDict()
        self._last_model: str | None = None
        self._last_module = ""
        self._worker = ThreadPoolExecutor(1, "decoder")
        self._task: asyncio.Task | None = None
        self._asked = 0
        self._asked_at = -math.inf
        self._answered = 0
        self._quiet = False
        self._shown = False

        self.models = [model if isinstance(model, str) else model.name for model in models]
        self.model = self.models[0]
        titles = [song_title(track.name, number) for number, track in enumerate(tracks, start=1)]
        self.tracks = [[title, track.duration_s] for title, track in zip(titles, tracks, strict=True)]
        self.on_msg(lambda _, content, buffers: self.receive(content, buffers))
        self._lay_out()
        self._preview()
        self.observe(self._choose_track, "track")
        moves = ["model", "module", "image", "range_s", "strips", "master_db", "equal_loudness"]
        self.observe(self._request, moves)
        self._request()

    @contextmanager
    def _unanswered(self) -> Iterator[None]:
        self._quiet = True
        yield
        self._quiet = False

    # -------- tracks, and stems of one's own

    @property
    def chosen(self) -> Track:
        return self._tracks[self.track]

    def _choose_track(self, _change: Any = None) -> None:
        with self._unanswered():
            self._lay_out()
        self._request()

    def _lay_out(self) -> None:
        """The range and the strips of the chosen track; faders stay where the stems have the same names."""
        self.range_s = [0.0, min(self.seconds, self.chosen.duration_s)]
        if list(self.chosen.stem_names) != self.names:
            self.names = list(self.chosen.stem_names)
            self.strips = [dict(UNITY) for _ in self.names]

    def load_stems(self, path: str | Path) -> None:
        """Put the audio files of a folder, or one file, on the desk."""
        try:
            self._take(stem_files(path), Path(path).name)
        except PROBLEMS as error:
            self._say(error=error)

    def _take(self, files: Sequence[Path], name: str) -> None:
        track, notes = stem_track(files, name)
        self._notes[len(self._tracks)] = notes
        self._tracks.append(track)
        self.tracks = [*self.tracks, [track.name, track.duration_s]]
        self.track = len(self._tracks) - 1

    def receive(self, content: dict[str, Any], buffers: Sequence[bytes] = ()) -> None:
        """What the page says beside its choices: "ready" once it shows the desk; "moved", to hear whether
        anybody listens; a "piece" of an upload, and "files" at the end of the last; "open" for a path.
        Each is answered."""
        kind = content["kind"]
        error = ""
        if kind == "ready":
            self._shown = True
            self._request()
        elif kind == "piece":
            try:
                self._upload.take(content["file"], content["name"], content["at"], buffers[0])
            except OSError as problem:
                error = str(problem)
        elif kind == "files":
            with self._upload.files() as paths:
                try:
                    self._take(paths, ", ".join(path.stem for path in paths))
                except PROBLEMS as problem:
                    # A temporary copy is called by the name of what was uploaded.
                    self._say(
                        error=re.sub(rf"{re.escape(str(paths[0].parent.parent))}/\d+/", "", str(problem))
                    )
        elif kind == "open":
            self.load_stems(content["path"])
        self.send({"kind": kind, "error": error})

    # -------- from a change to sound

    def _request(self, _change: Any = None) -> None:
        if self._quiet:
            return
        self._asked += 1
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self._answer(0.0))
            return
        if not self._shown:  # a page that meets changes while it fetches the desk's state may lose it
            return
        self._asked_at = loop.time()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._answer(DEBOUNCE_S))

    async def _answer(self, debounce_s: float) -> None:
        loop = asyncio.get_running_loop()
        while self._answered != self._asked:
            while (wait_s := self._asked_at + debounce_s - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            self._answered = self._asked
            try:
                await self._work()
            except Overtaken:
                continue
            except PROBLEMS as error:
                self._say(error=error)
                with self._unanswered():
                    if self._last_model and self.model not in self._loaded:
                        self.model = self._last_model
                    self.module = self._last_module

    async def _step(self, message: str, share: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns, run by the worker while the desk says what it waits for.

        Raises Overtaken where the desk was moved since.
        """
        if self._answered != self._asked:
            raise Overtaken
        self.status = {"message": message, "share": share}
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, partial(function, *arguments))

    async def _work(self) -> None:
        name = self.model
        if name not in self._loaded:
            await self._step(f"loading {name}", 0.05, self._load, name)
        if name != self._last_model:
            self._offer_modules(self._loaded[name])
            self._last_model = name

        module = self.module
        image = self.image
        mixer = await self._mixer(self._loaded[name])
        strips, master_db = self._faders()
        if module:
            await self._step(f"loading {module}", 0.5, self._place, mixer, self._paths[module])
            strips = [replace(strip, pan=0.0, image=image) for strip in strips]
        self._last_module = module

        factors, images = mixer.settings(strips, master_db)
        mixes = {WAVEFORM: mixer.waveform_mix(strips, master_db)}
        if factors.any():
            decoding = "decoding the latent mix"
            mixes[LATENT] = await self._step(decoding, 0.5, mixer.latent_mix, strips, master_db)
        else:  # a desk with all faders down is silent, whatever the decoder makes of nothing
            mixes[LATENT] = torch.zeros_like(mixes[WAVEFORM])
        if self._shown:
            self._sound(mixer.sample_rate, {LATENT: _samples(mixes[LATENT]) | {"gain": 1.0}})
            await asyncio.sleep(ARRIVAL_S)
        self._publish(mixer.sample_rate, mixes)
        heard = [column[:, None].float() * stem for column, stem in zip(factors.T, mixer.stems, strict=True)]
        self.levels = [_levels(audio, mixer.sample_rate) for audio in (*heard, mixes[LATENT])]
        pictures = await self._step("spectrograms", 0.7, _pictures, mixes, mixer.sample_rate)
        self.pictures = pictures
        for index, stem in enumerate(mixer.names):
            share = 0.75 + 0.25 * index / len(mixer.names)
            decoding = f"decoding {stem} alone, to compare"
            await self._step(decoding, share, mixer.decoded_stem, index, images[index])
        mixes[DECODED] = mixer.decoded_mix(strips, master_db)
        self._publish(mixer.sample_rate, mixes)
        self._say(notes=self._findings(mixer))

    def _load(self, name: str) -> None:
        from lincae.interop.models import load  # slow to import, and the desk has sound before

        self._loaded[name] = load(name, self.device)

    def _preview(self) -> None:
        """The sum of the stems, without numbers: a page has sound when it opens, before a model is loaded."""
        start_s, end_s = self._range()
        self.sample_rate = self.chosen.sample_rate
        try:
            stems = self.chosen.stems(self.sample_rate, start_s, end_s - start_s)
        except PROBLEMS as error:
            self._say(error=error)
        else:
            self.sounds = {WAVEFORM: _samples(stems.sum(0, keepdim=True)) | {"gain": 1.0}}
            self.status = {"message": "loading the model; meanwhile the waveform mix plays", "share": 0.05}

    def _faders(self) -> tuple[list[Strip], float]:
        """Settings of the strips, and the level of the master in dB."""
        strips = [Strip(**settings | {"gain_db": _level(settings["gain_db"])}) for settings in self.strips]
        return strips, _level(self.master_db)

    def _range(self) -> tuple[float, float]:
        start_s, end_s = self.range_s
        return start_s, min(max(end_s, start_s + MIN_RANGE_S), start_s + MAX_RANGE_S)

    def _offer_modules(self, model: AutoencoderLike) -> None:
        self._paths = stereo_modules(model, self._folder)
        with self._unanswered():
            self.modules = list(self._paths)
            if self.module not in self._paths:
                self.module = ""

    def _place(self, mixer: Mixer, path: Path) -> None:
        if path not in self._placers:
            self._placers[path] = ReEncoder.load(path, self.device)
        mixer.place_by(self._placers[path])

    async def _mixer(self, model: AutoencoderLike) -> Mixer:
        start_s, end_s = self._range()
        key = (self.model, self.track, start_s, end_s)
        if key not in self._mixers:
            read = partial(self.chosen.stems, model.sample_rate, start_s, end_s - start_s)
            stems = await self._step("reading stems", 0.1, read)
            mixer = Mixer(model, stems, self.chosen.stem_names, self.seed)
            for index, stem in enumerate(mixer.names):
                share = 0.15 + 0.35 * index / len(mixer.names)
                await self._step(f"encoding {stem}", share, mixer.latent, index)
            self._mixers[key] = mixer
            while len(self._mixers) > MAX_MIXERS:
                self._mixers.popitem(last=False)
        self._mixers.move_to_end(key)
        return self._mixers[key]

    # -------- what is shown

    def _publish(self, sample_rate: int, mixes: dict[str, Tensor]) -> None:
        """The mixes, their numbers, and the gain that makes each as loud as the latent one."""
        loudness = {key: loudness_lufs(audio, sample_rate) for key, audio in mixes.items()}
        sounds = {}
        for key, audio in mixes.items():
            gain = 1.0
            difference_db = loudness.get(LATENT, math.nan) - loudness[key]
            if self.equal_loudness and math.isfinite(difference_db):
                gain = amplitude(difference_db)
            sounds[key] = _samples(audio) | {
                "gain": gain,
                "lufs": max(SILENT_DB, loudness[key]),
                "peak_dbtp": max(SILENT_DB, true_peak_dbtp(audio)),
                "snr_db": _agreement(mixes, key),
            }
        self._sound(sample_rate, sounds)

    def _sound(self, sample_rate: int, sounds: dict[str, dict[str, Any]]) -> None:
        with self.hold_sync():
            self.sample_rate = sample_rate
            self.sounds = sounds

    def _findings(self, mixer: Mixer) -> list[str]:
        found = [f"{name} is silent here" for name in mixer.silent]
        found += self._notes.get(self.track, [])
        if self.chosen.dataset in ATTRIBUTION:
            found.append(ATTRIBUTION[self.chosen.dataset])
        if self.chosen.sample_rate != mixer.sample_rate:
            rates = f"{self.chosen.sample_rate} Hz, resampled to the model's {mixer.sample_rate} Hz"
            found.append(f"{self.tracks[self.track][0]} has {rates}")
        if self.range_s[1] - self.range_s[0] > MAX_RANGE_S:
            found.append(f"the first {MAX_RANGE_S:g} s of the range: the desk takes no more at once")
        elif mixer.stems.shape[1] < round(self.chosen.duration_s * mixer.sample_rate):
            start_s, end_s = self._range()
            found.append(f"{start_s:g} to {end_s:g} s of {self.chosen.duration_s:g} s are on the desk")
        if self.module:
            found.append("placed by the Re-Encoder, in latents alone: the waveform mix stays in the centre")
        return found

    def _say(self, notes: Sequence[str] = (), error: BaseException | str = "") -> None:
        self.status = {"notes": list(notes), "error": str(error)}


def _level(gain_db: float | None) -> float:
    return -math.inf if gain_db is None else gain_db


def _samples(audio: Tensor) -> dict[str, Any]:
    return {"samples": audio.contiguous().numpy().astype("<f4").tobytes(), "channels": len(audio)}


def _levels(audio: Tensor, sample_rate: int) -> dict[str, Any]:
    """RMS over time and in all, and the peak, of audio (channels, T) in dB re full scale."""
    size = max(1, sample_rate // ENVELOPE_HZ)
    whole = audio.shape[1] // size * size
    rms = audio.square().mean(0)[:whole].reshape(-1, size).mean(1).sqrt()
    return {
        "envelope_db": [round(max(SILENT_DB, decibels(level)), 1) for level in rms.tolist()],
        "level_db": max(SILENT_DB, rms_dbfs(audio)),
        "peak_db": max(SILENT_DB, decibels(audio.abs().max().item())),
    }


def _pictures(mixes: dict[str, Tensor], sample_rate: int) -> dict[str, dict[str, Any]]:
    """Spectrograms of the latent mix, the waveform mix and their difference, on one dB scale."""
    latent = mixes[LATENT].mean(0)
    waveform = mixes[WAVEFORM].mean(0)
    sounds = {LATENT: latent, WAVEFORM: waveform, "difference": waveform - latent}
    images = {key: spectrogram_db(audio, sample_rate) for key, audio in sounds.items()}
    top_db = max(image.max() for image, _ in images.values())
    pictures = {}
    for key, (image, extent) in images.items():
        ticks = frequency_ticks(extent, sample_rate)
        pictures[key] = {"png": spectrogram_bytes(image, top_db), "ticks": ticks}
    return pictures


def _agreement(mixes: dict[str, Tensor], key: str) -> float | None:
    """The SNR in dB of the latent mix against another; None for itself and for silence."""
    if key == LATENT or LATENT not in mixes:
        return None
    channels = max(len(mixes[LATENT]), len(mixes[key]))
    latent, other = (mixes[k].expand(channels, -1).reshape(1, -1) for k in (LATENT, key))
    return None if is_silent(other) else snr_db(latent, other).item()
