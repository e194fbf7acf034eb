"""The latent mixing desk: faders on latents, in JupyterLab, VS Code, and by Voila as a page (`lincae desk`).

    Desk(["desk/lin-cae", "desk/m2l"], tracks("embedded", n_tracks=4))

The desk shows and asks; what it computes is `mixer.py`. Decoding runs in one worker thread, a moment
after the last move (DEBOUNCE_S), and a move that comes meanwhile drops what is not wanted any more. Where no
event loop runs, in a script or a test, a change is answered before it returns.

Nothing is normalised: samples go to the player as float32, which plays them at the monitor's volume. At
equal loudness the other sounds are matched to the latent mix, by the gains written on their buttons.

Audio is (channels, T).
"""

import asyncio
import itertools
import math
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from torch import Tensor

from lincae.data.tracks import Track
from lincae.evaluation.plots import COLOURS, frequency_ticks, spectrogram_bytes, spectrogram_db
from lincae.interface import AutoencoderLike
from lincae.interop.models import load
from lincae.listening.controls import Channel, Player, StereoChoice, Upload, asset, shown_db
from lincae.listening.loudness import amplitude, loudness_lufs, true_peak_dbtp
from lincae.listening.mixer import MODULES, Mixer, stem_files, stem_track, stereo_modules
from lincae.metrics import is_silent, snr_db
from lincae.reencoder.module import ReEncoder

DEBOUNCE_S = 0.12
MAX_RANGE_S = 30.0
MIN_RANGE_S = 0.5
LATENT = "latent"
WAVEFORM = "waveform"
DECODED = "decoded"
TITLES = {LATENT: "latent mix", WAVEFORM: "waveform mix", DECODED: "mix of decoded stems"}
MAX_MIXERS = 6
"""Ranges, tracks and models whose latents and mixes are kept."""

MONO = "Stems are mono here, the mean of their channels: pan or a Re-Encoder gives them a place."
ATTRIBUTION = {"clip": "The Easton Ellises, CC BY-NC-SA 3.0: for listening, not for distribution."}
PROBLEMS = (ValueError, OSError, ImportError, RuntimeError)
"""What models, tracks and files may raise: it is shown on the desk."""

Job = Generator[tuple[str, float, Callable[[], Any]], Any, None]


