"""The demo page: what arithmetic on latents sounds like, in one HTML file that opens from disk.

    write_demo([linear, baseline], tracks("synthetic", n_tracks=2), "figures/demo")

For each track and model: the autoencoded mix, the sum of the stems' latents, latents scaled by positive and
negative gains, and every stem as the difference of two latents, beside the waveforms that they stand for.
A track without stems has what needs none: the mix and its multiples. With modules of mono-to-stereo, a
section more: mono, left and right, and what the modules make of mono. Audio is Opus; nothing is normalised.
Where a block of sounds that are compared would exceed a true peak of -1 dBTP, one gain is applied to all of
it, and shown.

Latents are those of `protocols.Chunk`, (windows, C, L), in the stereo section (channels, C, L).
"""

import base64
import io
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from torch import Tensor

from lincae.data.audio import resample
from lincae.data.tracks import Track
from lincae.evaluation.plots import frequency_ticks, spectrogram_bytes, spectrogram_db
from lincae.evaluation.protocols import MIXTURE, Chunk, EvaluationConfig
from lincae.files import atomic_write
from lincae.interface import AutoencoderLike
from lincae.listening.controls import asset
from lincae.listening.loudness import amplitude, loudness_lufs, rms_dbfs, true_peak_dbtp
from lincae.metrics import is_silent, mss, si_sdr_db, snr_db
from lincae.reencoder.module import ReEncoder
from lincae.reencoder.pairs import Source, check_stereo, task_input

PEAK_DBTP = -1.0
"""The highest true peak of the sounds of a block."""

OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
OPUS_LEVEL = 0.78
"""libsndfile's compression level: about 60 kbit/s a channel, 25 dB above its own noise on music."""

PICTURE_PIXELS = (440, 120)
LOUD_LU = 6.0
"""A sound that is louder than the waveform by so much gets a warning."""

TRUTH = "waveform"
BLOCKS = {
    "mixture": "The mixture, scaled and summed",
    "stems": "Stems by subtraction",
    "stereo": "Mono to stereo",
}
UNPUBLISHABLE = {"clip": "CC BY-NC-SA 3.0"}
"""Data sets whose sound may not be published here, and why."""


@dataclass(frozen=True)
class Row:
    """A row of the page. Rows of one `block` are compared with one another: they share the safety gain."""

    name: str
    title: str
    formula: str
    block: str


@dataclass(frozen=True)
class Operation(Row):
    """A row with what is done to waveforms, to latents, and to decoded sound, for a chunk of a track."""

    waveform: Callable[[Chunk], Tensor]
    latent: Callable[[Chunk], Tensor]
    decoded: Callable[[Chunk], Tensor] | None


@dataclass
class Sound:
    """A tile of the page: audio (channels, T), its numbers, and the safety gain that the page applies."""

    audio: Tensor
    sample_rate: int
    numbers: dict[str, float]
    gain_db: float = 0.0


Board = dict[str, dict[str, Sound]]  # row -> waveform or model -> sound


@dataclass
class Section:
    """What is behind a tab of the page, from `start_s` of a track on; `about`: a paragraph above the rows."""

    name: str
    start_s: float
    rows: Sequence[Row]
    board: Board
    about: str = ""


STEREO_ROWS = (
    Row("mono", "Mono", "Dec(Enc(mono)), mono the mean of left and right", "stereo"),
    Row("stereo", "Left and right", "Dec(Enc(left)) and Dec(Enc(right))", "stereo"),
    Row("oracle c", "Re-Encoder, the true c", "Dec(M(Enc(mono), c)), c of the true left and right", "stereo"),
    Row("random c", "Re-Encoder, a random c", "Dec(M(Enc(mono), c)), c drawn from the prior", "stereo"),
)
STEREO_ABOUT = (
    "A Re-Encoder module M turns the latent of a mono sound into latents of left and right; between encoder "
    "and decoder no waveform is touched. A condition c of a few numbers tells it where to put the sounds: "
    "the true c is computed from the latents of the true left and right, a random one knows nothing of them. "
    "How far that works, and how far not, notebook 10 measures. Pictures: left above, right below."
)


