"""The protocols over tracks: one long-format frame, and nothing lost when a run is interrupted."""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from lincae.evaluation.protocols import MIXTURE, PROBES, PROTOCOLS, Chunk, EvaluationConfig, Stems
from lincae.interface import AutoencoderLike
from lincae.interop.models import listed, load
from lincae.machine import generator
from lincae.machine.files import atomic_write, tensors_in

LABELS = ("model", "dataset", "track", "protocol", "stem", "condition", "comparison", "status")
NUMBERS = ("chunk", "start_s", "gain", "n_sources")
METRICS = ("snr_db", "si_sdr_db", "mss", "mss_log", "rel_l2", "value")
METRICS += ("level_rel_l2", "constant_rel_l2", "shape_rel_l2")
COLUMNS = (*LABELS, *NUMBERS, *METRICS)
"""Columns of a frame, which has a row per (model, track, chunk, protocol, stem, condition, comparison).

- `protocol`: "reconstruction", "encoder_homogeneity", "decoder_homogeneity", "encoder_additivity",
  "decoder_additivity", "decoder_superposition", "separation", "latents"; of the probes
  "encoder_equivariance", "decoder_equivariance", "linear_fit"
- `comparison`: every linearity number comes with its controls
  - "linearity": the latent operation against the same operation on decoded sound (the paper's number)
  - "truth": the latent operation against the same operation on the true waveforms
  - "codec": plain reconstruction, Dec(Enc(x)) against x
  - "floor": one latent decoded with two noises; no operation can agree better
  - "swap": the latent operation against the decode of another track's latent: a decoder that ignores its
    latent scores there as well as anywhere
  - "input": in separation, the decoded mixture in place of the estimate
- `status`: "ok", or why the metrics are NaN: "silent", where the true signal is (RMS below
  `metrics.SILENCE_DBFS`), "silent decode", where only the decoded reference is, "missing", where the track
  lacks the stem, "alone", where all other sounds of a sum are silent, "window too short", where a shift
  would leave nothing to compare
- `mss` is with spectral convergence, `mss_log` without; `value` is a latent statistic, or the share that a
  linear map explains
- `level_rel_l2`, `constant_rel_l2`, `shape_rel_l2`: what `rel_l2` of a "linearity" row consists of
  (`lincae.evaluation.protocols.error_parts`); NaN in sums of less than all stems
"""
KINDS = dict.fromkeys(LABELS, "str") | dict.fromkeys((*NUMBERS, *METRICS), "float64") | {"chunk": "int64"}
SHORTEST_S = 0.1
"""Least length of a track: mel spectrograms need 50 ms."""
KNOWN = PROTOCOLS | PROBES
VERSION = 6
"""Version of the protocols: results of another are not continued."""

log = logging.getLogger(__name__)


def printable(name: str) -> str:
    """The name of a file as text for tables and pages: a byte that is not UTF-8 becomes `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def evaluate(
    model: AutoencoderLike,
    tracks: Sequence[Stems],
    protocols: Sequence[str] = tuple(PROTOCOLS),
    config: EvaluationConfig | None = None,
    store: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Rows of all `protocols` (by default the paper's) over all `tracks`: a frame of `COLUMNS`.

    With a `store` folder, finished chunks are kept there, and a later call with the same model, sound and
    configuration computes only what is missing. Tracks at another sample rate are resampled to the model's.
    Raises ValueError for unknown protocols, no tracks, tracks of one name, shorter than 0.1 s or that end
    before they say, and a model that returns another shape than asked for; as readers for unreadable files.
    """
    config = config or EvaluationConfig()
    if unknown := sorted(set(protocols) - set(KNOWN)):
        raise ValueError(f"unknown protocols {unknown}: use some of {tuple(KNOWN)}")
    absent = _check_tracks(model, tracks)
    kept_in = Store(store, model, config) if store else None
    frames = []
    for t, k, chunk in chunks(model, tracks, config, progress):
        path = kept_in.path(chunk, k, absent[t]) if kept_in else None
        frames.append(_measured(chunk, k, protocols, absent[t], path))
    return pd.concat(frames, ignore_index=True)


def _measured(
    chunk: Chunk, number: int, protocols: Sequence[str], absent: Sequence[str], path: Path | None
) -> pd.DataFrame:
    """Rows of a chunk in the order of KNOWN: those in the file at `path`, where there is one, and what it
    lacks, which is added to it."""
    table = read_frame(path) if path and path.is_file() else _frame([])
    done = set(_families(table))
    labels = {"model": printable(chunk.model.name), "dataset": printable(chunk.track.dataset)}
    labels |= {"track": printable(chunk.track.name), "chunk": number}
    labels["start_s"] = chunk.start / chunk.model.sample_rate
    rows = []
    for protocol in KNOWN:
        if protocol in protocols and protocol not in done:
            rows += [labels | row for row in KNOWN[protocol](chunk)]
            if protocol == "separation":
                missing = {"protocol": "separation", "comparison": "linearity", "condition": ""}
                rows += [labels | missing | {"stem": stem, "status": "missing"} for stem in absent]
    if rows:
        table = pd.concat([table, _frame(rows)], ignore_index=True) if len(table) else _frame(rows)
        if path:
            with atomic_write(path) as file:
                table.to_csv(file, index=False)
    order = {protocol: place for place, protocol in enumerate(KNOWN) if protocol in protocols}
    places = _families(table).map(order).dropna()
    return table.loc[places.sort_values(kind="stable").index]


