"""The demo page: what arithmetic on latents sounds like, in one HTML file or in a folder for any static host.

write_demo([linear, baseline], tracks("synthetic", n_tracks=2), "figures/demo")
"""

import base64
import io
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import soundfile
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lincae.bypass.model import BypassAutoencoder
from lincae.data.audio import resample
from lincae.data.tracks import Track
from lincae.evaluation.pictures import frequency_ticks, spectrogram_bytes, spectrogram_db
from lincae.evaluation.protocols import MIXTURE, Chunk, EvaluationConfig
from lincae.interface import AutoencoderLike
from lincae.interop.models import LIN_CAE
from lincae.interop.references import Pca, Resampler, StftAutoencoder
from lincae.listening import asset
from lincae.listening.live import LIVE_FILE, SCRIPT, check_live, write_live
from lincae.listening.loudness import amplitude, loudness_lufs, rms_dbfs, true_peak_dbtp
from lincae.listening.mixer import song_title
from lincae.machine.files import atomic_write
from lincae.metrics import is_silent, mss, si_sdr_db, snr_db
from lincae.reencoder.module import ReEncoder
from lincae.reencoder.pairs import Source, check_stereo, task_input

PEAK_DBTP = -1.0
"""The highest true peak of a page: one gain is applied to all sounds of a block that would exceed it."""

OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
OPUS_BIT_RATE = 64000  # a channel
PICTURE_PIXELS = (440, 120)
CARD_PIXELS = (1200, 630)
CARD_TAGS = """\
<meta property="og:type" content="website">
<meta property="og:title" content="Arithmetic on audio latents">
<meta property="og:image" content="{card}">
<meta name="twitter:card" content="summary_large_image">"""
SOUNDS, LIVE = "sounds", "live"
PAGES = ("index.html", "demo.html")
SOUND_FILE = r"\d+-\d+-\d+\.(ogg|flac)"
DATA_TAG = '<script type="application/json" id="data">'
"""Every page of ours has it, and hardly one of others."""
LIVE_TAG = f'\n<script src="{LIVE}/{SCRIPT}" defer></script>'
LOUD_LU = 6.0
"""A sound that is louder than the waveform by so much gets a warning."""