def operations(stem_names: Sequence[str], gains: Sequence[float]) -> list[Operation]:
    """The rows of the paper's page (autoencoded mix, latent addition, scaling, separation), and more.

    With a single stem there is nothing to add or to separate: the mix and its multiples are left.
    """
    mix = Operation(
        "mix", "Autoencoded mix", "Dec(Enc(mix))", "mixture",
        lambda c: c.signal(MIXTURE), lambda c: c.encode(MIXTURE), None,
    )  # fmt: skip
    scaled = [_scaling(gain) for gain in gains]
    if len(stem_names) == 1:
        return [mix, *scaled]

    total = " + ".join(f"Enc({name})" for name in stem_names)
    added = Operation(
        "sum", "Latent addition", f"Dec({total})", "mixture",
        lambda c: c.signal(MIXTURE), lambda c: sum(map(c.encode, c.names)), lambda c: c.decoded(MIXTURE),
    )  # fmt: skip
    return [mix, added, *scaled, *(_separation(name) for name in stem_names)]


def _scaling(gain: float) -> Operation:
    title = "Polarity inverted" if gain == -1 else f"Scaled by {gain:g}".replace("-", "−")
    formula = f"Dec({gain:g} · Enc(mix))".replace("-", "−")
    return Operation(
        f"gain {gain:g}", title, formula, "mixture", lambda c: gain * c.signal(MIXTURE),
        lambda c: gain * c.encode(MIXTURE), lambda c: gain * c.decoded(MIXTURE),
    )  # fmt: skip


def _separation(stem: str) -> Operation:
    rest = f"without {stem}"
    return Operation(
        f"separated {stem}", f"Separated {stem}", f"Dec(Enc(mix) − Enc(mix without {stem}))", "stems",
        lambda c: c.signal(stem), lambda c: c.encode(MIXTURE) - c.encode(rest), lambda c: c.decoded(stem),
    )  # fmt: skip


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
    if not models or not tracks:
        raise ValueError(f"a page needs a model and a track, got {len(models)} and {len(tracks)}")
    for kind, named in (("models", models), ("tracks", tracks)):
        names = [one.name for one in named]
        if len(set(names)) < len(names):
            raise ValueError(f"{kind} need different names, got {names}")
    if not all(math.isfinite(gain) for gain in gains):
        raise ValueError(f"gains must be finite, got {tuple(gains)}")
    for track in (*tracks, *stereo):
        if track.dataset in UNPUBLISHABLE:
            licence = UNPUBLISHABLE[track.dataset]
            raise ValueError(f"track {track.name!r} is {licence}: it cannot be part of a published page")
    able = _with_modules(models, modules or {})
    sections = [_track_section(models, track, seconds, gains, seed) for track in tracks]
    if able:
        sections += [_stereo_section(able, source, seconds, seed) for source in stereo]

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


# ---------------------------------------------------------------- sounds


def _track_section(
    models: Sequence[AutoencoderLike], track: Track, seconds: float, gains: Sequence[float], seed: int
) -> Section:
    start_s = _excerpt(track, seconds)
    chunks = {}
    for model in sorted(models, key=lambda model: -model.sample_rate):
        start = round(start_s * model.sample_rate)
        n_samples = round(min(seconds, track.duration_s - start_s) * model.sample_rate)
        chunks[model.name] = Chunk(model, track, start, n_samples, EvaluationConfig(seed=seed))
    best = next(iter(chunks.values()))  # that of the highest rate: its waveforms are heard
    best_rate = best.model.sample_rate

    rows = operations(track.stem_names, gains)
    board: Board = {}
    for row in rows:
        heard = row.waveform(best)[None]
        board[row.name] = {TRUTH: Sound(heard, best_rate, _levels(heard, best_rate))}
        for model in models:
            chunk = chunks[model.name]
            rate = model.sample_rate
            truth = row.waveform(chunk)[None]
            audio = chunk.decode(row.latent(chunk)).cpu()[None]
            numbers = _levels(audio, rate) | _agreements("", audio, truth, rate)
            if row.decoded:  # the paper's protocol: the same operation on decoded sound
                numbers |= _agreements("linearity_", audio, row.decoded(chunk).cpu()[None], rate)
            numbers["louder_lu"] = numbers["lufs"] - _levels(truth, rate)["lufs"]
            board[row.name][model.name] = Sound(audio, rate, numbers)
    _make_safe(rows, board)
    return Section(track.name, start_s, rows, board)