def _families(table: pd.DataFrame) -> pd.Series:
    """The key in KNOWN of each row: "homogeneity" for "encoder_homogeneity"."""
    return table.protocol.str.split("_").str[-1]


def evaluate_models(
    models: str | Sequence[str],
    tracks: Sequence[Stems],
    protocols: Sequence[str] = tuple(PROTOCOLS),
    config: EvaluationConfig | None = None,
    store: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """`evaluate` of each model by name or path (see `lincae.interop.models.listed`), in one frame; one is in
    memory at a time. Raises ValueError for two models of one name, and as `load` and `evaluate`."""
    frames: dict[str, pd.DataFrame] = {}
    for source in listed(models):
        model = load(source, device)
        if model.name in frames:
            twice = f"two models are called {model.name!r}"
            raise ValueError(f"{twice}, the second is {source}: rename one folder")
        frames[model.name] = evaluate(model, tracks, protocols, config, store, progress)
    return pd.concat(frames.values(), ignore_index=True)


def check_stems(tracks: Sequence[Stems]) -> None:
    """Raises ValueError, saying what to do, where no track has two stems to add or to separate."""
    if not any(len(_parts(track)) > 1 for track in tracks):
        datasets = ", ".join(dict.fromkeys(printable(track.dataset) for track in tracks))
        lacks = f"{datasets} has no track with two stems, so nothing to add or to separate"
        raise ValueError(f"{lacks}: reconstruction and homogeneity can be measured of it")


def _parts(track: Stems) -> list[str]:
    return [name for name in track.stem_names if name != MIXTURE]


def _check_tracks(model: AutoencoderLike, tracks: Sequence[Stems]) -> list[list[str]]:
    """The stems that each track lacks and another has; warns of what is resampled, missing or alone."""
    names = [(printable(track.dataset), printable(track.name)) for track in tracks]
    if not tracks or len(set(names)) < len(names):
        raise ValueError(f"evaluation needs tracks of different names, one or more, got {names}")
    for track in tracks:
        if not SHORTEST_S <= track.duration_s < math.inf:
            lasts = f"track {track.name!r} lasts {track.duration_s:.3f} s"
            raise ValueError(f"{lasts}, evaluation needs {SHORTEST_S} s or more")
    if rates := sorted({track.sample_rate for track in tracks} - {model.sample_rate}):
        log.info("tracks at %s Hz are resampled to the %d Hz of %s", rates, model.sample_rate, model.name)
    stems = list(dict.fromkeys(name for track in tracks for name in _parts(track)))
    if len(stems) < 2:
        log.warning("no track has two stems: additivity and separation have no rows")
    absent = []
    for track in tracks:
        lacks = [stem for stem in stems if stem not in track.stem_names]
        absent.append(lacks)
        if lacks:
            log.warning("track %r has no %s: skipped and counted", track.name, ", ".join(lacks))
    return absent


# ---------------------------------------------------------------- chunks


def chunks(
    model: AutoencoderLike, tracks: Sequence[Stems], config: EvaluationConfig, progress: bool = False
) -> Iterator[tuple[int, int, Chunk]]:
    """(number of the track, number of the chunk, chunk) for all chunks of all tracks, made when asked for.

    Each comes with its stranger, the same chunk of the next track, where there is one. Latents and decodes of
    a stranger stay until its own track has used them, latents of the first track to the end.
    """
    cuts = [_cuts(track, model.sample_rate, config) for track in tracks]
    known: dict[tuple[int, int], tuple[dict, dict]] = {}

    def alone(t: int, k: int) -> Chunk:
        starts, total = cuts[t]
        stop = starts[k + 1] if k + 1 < len(starts) else total
        latents, decodes = known.setdefault((t, k), ({}, {}))
        return Chunk(model, tracks[t], starts[k], stop - starts[k], config, latents, decodes)

    n_chunks = sum(len(starts) for starts, _ in cuts)
    with tqdm(total=n_chunks, desc=model.name, unit="chunk", disable=not progress) as bar:
        for t, (starts, _) in enumerate(cuts):
            other = (t + 1) % len(tracks)
            for k in range(len(starts)):
                chunk = alone(t, k)
                if len(tracks) > 1:
                    chunk.stranger = alone(other, k % len(cuts[other][0]))
                yield t, k, chunk
                if t or len(tracks) == 1:
                    known.pop((t, k))
                bar.update()


def _cuts(track: Stems, sample_rate: int, config: EvaluationConfig) -> tuple[range, int]:
    """Where the chunks of a track begin and where the last one ends, in samples; a rest shorter than a window
    belongs to it. Nothing is listed, so that a length stated by a damaged file costs nothing."""
    total = int(min(track.duration_s, config.seconds or math.inf) * sample_rate)
    step = round(config.chunk_s * sample_rate)
    window = round(config.window_s * sample_rate)
    return range(0, max(total - window, 0) + 1, step), total


# ---------------------------------------------------------------- what was computed before

N_SEGMENTS = 16
TOLERANCE = 1e-3
"""Relative error within which two models agree, in each of N_SEGMENTS of a sound: another number of threads
rounds differently."""


class Store:
    """Finished chunks: a folder for each model, with a file for each chunk.

    A model is told apart by its fingerprint, which not every one has and which says nothing of the decoder,
    and by what it makes of one excerpt and of a difference of latents; a chunk by its sound and that of its
    stranger, its place, and the configuration.
    """

    def __init__(self, root: str | Path, model: AutoencoderLike, config: EvaluationConfig):
        """Raises ValueError for a damaged folder of a model, naming the file."""
        self._digests: dict[tuple[str, str, int], str] = {}
        self.settings = [VERSION, asdict(config) | {"batch_size": None}]
        fingerprint = model.fingerprint() if hasattr(model, "fingerprint") else ""
        found = _answers(model, config)
        for path in sorted(Path(root).glob(f"{_slug(model.name)}-*/model.safetensors")):
            if _agrees(path, fingerprint, found):
                self.folder = path.parent
                return
        content = save(found, {"fingerprint": fingerprint})
        self.folder = Path(root) / f"{_slug(model.name)}-{hashlib.sha256(content).hexdigest()[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / "model.safetensors") as file:
            file.write(content)

    def path(self, chunk: Chunk, number: int, absent: Sequence[str]) -> Path:
        """Where the rows of a chunk are kept."""
        track = chunk.track
        sounds = [self._digest(chunk), chunk.stranger and self._digest(chunk.stranger)]
        facts = [printable(track.dataset), printable(track.name), absent]
        facts += [number, chunk.start, chunk.n_samples, sounds]
        digest = hashlib.sha256(json.dumps([self.settings, facts]).encode()).hexdigest()
        return self.folder / f"{_slug(track.name)}-{number}-{digest[:16]}.csv"

    def _digest(self, chunk: Chunk) -> str:
        """A sha256 of the sound of a chunk and of its stems' names, computed once."""
        key = (chunk.track.dataset, chunk.track.name, chunk.start)
        if key not in self._digests:
            names = json.dumps(chunk.track.stem_names).encode()
            self._digests[key] = hashlib.sha256(names + chunk.stems.numpy().tobytes()).hexdigest()
        return self._digests[key]


def _answers(model: AutoencoderLike, config: EvaluationConfig) -> dict[str, Tensor]:
    """What a model makes of a window of noise that rises from -60 dB to 20 dB of full scale, and of the
    difference between its latent and that of its treble cut off, which no sound may have."""
    n_samples = round(config.window_s * model.sample_rate)
    noise = torch.randn(1, n_samples, generator=generator(0))
    sound = noise * torch.logspace(-3, 1, n_samples)
    z = model.encode(sound)
    difference = z - model.encode(F.avg_pool1d(sound, kernel_size=5, stride=1, padding=2))
    decode = partial(model.decode, length=n_samples, seed=config.seed)
    answers = {"latents": z, "audio": decode(z), "difference": decode(difference)}
    return {name: answer.float().cpu().contiguous() for name, answer in answers.items()}


def _agrees(path: Path, fingerprint: str, found: dict[str, Tensor]) -> bool:
    """Whether a file holds this fingerprint and these answers of a model."""
    try:
        with tensors_in(path) as file:
            if (file.metadata() or {}).get("fingerprint") != fingerprint:
                return False
            known = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove its folder") from error
    if {key: x.shape for key, x in known.items()} != {key: x.shape for key, x in found.items()}:
        return False
    for key, answer in found.items():
        parts = zip(answer.tensor_split(N_SEGMENTS, -1), known[key].tensor_split(N_SEGMENTS, -1), strict=True)
        if not all((ours - theirs).norm() <= TOLERANCE * theirs.norm() for ours, theirs in parts):
            return False
    return True


def _frame(rows: Sequence[dict]) -> pd.DataFrame:
    """Rows as a frame of COLUMNS, numbers as numbers where all are missing too."""
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(KINDS)


def read_frame(path: str | Path) -> pd.DataFrame:
    """A frame of `COLUMNS` as it was written; labels stay text (a track may be named "NA"). Metrics that it
    was written without are NaN."""
    missing = dict.fromkeys((*NUMBERS, *METRICS), "")
    frame = pd.read_csv(path, dtype=KINDS, keep_default_na=False, na_values=missing)
    return frame.reindex(columns=list(COLUMNS))


def _slug(name: str) -> str:
    """A name as the beginning of a file's, short enough for every file system."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)[:60]
