"""The demo page: what arithmetic on latents sounds like, in one HTML file that opens from disk.

    write_demo([linear, baseline], tracks("synthetic", n_tracks=2), "figures/demo")

For each track and model: the autoencoded mix, the sum of the stems' latents, latents scaled by positive and
negative gains, and every stem as the difference of two latents, beside the waveforms that they stand for.
Audio is Opus; nothing is normalised. Where a block of sounds that are compared would exceed a true peak of
-1 dBTP, one gain is applied to all of it, and shown.

Axis legend: `S` source (stem), `T` samples, `W` windows, `C` latent channels, `L` latent frames. Latents are
those of `protocols.Chunk`, (W, C, L).
"""

import base64
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pandas as pd
from torch import Tensor

from .audio import AutoencoderLike, atomic_write, resample
from .loudness import amplitude, loudness_lufs, true_peak_dbtp
from .metrics import is_silent, mss, si_sdr_db, snr_db
from .plots import frequency_ticks, spectrogram_bytes, spectrogram_db
from .protocols import MIXTURE, Chunk, EvaluationConfig
from .tracks import Track

PEAK_DBTP = -1.0  # of the loudest sound of a block
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
OPUS_LEVEL = 0.78  # of libsndfile: about 60 kbit/s a channel, 25 dB above its own noise on music
PICTURE = (440, 120)  # pixels
LOUD_LU = 6.0  # louder than the waveform by so much: a warning
TRUTH = "waveform"
BLOCKS = {"mixture": "The mixture, scaled and summed", "stems": "Stems by subtraction"}
UNPUBLISHABLE = {"clip": "CC BY-NC-SA 3.0"}  # datasets whose sound may not be published here


@dataclass(frozen=True)
class Operation:
    """A row of the page: what is done to waveforms, to latents, and to decoded sound, for a chunk of a track.

    Rows of one `block` are compared with one another: they share the safety gain.
    """

    name: str
    title: str
    formula: str
    block: str
    waveform: Callable[[Chunk], Tensor]
    latent: Callable[[Chunk], Tensor]
    decoded: Callable[[Chunk], Tensor] | None


@dataclass
class Sound:
    """A tile of the page: audio (T,), its numbers, and the safety gain that the page applies."""

    audio: Tensor
    sample_rate: int
    numbers: dict[str, float]
    gain_db: float = 0.0


def operations(stem_names: Sequence[str], gains: Sequence[float]) -> list[Operation]:
    """The rows of the paper's page (autoencoded mix, latent addition, scaling, separation), and more."""
    total = " + ".join(f"Enc({name})" for name in stem_names)
    rows = [
        Operation(
            "mix", "Autoencoded mix", "Dec(Enc(mix))", "mixture",
            lambda c: c.signal(MIXTURE), lambda c: c.encode(MIXTURE), None,
        ),
        Operation(
            "sum", "Latent addition", f"Dec({total})", "mixture",
            lambda c: c.signal(MIXTURE), lambda c: sum(map(c.encode, c.names)), lambda c: c.decoded(MIXTURE),
        ),
    ]  # fmt: skip
    rows += [_scaling(gain) for gain in gains]
    return rows + [_separation(name) for name in stem_names]


def _scaling(gain: float) -> Operation:
    title = "Polarity inverted" if gain == -1 else f"Scaled by {gain:g}"
    title, formula = (text.replace("-", "−") for text in (title, f"Dec({gain:g} · Enc(mix))"))
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
) -> Path:
    """Write `index.html` and `demo.csv`, its numbers, into `folder`; returns the page's path.

    Of every track the `seconds` in which most stems sound, and these loudest. Raises ValueError for no model,
    no track, two of one name, gains that are not finite, and a track that may not be published.
    """
    if not models or not tracks:
        raise ValueError(f"a page needs a model and a track, got {len(models)} and {len(tracks)}")
    for kind, names in (("models", [m.name for m in models]), ("tracks", [t.name for t in tracks])):
        if len(set(names)) < len(names):
            raise ValueError(f"{kind} need different names, got {names}")
    if not all(math.isfinite(gain) for gain in gains):
        raise ValueError(f"gains must be finite, got {tuple(gains)}")
    for track in tracks:
        if track.dataset in UNPUBLISHABLE:
            licence = UNPUBLISHABLE[track.dataset]
            raise ValueError(f"track {track.name!r} is {licence}: it cannot be part of a published page")
    boards, numbers = {}, []
    rows = {track.name: operations(track.stem_names, gains) for track in tracks}
    for track in tracks:
        start_s, board = _board(rows[track.name], models, track, seconds, seed)
        boards[track.name] = start_s, board
        for row, tiles in board.items():
            for name, sound in tiles.items():
                place = {"track": track.name, "start_s": start_s, "operation": row, "sound": name}
                numbers.append(place | sound.numbers | {"safety_gain_db": sound.gain_db})
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(numbers).to_csv(folder / "demo.csv", index=False, float_format="%.4g")
    with atomic_write(folder / "index.html") as file:
        file.write(_page(rows, models, boards).encode())
    return folder / "index.html"


# ---------------------------------------------------------------- sounds

Board = dict[str, dict[str, Sound]]  # operation -> waveform or model -> sound