def _with_modules(
    models: Sequence[AutoencoderLike], modules: Mapping[str, ReEncoder]
) -> list[tuple[AutoencoderLike, ReEncoder]]:
    """Models that have a module of mono-to-stereo, with it."""
    if unknown := sorted(set(modules) - {model.name for model in models}):
        raise ValueError(f"modules are of models of the page, got {unknown}")
    for name, module in modules.items():
        if not module.stereo:
            raise ValueError(f"the module of {name} is not of mono-to-stereo, but of {module.config.task!r}")
    able = [(model, modules[model.name]) for model in models if model.name in modules]
    for model, module in able:
        module.check_model(model)
    return able


def _stereo_section(
    models: Sequence[tuple[AutoencoderLike, ReEncoder]], source: Source, seconds: float, seed: int
) -> Section:
    def read(rate: int) -> dict[str, Tensor]:
        target = check_stereo(source.read(rate), source.name)[:, : round(seconds * rate)]
        return {"mono": task_input(target, "stereo", rate), "stereo": target, "oracle c": target}

    board: Board = {row.name: {} for row in STEREO_ROWS}
    best_rate = max(model.sample_rate for model, _ in models)  # its waveforms are heard
    best = read(best_rate)
    for name in ("mono", "stereo"):
        board[name][TRUTH] = Sound(best[name], best_rate, _image(best[name], best_rate))
    for model, module in models:
        rate = model.sample_rate
        truth = read(rate)
        target = truth["stereo"]
        latents = {name: model.encode(truth[name]) for name in ("mono", "stereo")}
        oracle = module.oracle(latents["stereo"][None])
        latents["oracle c"] = module.process(latents["mono"], oracle)[0]
        latents["random c"] = module.process(latents["mono"], seed=seed)[0]
        for name, z in latents.items():
            audio = model.decode(z, length=target.shape[-1], seed=seed).cpu()
            numbers = _image(audio, rate)
            if name in truth:  # another image than the true one is not compared with it
                numbers |= _agreements("", audio, truth[name], rate)
            numbers["louder_lu"] = numbers["lufs"] - _image(truth.get(name, target), rate)["lufs"]
            board[name][model.name] = Sound(audio, rate, numbers)
    _make_safe(STEREO_ROWS, board)
    return Section(f"{source.name} in stereo", math.nan, STEREO_ROWS, board, STEREO_ABOUT)


def _image(audio: Tensor, sample_rate: int) -> dict[str, float]:
    """Levels of audio (1 or 2, T) on two loudspeakers, and of left over right, and side over mid."""
    left, right = audio.expand(2, -1).double()
    level = [rms_dbfs(signal) for signal in (left, right, left - right, left + right)]
    image = {"balance_db": level[0] - level[1], "side_db": level[2] - level[3]}
    return _levels(torch.stack([left, right]), sample_rate) | image


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


def _levels(audio: Tensor, sample_rate: int) -> dict[str, float]:
    return {"lufs": loudness_lufs(audio, sample_rate), "true_peak_dbtp": true_peak_dbtp(audio)}


def _agreements(name: str, audio: Tensor, reference: Tensor, sample_rate: int) -> dict[str, float]:
    """Means over the channels."""
    return {
        f"{name}snr_db": snr_db(audio, reference).mean().item(),
        f"{name}si_sdr_db": si_sdr_db(audio, reference).mean().item(),
        f"{name}mss": mss(audio, reference, sample_rate).mean().item(),
    }