TRUTH = "waveform"
IN_STEREO = " in stereo"
SEPARATED = "separated "
RANDOM = "random c"
UNPUBLISHABLE = {"clip": "CC BY-NC-SA 3.0", "musdb": "of MUSDB18, which is for academic use only"}
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
    hosted: bool = False,
    url: str = "",
    live: bool = False,
) -> Path:
    """Write `index.html` and `demo.csv`, its numbers, into `folder`; returns the page's path.

    `hosted`: the folder is for a web server, at `url` if that is known. Sounds are files then, as Opus and as
    FLAC, and beside them are `card.png`, for previews of links, and `demo.html`, all in one file. `live`: on
    the hosted page stems are mixed as latents as well, and decoded in the browser, as by the first model.

    From every track come the `seconds` in which most stems sound, and these loudest. `modules`: those of
    mono-to-stereo by the names of their models; with any, each source in `stereo` has a section, its first
    `seconds`. Equal arguments give equal files, byte for byte.

    Raises ValueError for no model, no track, two of one name, gains that are not finite, a track or source
    that may not be published, a module of no model here or of bandwidth extension, and a source that is not
    stereo; LatentFileError for a module of another autoencoder; FileExistsError for a `hosted` folder that
    holds other files. With `live` raises as `lincae.listening.live.check_live` and `write_live`.
    """
    modules = modules or {}
    folder = Path(folder)
    _check(models, tracks, gains, modules, stereo)
    if hosted:
        _check_folder(folder)
    if live:
        check_live(models[0], tracks, seconds)
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

    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(numbers)
    table.to_csv(folder / "demo.csv", index=False, float_format="%.4g", errors="backslashreplace")
    columns = described(models)
    with ThreadPoolExecutor() as workers:  # codecs work outside of Python's lock
        songs = [section.name.removesuffix(IN_STEREO) for section in sections]
        numbers = [1 + list(dict.fromkeys(songs)).index(song) for song in songs]
        shown = list(workers.map(_shown, numbers, sections))
    single = _page(shown, columns)
    if not hosted:
        _write(folder / "index.html", single)
        return folder / "index.html"

    _write(folder / "demo.html", single)
    _store_sounds(folder, sections, shown)
    shutil.rmtree(folder / LIVE, ignore_errors=True)
    card(sections[0], columns).save(folder / "card.png")
    tags = CARD_TAGS.format(card=f"{url.rstrip('/')}/card.png" if url else "card.png")
    more = {}
    if live:
        starts_s = [section.start_s for section in sections[: len(tracks)]]
        titles = [told["title"] for told in shown[: len(tracks)]]
        more["live"] = write_live(models[0], tracks, starts_s, titles, seconds, folder / LIVE, seed)
        tags += LIVE_TAG
    _write(folder / "index.html", _page(shown, columns, files=True, tags=tags, **more))
    return folder / "index.html"


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


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


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds what no page wrote: it would be published, replaced or removed."""
    top = "|".join(map(re.escape, (*PAGES, "demo.csv", "card.png", SOUNDS, LIVE)))
    others = []
    for place, names in ((folder, top), (folder / SOUNDS, SOUND_FILE), (folder / LIVE, LIVE_FILE)):
        held = sorted(place.iterdir()) if place.exists() else []
        others += [path for path in held if not re.fullmatch(names, path.name)]
    for page in (folder / name for name in PAGES):
        if page.exists() and DATA_TAG.encode() not in page.read_bytes():
            others.append(page)
    if others:
        raise FileExistsError(f"{folder} holds other files than a page ({others[0]}): name another folder")


def described(models: Sequence[AutoencoderLike]) -> dict[str, dict[str, str]]:
    """What the columns of a page are, by the names of the models: `title`, and a sentence `about` it."""
    kinds = {model.name: _kind(model, models) for model in models}
    titles = [title for title, _ in kinds.values()]
    columns = {
        TRUTH: {"title": TRUTH, "about": "The operation on the waveform itself: what should be heard."}
    }
    for name, (title, about) in kinds.items():
        if titles.count(title) > 1:
            title = f"{title}: {name}"
        columns[name] = {"title": title, "about": f"{about} ({name})"}
    return columns


def _kind(model: AutoencoderLike, models: Sequence[AutoencoderLike]) -> tuple[str, str]:
    linearity = _linearity(model)
    if linearity == {"homogeneity", "additivity"}:
        if isinstance(model, BypassAutoencoder):
            return "linear (ours)", "Its latents add and scale by construction, its decodes by training."
        return "linear, the paper's way", "Trained so that its latents add and scale as sound does."
    if linearity == {"homogeneity"}:
        return "scales, does not add", "Trained so that its latents scale as sound does, and no more."
    if linearity == {"additivity"}:
        return "adds, does not scale", "Trained so that its latents add as sound does, and no more."
    if linearity is not None:
        network = model.config.network
        same = any(_linearity(other) and other.config.network == network for other in models)
        title = "same network, not linear" if same else "not linear"
        return title, "Trained in the same way, but without arithmetic on its latents."
    if isinstance(model, StftAutoencoder | Resampler | Pca):
        return "linear reference", "Nothing is learned: exactly linear, whatever the sound."
    if model.name in LIN_CAE:
        return f"the authors' {model.name}", "The weights that the authors of the method released."
    return model.name, "An autoencoder that was not trained to be linear."


def _linearity(model: AutoencoderLike) -> set[str] | None:
    """The parts of linearity that a model of this package was trained for; None for one that does not say."""
    training = getattr(model, "metadata", {}).get("training", {})
    if "linearity" not in training:
        return None
    return {part for part in ("homogeneity", "additivity") if training["linearity"][part]}


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
    return Section(source.name + IN_STEREO, math.nan, _board(models, heard, stereo=True))


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


def _page(
    tracks: Sequence[dict],
    columns: Mapping[str, Mapping[str, str]],
    files: bool = False,
    tags: str = "",
    **more: Any,
) -> str:
    content = {
        "tracks": tracks,
        "columns": columns,
        "truth": TRUTH,
        "loud_lu": LOUD_LU,
        "files": files,
    } | more
    data = json.dumps(content, allow_nan=False, default=lambda sound: base64.b64encode(sound).decode())
    data = data.replace("</", "<\\/")  # no end tag within a script
    html = asset("demo.html").replace("/*CARD*/", tags)
    for mark, text in (("/*CSS*/", asset("demo.css")), ("/*CODE*/", asset("demo.js")), ("/*DATA*/", data)):
        html = html.replace(mark, text)
    return html.replace("/*SIZE*/", "" if files else f"{len(html.encode()) / 1e6:.1f} MB in one file.")


def _shown(number: int, section: Section) -> dict[str, Any]:
    """What the page is told of a section: pictures, numbers, and sounds as Opus."""
    sounds = [sound for tiles in section.board.values() for sound in tiles.values()]
    images = {id(sound): _picture(sound) for sound in sounds}
    top_db = max(image.max() for image, _ in images.values())
    rows = []
    for row, tiles in section.board.items():
        shown = {}
        for source, sound in tiles.items():
            image, ticks = images[id(sound)]
            numbers = {}
            for name, value in sound.numbers.items():
                numbers[name] = round(value, 2) if math.isfinite(value) else None
            shown[source] = {
                "audio": encoded(sound),
                "image": spectrogram_bytes(image, top_db, "jpeg", PICTURE_PIXELS),
                "ticks": ticks,
                "numbers": numbers,
                "gain_db": round(sound.gain_db, 2),
            }
        rows.append({"name": row, "tiles": shown})
    seconds = min(sound.audio.shape[1] / sound.sample_rate for sound in sounds)
    return {"name": section.name, "title": _title(number, section), "seconds": seconds, "rows": rows}


def _title(number: int, section: Section) -> str:
    """A track by its music: its name, or where that is a number, what sounds in it."""
    name = section.name.removesuffix(IN_STEREO)
    title = song_title(name, number)
    if name != section.name:
        return title + IN_STEREO
    if title == name:
        return title
    stems = [row.removeprefix(SEPARATED) for row in section.board if row.startswith(SEPARATED)]
    heard = [stem for stem in stems if not is_silent(section.board[SEPARATED + stem][TRUTH].audio).all()]
    return f"{title}: {', '.join(heard)}" if heard else title


def _store_sounds(folder: Path, sections: Sequence[Section], shown: Sequence[dict[str, Any]]) -> None:
    """Write all sounds into `folder`, as Opus and as FLAC; tiles name their files, without a suffix."""
    shutil.rmtree(folder / SOUNDS, ignore_errors=True)
    (folder / SOUNDS).mkdir()
    for number, (section, told) in enumerate(zip(sections, shown, strict=True)):
        for place, row in enumerate(told["rows"]):
            for column, (source, tile) in enumerate(row["tiles"].items()):
                sound = section.board[row["name"]][source]
                name = f"{SOUNDS}/{number}-{place}-{column}"
                (folder / f"{name}.ogg").write_bytes(tile["audio"])
                audio = (amplitude(sound.gain_db) * sound.audio).T.numpy()
                soundfile.write(folder / f"{name}.flac", audio, sound.sample_rate, subtype="PCM_16")
                tile["audio"] = name


def card(section: Section, columns: Mapping[str, Mapping[str, str]]) -> Image.Image:
    """The picture that a link to the page is shown by: a sum of latents beside its waveform."""
    picture = Image.new("RGB", CARD_PIXELS, "#18202c")
    pen = ImageDraw.Draw(picture)
    pen.text((60, 44), "Arithmetic on audio latents", "#ffffff", ImageFont.load_default(58))
    tiles = section.board.get("sum", section.board["mix"])
    formula = (
        "Dec(Enc(a) + Enc(b) + ...) = a + b + ...?" if "sum" in section.board else "Dec(Enc(mix)) = mix?"
    )
    pen.text((60, 122), formula, "#aebbd0", ImageFont.load_default(34))
    shown = list(tiles)[:3]
    width = (CARD_PIXELS[0] - 120 - 30 * (len(shown) - 1)) // len(shown)
    images = {name: _picture(tiles[name])[0] for name in shown}
    top_db = max(image.max() for image in images.values())
    for index, name in enumerate(shown):
        left = 60 + index * (width + 30)
        spectrogram = spectrogram_bytes(images[name], top_db, "png", (width, 330))
        picture.paste(Image.open(io.BytesIO(spectrogram)), (left, 200))
        pen.text((left, 545), columns[name]["title"], "#ffffff", ImageFont.load_default(30))
    return picture


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