class Desk(widgets.VBox):
    """The desk. `models`: names and paths for `lincae.load`, or models; the first is loaded at once, others
    when chosen. `tracks`: to choose from; `seconds`: of each, to begin with. `modules`: a folder below which
    mono-to-stereo Re-Encoders of these models lie, which can place the stems. ValueError for no model or
    track.

    Whatever goes wrong with a model, a track or a file is said on the desk, which stays as it was.
    """

    _numbers = itertools.count()

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
        self.device = device
        self.seed = seed
        self.seconds = seconds
        self._id = f"desk-{next(self._numbers)}"
        self._models = {model.name: model for model in models if not isinstance(model, str)}
        self._tracks = list(tracks)
        self._notes: dict[int, list[str]] = {}  # what had to be done to a track of one's own
        self._channel_names: tuple[str, ...] | None = None
        self._folder = modules
        self._paths: dict[str, Path] = {}
        self._modules: dict[Path, ReEncoder] = {}
        self._mixers: OrderedDict[tuple, Mixer] = OrderedDict()
        self._last_model: str | None = None
        self._last_stereo: str | None = None
        self._worker = ThreadPoolExecutor(1, "decoder")
        self._task: asyncio.Task | None = None
        self._asked = 0
        self._asked_at = 0.0
        self._quiet = False
        self._build([model if isinstance(model, str) else model.name for model in models])
        self._choose_track()

    # -------- widgets

    def _build(self, models: list[str]) -> None:
        self.model_choice = widgets.Dropdown(options=models, description="Model")
        self.track_choice = widgets.Dropdown(description="Track")
        self._list_tracks()
        self.track_choice.value = 0
        self.range = widgets.FloatRangeSlider(
            value=(0, MIN_RANGE_S),
            min=0,
            max=MIN_RANGE_S,
            step=0.5,
            readout_format=".1f",
            continuous_update=False,
        )
        self.range.description = "Seconds"
        self.equal_loudness = widgets.Checkbox(value=True, description="A/B at equal loudness", indent=False)
        self.stereo = StereoChoice(self._request)
        self.reset = widgets.Button(description="Reset faders", tooltip="All faders to 0 dB, nothing muted")
        self.upload = Upload(lambda paths: self._take(lambda: (paths, "upload")))
        self.path = widgets.Text(placeholder="or a folder of stems, or a file", continuous_update=False)
        self.open_button = widgets.Button(description="Open")
        self.player = Player(desk=self._id)
        self.strips: list[Channel] = []
        self.master = Channel("master", COLOURS[-1], self._id, self._request, is_stem=False)
        self.strip_box = widgets.HBox().add_class("lc-strips")
        self.progress = widgets.FloatProgress(value=0, min=0, max=1).add_class("lc-progress")
        self.progress.layout.visibility = "hidden"
        self.numbers = widgets.HTML()
        self.status = widgets.HTML().add_class("lc-status")

        choices = [self.model_choice, self.track_choice, self.range, self.stereo]
        top = widgets.HBox([*choices, self.equal_loudness, self.reset]).add_class("lc-top")
        right = widgets.VBox([self.player, self.progress, self.numbers, self.status]).add_class("lc-right")
        body = widgets.HBox([self.strip_box, right]).add_class("lc-body")
        own = widgets.HBox([self.upload, self.path, self.open_button]).add_class("lc-top")
        self.own = widgets.Accordion([own], titles=("Stems of your own",), selected_index=None)
        self.own.add_class("lc-own")
        mono = widgets.HTML(f'<p class="lc-caption">{MONO}</p>')
        super().__init__([widgets.HTML(f"<style>{asset('desk.css')}</style>"), top, body, mono, self.own])
        self.add_class("lincae-desk")

        self.track_choice.observe(lambda _: self._choose_track(), "value")
        for widget in (self.model_choice, self.range, self.equal_loudness):
            widget.observe(self._request, "value")
        self.reset.on_click(lambda _: self._reset())
        self.open_button.on_click(lambda _: self.load_stems(self.path.value))

    def _list_tracks(self) -> None:
        self.track_choice.options = [(track.name, index) for index, track in enumerate(self._tracks)]

    @property
    def track(self) -> Track:
        return self._tracks[self.track_choice.value]

    def _choose_track(self) -> None:
        """The range and the strips of the chosen track; faders stay where the stems have the same names."""
        if self._quiet or self.track_choice.value is None:
            return
        self._quiet = True
        track = self.track
        self.range.max = max(track.duration_s, MIN_RANGE_S)
        self.range.value = (0, min(self.seconds, self.range.max))
        if track.stem_names != self._channel_names:
            self._channel_names = track.stem_names
            self.strips = []
            for index, name in enumerate(track.stem_names):
                self.strips.append(Channel(name, COLOURS[index % len(COLOURS)], self._id, self._request))
            self.strip_box.children = [*self.strips, self.master]
        self._quiet = False
        self._request()

    def _reset(self) -> None:
        self._quiet = True
        for part in [*self.strips, self.master, self.stereo]:
            part.reset()
        self._quiet = False
        self._request()

    # -------- stems of one's own

    def load_stems(self, path: str | Path) -> None:
        """Put the audio files of a folder, or one file, on the desk."""
        self._take(lambda: (stem_files(path), Path(path).name))

    def _take(self, listing: Callable[[], tuple[list[Path], str]]) -> None:
        try:
            track, notes = stem_track(*listing())
        except PROBLEMS as error:
            # An upload's temporary copy is called by the name of what was uploaded.
            self._say(error=re.sub(rf"^{re.escape(tempfile.gettempdir())}/[^/]+/\d+/", "", str(error)))
            return
        self._notes[len(self._tracks)] = notes
        self._tracks.append(track)
        self._quiet = True
        self._list_tracks()
        self.track_choice.value = len(self._tracks) - 1
        self._quiet = False
        self._choose_track()

    # -------- from a change to sound

    def _request(self, _change: Any = None) -> None:
        if self._quiet:
            return
        self._asked += 1
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._answer_now()
            return
        self._asked_at = loop.time()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._answer(loop))

    def _answer_now(self) -> None:
        job = self._job()
        step = next(job, None)
        while step:
            step = _resumed(job, *_attempted(step[2]))

    async def _answer(self, loop: asyncio.AbstractEventLoop) -> None:
        answered = None
        while answered != self._asked:
            while (wait_s := self._asked_at + DEBOUNCE_S - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            answered = self._asked
            job = self._job()
            step = next(job, None)
            while step and answered == self._asked:
                message, share, function = step
                self.progress.value = share
                self.progress.layout.visibility = "visible"
                self.status.value = f"<p>{escape(message)} …</p>"
                outcome = await loop.run_in_executor(self._worker, _attempted, function)
                step = _resumed(job, *outcome)
            job.close()
        self.progress.layout.visibility = "hidden"

    def _job(self) -> Job:
        """What a change takes: yields (message, share done, function for the worker), is sent its result."""
        try:
            yield from self._work()
        except PROBLEMS as error:
            self._say(error=error)
            self._quiet = True
            if self._last_model and self.model_choice.value not in self._models:
                self.model_choice.value = self._last_model
            self.stereo.choose(self._last_stereo)
            self._quiet = False

    def _work(self) -> Job:
        name = self.model_choice.value
        if name not in self._models:
            self._models[name] = yield f"loading {name}", 0.05, partial(load, name, self.device)
        if name != self._last_model:
            self._offer_modules(self._models[name])
            self._last_model = name

        stereo = self.stereo.module
        image = self.stereo.image.value
        mixer = yield from self._mixer(self._models[name])
        strips = [channel.strip for channel in self.strips]
        master_db = self.master.gain_db
        if stereo:
            yield f"loading {stereo}", 0.5, partial(self._place, mixer, self._paths[stereo])
            strips = [replace(strip, pan=0.0, image=image) for strip in strips]
        self._last_stereo = stereo

        mixes = {WAVEFORM: mixer.waveform_mix(strips, master_db)}
        mixes[LATENT] = yield "decoding the latent mix", 0.5, partial(mixer.latent_mix, strips, master_db)
        self._publish(mixer, mixes)
        factors, images = mixer.settings(strips, master_db)
        self._show_levels(mixer, factors, mixes[LATENT])
        self.player.pictures = yield "spectrograms", 0.7, partial(_pictures, mixes, mixer.sample_rate)
        for index, stem in enumerate(mixer.names):
            share = 0.75 + 0.25 * index / len(mixer.names)
            decode = partial(mixer.decoded_stem, index, images[index])
            yield f"decoding {stem} alone, to compare", share, decode
        mixes[DECODED] = mixer.decoded_mix(strips, master_db)
        self._publish(mixer, mixes)
        self._say(notes=self._findings(mixer))

    def _offer_modules(self, model: AutoencoderLike) -> None:
        self._quiet = True
        self._paths = stereo_modules(model, self._folder)
        self.stereo.offer(tuple(self._paths))
        self._quiet = False

    def _place(self, mixer: Mixer, path: Path) -> None:
        if path not in self._modules:
            self._modules[path] = ReEncoder.load(path, self.device)
        mixer.place_by(self._modules[path])

    def _mixer(self, model: AutoencoderLike) -> Generator:
        start_s, end_s = self.range.value
        end_s = min(max(end_s, start_s + MIN_RANGE_S), start_s + MAX_RANGE_S)
        key = (self.model_choice.value, self.track_choice.value, start_s, end_s)
        if key not in self._mixers:
            read = partial(self.track.stems, model.sample_rate, start_s, end_s - start_s)
            stems = yield "reading stems", 0.1, read
            mixer = Mixer(model, stems, self.track.stem_names, self.seed)
            for index, stem in enumerate(mixer.names):
                share = 0.15 + 0.35 * index / len(mixer.names)
                yield f"encoding {stem}", share, partial(mixer.latent, index)
            self._mixers[key] = mixer
            while len(self._mixers) > MAX_MIXERS:
                self._mixers.popitem(last=False)
        self._mixers.move_to_end(key)
        return self._mixers[key]

    # -------- what is shown

    def _publish(self, mixer: Mixer, mixes: dict[str, Tensor]) -> None:
        loudness = {key: loudness_lufs(audio, mixer.sample_rate) for key, audio in mixes.items()}
        sounds = {}
        for key, audio in mixes.items():
            gain = 1.0
            difference_db = loudness[LATENT] - loudness[key]
            if self.equal_loudness.value and math.isfinite(difference_db):
                gain = amplitude(difference_db)
            samples = audio.contiguous().numpy().astype("<f4").tobytes()
            sounds[key] = {"samples": samples, "channels": len(audio), "gain": gain}
        with self.player.hold_sync():
            self.player.sample_rate = mixer.sample_rate
            self.player.file_name = _slug(f"{mixer.model.name}_{self.track.name}")
            self.player.sounds = sounds

        head = "<tr><th></th><th>LUFS</th><th>true peak, dBTP</th><th>SNR of the latent mix, dB</th></tr>"
        rows = []
        for key, title in TITLES.items():
            if key in mixes:
                peak_dbtp = true_peak_dbtp(mixes[key])
                over = ' class="lc-over"' if peak_dbtp > 0 else ""
                cells = f"<td>{shown_db(loudness[key])}</td><td{over}>{shown_db(peak_dbtp)}</td>"
                rows.append(f"<tr><th>{title}</th>{cells}<td>{_agreement(mixes, key)}</td></tr>")
        body = "".join(rows)
        self.numbers.value = f'<table class="lc-numbers"><thead>{head}</thead><tbody>{body}</tbody></table>'

    def _show_levels(self, mixer: Mixer, factors: Tensor, latent_mix: Tensor) -> None:
        for index, channel in enumerate(self.strips):
            heard = factors[:, index : index + 1].float() * mixer.stems[index]
            channel.meter.show(heard, mixer.sample_rate)
            channel.pan.disabled = self.stereo.module is not None
            if factors[:, index].any():
                channel.remove_class("lc-off")
            else:
                channel.add_class("lc-off")
        self.master.meter.show(latent_mix, mixer.sample_rate)

    def _findings(self, mixer: Mixer) -> list[str]:
        found = [f"{escape(name)} is silent here" for name in mixer.silent]
        found += map(escape, self._notes.get(self.track_choice.value, []))
        if self.track.dataset in ATTRIBUTION:
            found.append(ATTRIBUTION[self.track.dataset])
        if self.range.value[1] - self.range.value[0] > MAX_RANGE_S:
            found.append(f"the first {MAX_RANGE_S:g} s of the range: the desk takes no more at once")
        if self.stereo.module:
            found.append("placed by the Re-Encoder, in latents alone: the waveform mix stays in the centre")
        return found

    def _say(self, notes: Sequence[str] = (), error: BaseException | str = "") -> None:
        said = [f"<p>{note}</p>" for note in notes]
        if error:
            said.append(f'<p class="lc-error" role="alert">{escape(str(error))}</p>')
        self.status.value = "".join(said)


# ---------------------------------------------------------------- helpers


def _attempted(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """The result of a call, or what it raised: an exception cannot cross from the worker by itself."""
    try:
        return function(), None
    except PROBLEMS as error:
        return None, error


def _resumed(job: Job, result: Any, error: BaseException | None) -> tuple | None:
    """The next step of a job after the outcome of the last; None at its end."""
    try:
        return job.send(result) if error is None else job.throw(error)
    except StopIteration:
        return None


def _pictures(mixes: dict[str, Tensor], sample_rate: int) -> dict[str, dict]:
    """Spectrograms of the latent mix, the waveform mix and their difference, on one dB scale."""
    latent = mixes[LATENT].mean(0)
    waveform = mixes[WAVEFORM].mean(0)
    sounds = {LATENT: latent, WAVEFORM: waveform, "difference": waveform - latent}
    images = {key: spectrogram_db(audio, sample_rate) for key, audio in sounds.items()}
    top_db = max(image.max() for image, _ in images.values())

    titles = TITLES | {"difference": f"their difference: {_agreement(mixes, WAVEFORM)} dB SNR"}
    pictures = {}
    for key, (image, extent) in images.items():
        ticks = frequency_ticks(extent, sample_rate)
        pictures[key] = {"png": spectrogram_bytes(image, top_db), "title": titles[key], "ticks": ticks}
    return pictures


def _agreement(mixes: dict[str, Tensor], key: str) -> str:
    """The SNR in dB of the latent mix against another, as it is written; nothing for itself."""
    if key == LATENT:
        return ""
    channels = max(len(mixes[LATENT]), len(mixes[key]))
    latent, other = (mixes[k].expand(channels, -1).reshape(1, -1) for k in (LATENT, key))
    return "undefined, it is silent" if is_silent(other) else f"{snr_db(latent, other).item():.1f}"


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())
