"""The demo page: what arithmetic on latents sounds like, in one HTML file that opens from disk.

write_demo([linear, baseline], tracks("synthetic", n_tracks=2), "figures/demo")
"""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
from torch import Tensor

from lincae.data.audio import resample
from lincae.data.tracks import Track
from lincae.evaluation.plots import frequency_ticks, spectrogram_bytes, spectrogram_db
from lincae.evaluation.protocols import MIXTURE, Chunk, EvaluationConfig
from lincae.files import atomic_write
from lincae.interface import AutoencoderLike
from lincae.listening import asset
from lincae.listening.loudness import amplitude, loudness_lufs, rms_dbfs, true_peak_dbtp
from lincae.metrics import is_silent, mss, si_sdr_db, snr_db
from lincae.reencoder.module import ReEncoder
from lincae.reencoder.pairs import Source, check_stereo, task_input

PEAK_DBTP = -1.0
"""The highest true peak of a page: one gain is applied to all sounds of a block that would exceed it."""

OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
OPUS_BIT_RATE = 64000  # a channel
PICTURE_PIXELS = (440, 120)
LOUD_LU = 6.0
"""A sound that is louder than the waveform by so much gets a warning."""

TRUTH = "waveform"
SEPARATED = "separated "
RANDOM = "random c"
UNPUBLISHABLE = {"clip": "CC BY-NC-SA 3.0"}
"""Data sets whose sound may not be published here, and why."""


@dataclass
class Sound:
    """A tile of the page: audio (channels, T), its numbers, and the safety gain that the page applies."""

    audio: Tensor
    sample_rate: int
    numbers: dict[str, float]
    gain_db: float = 0.0


Heard = tuple[Tensor, Tensor, Tensor | None]  # what should be heard, what is, what the paper compares with


@dataclass
class Section:
    """What is behind a tab of the page, from `start_s` of a track on: row -> waveform or model -> sound."""

    name: str
    start_s: float
    board: dict[str, dict[str, Sound]]


def write_demo(
    models: Sequence[AutoencoderLike],
    tracks: Sequence[Track],
    folder: str | Path,
    seconds: float = 6.0,
    gains: Sequence[float] = (0.25, 2.0, -1.0),
    seed: int = 0,
    modules: Mapping[str, ReEncoder] | None = None,
    stereo: Sequence[Source] = (),
) -> Path:
    """Write `index.html` and `demo.csv`, its numbers, into `folder`; returns the page's path.

    From every track come the `seconds` in which most stems sound, and these loudest. `modules`: those of
    mono-to-stereo by the names of their models; with any, each source in `stereo` has a section, its first
    `seconds`. Equal arguments give equal files, byte for byte.

    Raises ValueError for no model, no track, two of one name, gains that are not finite, a track or source
    that may not be published, a module of no model here or of bandwidth extension, and a source that is not
    stereo; LatentFileError for a module of another autoencoder.
    """
    modules = modules or {}
    _check(models, tracks, gains, modules, stereo)
    sections = [_track_section(models, track, seconds, gains, seed) for track in tracks]
    if modules:
        able = [model for model in models if model.name in modules]
        sections += [_stereo_section(able, modules, source, seconds, seed) for source in stereo]

    numbers = []
    for section in sections:
        for row, tiles in section.board.items():
            for name, sound in tiles.items():
                place = {"track": section.name, "start_s": section.start_s, "operation": row, "sound": name}
                numbers.append(place | sound.numbers | {"safety_gain_db": sound.gain_db})

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(numbers)
    table.to_csv(folder / "demo.csv", index=False, float_format="%.4g", errors="backslashreplace")
    with atomic_write(folder / "index.html") as file:
        file.write(_page(sections).encode())
    return folder / "index.html"


def _check(
    models: Sequence[AutoencoderLike],
    tracks: Sequence[Track],
    gains: Sequence[float],
    modules: Mapping[str, ReEncoder],
    stereo: Sequence[Source],
) -> None:
    for kind, named in (("model", models), ("track", tracks)):
        names = [one.name for one in named]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a page needs a {kind}, and names that differ, got {kind}s {names}")
    if not all(math.isfinite(gain) for gain in gains):
        raise ValueError(f"gains must be finite, got {tuple(gains)}")
    for track in (*tracks, *stereo):
        if licence := UNPUBLISHABLE.get(track.dataset):
            raise ValueError(f"track {track.name!r} is {licence}: it cannot be part of a published page")
    by_name = {model.name: model for model in models}
    for name, module in modules.items():
        if name not in by_name:
            raise ValueError(f"modules are of models of the page, got {name!r}")
        if not module.stereo:
            raise ValueError(f"the module of {name} is not of mono-to-stereo, but of {module.config.task!r}")
        module.check_model(by_name[name])