def _make_safe(rows: Sequence[Row], board: Board) -> None:
    """One gain for all sounds of a block, down to PEAK_DBTP where the loudest of them peaks higher."""
    for block in {row.block for row in rows}:
        sounds = [s for row in rows if row.block == block for s in board[row.name].values()]
        gain_db = min(0.0, PEAK_DBTP - max(sound.numbers["true_peak_dbtp"] for sound in sounds))
        for sound in sounds:
            sound.gain_db = gain_db


# ---------------------------------------------------------------- the page


def encoded(sound: Sound) -> bytes:
    """The sound at its safety gain as Ogg Opus, at the next rate that Opus has."""
    rate = next((rate for rate in OPUS_RATES if rate >= sound.sample_rate), OPUS_RATES[-1])
    audio = resample(amplitude(sound.gain_db) * sound.audio, sound.sample_rate, rate)
    file = io.BytesIO()
    settings = {"format": "OGG", "subtype": "OPUS", "compression_level": OPUS_LEVEL}
    soundfile.write(file, audio.T.numpy(), rate, **settings)
    return with_ogg_serial(file.getvalue(), 1)


def with_ogg_serial(ogg: bytes, serial: int) -> bytes:
    """An Ogg file with another serial number of its stream (RFC 3533, section 6): libsndfile draws one by the
    clock, so that equal sounds would be different files."""
    pages = []
    at = 0
    while at < len(ogg):
        lacing = ogg[at + 27 : at + 27 + ogg[at + 26]]
        end = at + 27 + len(lacing) + sum(lacing)
        page = bytearray(ogg[at:end])
        page[14:18] = serial.to_bytes(4, "little")
        page[22:26] = bytes(4)
        page[22:26] = _ogg_checksum(bytes(page)).to_bytes(4, "little")
        pages.append(bytes(page))
        at = end
    return b"".join(pages)


REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 by the polynomial of zlib, but with the bits in the other order, and from 0."""
    mirrored = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def _page(sections: Sequence[Section]) -> str:
    with ThreadPoolExecutor() as workers:  # libsndfile works outside of Python's lock
        content = {"tracks": list(workers.map(_described, sections)), "truth": TRUTH, "loud_lu": LOUD_LU}
    data = json.dumps(content, allow_nan=False).replace("</", "<\\/")  # no end tag within a script
    html = asset("demo.html")
    for mark, text in (("/*CSS*/", asset("demo.css")), ("/*CODE*/", asset("demo.js")), ("/*DATA*/", data)):
        html = html.replace(mark, text)
    return html.replace("/*SIZE*/", f"{len(html.encode()) / 1e6:.1f} MB")


def _described(section: Section) -> dict:
    sounds = [sound for tiles in section.board.values() for sound in tiles.values()]
    images = {id(sound): _picture(sound) for sound in sounds}
    top_db = max(image.max() for image, _ in images.values())
    rows = []
    for row in section.rows:
        tiles = {}
        for source, sound in section.board[row.name].items():
            image, ticks = images[id(sound)]
            picture = spectrogram_bytes(image, top_db, "jpeg", PICTURE_PIXELS)
            numbers = {}
            for name, value in sound.numbers.items():
                numbers[name] = round(value, 2) if math.isfinite(value) else None
            tiles[source] = {
                "audio": base64.b64encode(encoded(sound)).decode(),
                "image": base64.b64encode(picture).decode(),
                "ticks": ticks,
                "numbers": numbers,
                "gain_db": round(sound.gain_db, 2),
            }
        titles = {"name": row.name, "title": row.title, "formula": row.formula, "block": BLOCKS[row.block]}
        rows.append(titles | {"tiles": tiles})
    return {
        "name": section.name,
        "about": section.about,
        "seconds": min(sound.audio.shape[1] / sound.sample_rate for sound in sounds),
        "columns": list(dict.fromkeys(source for tiles in section.board.values() for source in tiles)),
        "rows": rows,
    }


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