def _board(
    rows: Sequence[Operation], models: Sequence[AutoencoderLike], track: Track, seconds: float, seed: int
) -> tuple[float, Board]:
    """Where the excerpt of a track begins, in seconds, and its sounds."""
    start_s = _excerpt(track, seconds)
    config, chunks = EvaluationConfig(seed=seed), {}
    for model in sorted(models, key=lambda model: -model.sample_rate):
        rate = model.sample_rate
        n_samples = round(min(seconds, track.duration_s - start_s) * rate)
        chunks[model.name] = Chunk(model, track, round(start_s * rate), n_samples, config)
    best = next(iter(chunks.values()))  # of the highest rate: its waveforms are heard
    best_rate = best.model.sample_rate
    board: Board = {}
    for row in rows:
        truth = row.waveform(best)
        board[row.name] = {TRUTH: Sound(truth, best_rate, _levels(truth, best_rate))}
        for model in models:
            chunk, rate = chunks[model.name], model.sample_rate
            audio, own_truth = chunk.decode(row.latent(chunk)).cpu(), row.waveform(chunk)
            numbers = _levels(audio, rate) | _agreements("", audio, own_truth, rate)
            if row.decoded:  # the paper's protocol: the same operation on decoded sound
                numbers |= _agreements("linearity_", audio, row.decoded(chunk).cpu(), rate)
            numbers["louder_lu"] = numbers["lufs"] - _levels(own_truth, rate)["lufs"]
            board[row.name][model.name] = Sound(audio, rate, numbers)
    _make_safe(rows, board)
    return start_s, board


def _excerpt(track: Track, seconds: float) -> float:
    """Start, in whole seconds, of the stretch in which most stems sound, and the softest of these loudest."""
    stems, best = track.stems(8000, 0.0, track.duration_s), (-1, -math.inf, 0)
    for start_s in range(max(1, int(track.duration_s - seconds) + 1)):
        part = stems[:, start_s * 8000 : round((start_s + seconds) * 8000)]
        levels = part[~is_silent(part)].square().mean(1)
        best = max(best, (len(levels), float(levels.min()) if len(levels) else 0.0, -start_s))
    return float(-best[2])


def _levels(audio: Tensor, sample_rate: int) -> dict[str, float]:
    return {"lufs": loudness_lufs(audio[None], sample_rate), "true_peak_dbtp": true_peak_dbtp(audio[None])}


def _agreements(name: str, audio: Tensor, reference: Tensor, sample_rate: int) -> dict[str, float]:
    pair = audio[None], reference[None]
    return {
        f"{name}snr_db": snr_db(*pair).item(),
        f"{name}si_sdr_db": si_sdr_db(*pair).item(),
        f"{name}mss": mss(*pair, sample_rate).item(),
    }


def _make_safe(rows: Sequence[Operation], board: Board) -> None:
    """One gain for all sounds of a block, down to PEAK_DBTP where the loudest of them peaks higher."""
    for block in {row.block for row in rows}:
        sounds = [s for row in rows if row.block == block for s in board[row.name].values()]
        gain_db = min(0.0, PEAK_DBTP - max(sound.numbers["true_peak_dbtp"] for sound in sounds))
        for sound in sounds:
            sound.gain_db = gain_db


# ---------------------------------------------------------------- the page


def encoded(sound: Sound) -> bytes:
    """The sound at its safety gain as Ogg Opus, at the next rate that Opus has."""
    import soundfile

    rate = next((rate for rate in OPUS_RATES if rate >= sound.sample_rate), OPUS_RATES[-1])
    audio = resample(amplitude(sound.gain_db) * sound.audio, sound.sample_rate, rate)
    file = io.BytesIO()
    settings = {"format": "OGG", "subtype": "OPUS", "compression_level": OPUS_LEVEL}
    soundfile.write(file, audio.numpy(), rate, **settings)
    return file.getvalue()


def _page(
    rows: Mapping[str, Sequence[Operation]],
    models: Sequence[AutoencoderLike],
    boards: Mapping[str, tuple[float, Board]],
) -> str:
    with ThreadPoolExecutor() as workers:  # libsndfile works outside of Python's lock
        tracks = list(workers.map(lambda name: _described(rows[name], name, *boards[name]), boards))
    content = {"columns": [TRUTH, *(model.name for model in models)], "tracks": tracks, "loud_lu": LOUD_LU}
    web = files("lincae") / "web"
    html, css, code = ((web / f"demo.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    data = json.dumps(content, allow_nan=False).replace("</", "<\\/")  # no end tag within a script
    for mark, text in (("/*CSS*/", css), ("/*CODE*/", code), ("/*DATA*/", data)):
        html = html.replace(mark, text)
    return html.replace("/*SIZE*/", f"{len(html.encode()) / 1e6:.1f} MB")


def _described(rows: Sequence[Operation], name: str, start_s: float, board: Board) -> dict:
    sounds = [sound for tiles in board.values() for sound in tiles.values()]
    images = {id(s): spectrogram_db(amplitude(s.gain_db) * s.audio, s.sample_rate) for s in sounds}
    top = max(image.max() for image, _ in images.values())
    described = []
    for row in rows:
        tiles = {}
        for source, sound in board[row.name].items():
            image, extent = images[id(sound)]
            tiles[source] = {
                "audio": base64.b64encode(encoded(sound)).decode(),
                "image": base64.b64encode(spectrogram_bytes(image, top, "jpeg", PICTURE)).decode(),
                "ticks": frequency_ticks(extent, sound.sample_rate),
                "numbers": {k: round(v, 2) if math.isfinite(v) else None for k, v in sound.numbers.items()},
                "gain_db": round(sound.gain_db, 2),
            }
        described.append(
            {
                "name": row.name,
                "title": row.title,
                "formula": row.formula,
                "block": BLOCKS[row.block],
                "tiles": tiles,
            }
        )
    seconds = min(len(sound.audio) / sound.sample_rate for sound in sounds)
    return {"name": name, "start_s": start_s, "seconds": seconds, "rows": described}