# ---------------------------------------------------------------- sounds


def _track_section(
    models: Sequence[AutoencoderLike], track: Track, seconds: float, gains: Sequence[float], seed: int
) -> Section:
    start_s = _excerpt(track, seconds)
    heard: dict[str, dict[str, Heard]] = {}
    for model in models:
        rate = model.sample_rate
        n_samples = round(min(seconds, track.duration_s - start_s) * rate)
        chunk = Chunk(model, track, round(start_s * rate), n_samples, EvaluationConfig(seed=seed))
        heard[model.name] = {}
        for row, (waveform, latent, decoded) in operations(chunk, gains).items():
            heard[model.name][row] = waveform[None], chunk.decode(latent)[None], decoded
    return Section(track.name, start_s, _board(models, heard, stereo=False))


def operations(chunk: Chunk, gains: Sequence[float]) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    """The rows of the paper's page (autoencoded mix, latent addition, scaling, separation), and more: what
    should be heard (T,), the latents (W, C, L), and the same operation on decoded sound (T,), as the paper
    compares.

    With a single stem there is nothing to add or to separate: the mix and its multiples are left.
    """
    mix = chunk.signal(MIXTURE)
    z = chunk.encode(MIXTURE)
    decoded = chunk.decoded(MIXTURE)
    stems = chunk.names if len(chunk.names) > 1 else ()
    rows: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {"mix": (mix, z, None)}
    if stems:
        rows["sum"] = mix, sum(map(chunk.encode, stems)), decoded
    for gain in gains:
        rows[f"gain {gain:g}"] = gain * mix, gain * z, gain * decoded
    for stem in stems:
        rest = chunk.encode(f"without {stem}")
        rows[SEPARATED + stem] = chunk.signal(stem), z - rest, chunk.decoded(stem)
    return rows


def _stereo_section(
    models: Sequence[AutoencoderLike],
    modules: Mapping[str, ReEncoder],
    source: Source,
    seconds: float,
    seed: int,
) -> Section:
    """Mono, left and right, and what the modules make of mono: with the condition of the true left and right,
    and with one of the prior."""
    heard: dict[str, dict[str, Heard]] = {}
    for model in models:
        module = modules[model.name]
        rate = model.sample_rate
        stereo = check_stereo(source.read(rate), source.name)[:, : round(seconds * rate)]
        mono = task_input(stereo, "stereo", rate)
        z = model.encode(mono)
        sides = model.encode(stereo)
        oracle = module.process(z, module.oracle(sides[None]))[0]
        heard[model.name] = {}
        for row, waveform, latent in (
            ("mono", mono, z),
            ("stereo", stereo, sides),
            ("oracle c", stereo, oracle),
            (RANDOM, stereo, module.process(z, seed=seed)[0]),
        ):
            heard[model.name][row] = waveform, model.decode(latent, length=stereo.shape[1], seed=seed), None
    return Section(f"{source.name} in stereo", math.nan, _board(models, heard, stereo=True))


def _board(
    models: Sequence[AutoencoderLike], heard: Mapping[str, Mapping[str, Heard]], stereo: bool
) -> dict[str, dict[str, Sound]]:
    """The sounds of a section, measured, at one safety gain for all of a block, which are compared."""
    best = max(models, key=lambda model: model.sample_rate)  # its waveforms are on the page
    board = {}
    for row, (truth, _, _) in heard[best.name].items():
        levels = _levels(truth, best.sample_rate, stereo)
        board[row] = {TRUTH: Sound(truth, best.sample_rate, levels)}
        for model in models:
            rate = model.sample_rate
            waveform, audio, decoded = heard[model.name][row]
            audio = audio.cpu()
            numbers = _levels(audio, rate, stereo)
            if row != RANDOM:  # which stands for another image than the true one
                numbers |= _agreement(audio, waveform, rate)
            numbers["louder_lu"] = numbers["lufs"] - _levels(waveform, rate, stereo)["lufs"]
            if decoded is not None:
                for metric, value in _agreement(audio, decoded.cpu()[None], rate).items():
                    numbers[f"linearity_{metric}"] = value
            board[row][model.name] = Sound(audio, rate, numbers)

    for block in {_block(row) for row in board}:
        sounds = [sound for row, tiles in board.items() if _block(row) == block for sound in tiles.values()]
        gain_db = min(0.0, PEAK_DBTP - max(sound.numbers["true_peak_dbtp"] for sound in sounds))
        for sound in sounds:
            sound.gain_db = gain_db
    return board


def _block(row: str) -> str:
    """Rows of one block are compared with one another."""
    return "stems" if row.startswith(SEPARATED) else "mixture"


def _excerpt(track: Track, seconds: float) -> float:
    """Start, in whole seconds, of the stretch in which most stems sound, and the softest of these loudest."""
    rate = 8000
    stems = track.stems(rate, 0.0, track.duration_s)
    best = (-1, -math.inf, 0)
    for start_s in range(max(1, int(track.duration_s - seconds) + 1)):
        part = stems[:, start_s * rate : round((start_s + seconds) * rate)]
        levels = part[~is_silent(part)].square().mean(1)
        softest = float(levels.min()) if len(levels) else 0.0
        best = max(best, (len(levels), softest, -start_s))
    return float(-best[2])


def _levels(audio: Tensor, sample_rate: int, stereo: bool) -> dict[str, float]:
    """Levels of audio; with `stereo` on two loudspeakers, and of left over right, and side over mid."""
    if stereo:
        audio = audio.expand(2, -1)
    levels = {"lufs": loudness_lufs(audio, sample_rate), "true_peak_dbtp": true_peak_dbtp(audio)}
    if stereo:
        left, right = audio.double()
        levels["balance_db"] = rms_dbfs(left) - rms_dbfs(right)
        levels["side_db"] = rms_dbfs(left - right) - rms_dbfs(left + right)
    return levels


def _agreement(audio: Tensor, reference: Tensor, sample_rate: int) -> dict[str, float]:
    """Means over the channels."""
    return {
        "snr_db": snr_db(audio, reference).mean().item(),
        "si_sdr_db": si_sdr_db(audio, reference).mean().item(),
        "mss": mss(audio, reference, sample_rate).mean().item(),
    }


# ---------------------------------------------------------------- the page


def encoded(sound: Sound) -> bytes:
    """The sound at its safety gain as Ogg Opus, at the next rate that Opus has."""
    rate = next((rate for rate in OPUS_RATES if rate >= sound.sample_rate), OPUS_RATES[-1])
    audio = resample(amplitude(sound.gain_db) * sound.audio, sound.sample_rate, rate)
    layout = "stereo" if len(audio) == 2 else "mono"
    interleaved = np.ascontiguousarray(audio.T).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=layout)
    frame.sample_rate = rate
    file = io.BytesIO()
    # Bit-exact: otherwise the serial number of the stream is drawn at random.
    with av.open(file, "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        options = {"b": str(OPUS_BIT_RATE * len(audio))}
        stream = container.add_stream("libopus", rate=rate, layout=layout, options=options)
        stream.codec_context.format = "flt"
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def _page(sections: Sequence[Section]) -> str:
    with ThreadPoolExecutor() as workers:  # libsndfile works outside of Python's lock
        content = {"tracks": list(workers.map(_described, sections)), "truth": TRUTH, "loud_lu": LOUD_LU}
    data = json.dumps(content, allow_nan=False).replace("</", "<\\/")  # no end tag within a script
    html = asset("demo.html")
    for mark, text in (("/*CSS*/", asset("demo.css")), ("/*CODE*/", asset("demo.js")), ("/*DATA*/", data)):
        html = html.replace(mark, text)
    return html.replace("/*SIZE*/", f"{len(html.encode()) / 1e6:.1f} MB")


def _described(section: Section) -> dict[str, Any]:
    sounds = [sound for tiles in section.board.values() for sound in tiles.values()]
    images = {id(sound): _picture(sound) for sound in sounds}
    top_db = max(image.max() for image, _ in images.values())
    rows = []
    for row, tiles in section.board.items():
        shown = {}
        for source, sound in tiles.items():
            image, ticks = images[id(sound)]
            picture = spectrogram_bytes(image, top_db, "jpeg", PICTURE_PIXELS)
            numbers = {}
            for name, value in sound.numbers.items():
                numbers[name] = round(value, 2) if math.isfinite(value) else None
            shown[source] = {
                "audio": base64.b64encode(encoded(sound)).decode(),
                "image": base64.b64encode(picture).decode(),
                "ticks": ticks,
                "numbers": numbers,
                "gain_db": round(sound.gain_db, 2),
            }
        rows.append({"name": row, "tiles": shown})
    seconds = min(sound.audio.shape[1] / sound.sample_rate for sound in sounds)
    return {"name": section.name, "seconds": seconds, "rows": rows}


def _picture(sound: Sound) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """The spectrogram of a sound in dB and its ticks; of two channels, left above right."""
    audio = amplitude(sound.gain_db) * sound.audio
    images = [spectrogram_db(channel, sound.sample_rate) for channel in audio]
    ticks = frequency_ticks(images[0][1], sound.sample_rate)
    if len(images) == 1:
        return images[0][0], ticks
    below = [(share / 2, f"R {label}") for share, label in ticks[1::2]]
    above = [((share + 1) / 2, f"L {label}") for share, label in ticks[1::2]]
    return np.concatenate([image for image, _ in images[::-1]]), below + above
