"""The protocols over tracks: one long-format frame, and nothing lost when a run is interrupted.

Nothing is averaged here: one row per (model, track, chunk, protocol, stem, condition, comparison).
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from lincae import metrics
from lincae.checkpoints import tensors_in
from lincae.evaluation.probes import PROBES
from lincae.evaluation.protocols import MIXTURE, PROTOCOLS, Chunk, EvaluationConfig, Stems
from lincae.files import atomic_write, printable
from lincae.interface import AutoencoderLike
from lincae.interop.models import listed, load
from lincae.machine import generator

LABELS = ("model", "dataset", "track", "protocol", "stem", "condition", "comparison", "status")
NUMBERS = ("chunk", "start_s", "gain", "n_sources")
METRICS = ("snr_db", "si_sdr_db", "mss", "mss_log", "rel_l2", "value")
METRICS += ("level_rel_l2", "constant_rel_l2", "shape_rel_l2")
COLUMNS = (*LABELS, *NUMBERS, *METRICS)
"""Columns of a frame.

- `protocol`: "reconstruction", "encoder_homogeneity", "decoder_homogeneity", "encoder_additivity",
  "decoder_additivity", "decoder_superposition", "separation", "latents"; of the probes
  "encoder_equivariance", "decoder_equivariance", "linear_fit"
- `comparison`: see `lincae.evaluation.protocols`
- `status`: "ok", or why the metrics are NaN: "silent", where the true signal is (RMS below
  `metrics.SILENCE_DBFS`), "silent decode", where only the decoded reference is, "missing", where the track
  lacks the stem, "alone", where all other sounds of a sum are silent, "window too short", where a shift
  would leave nothing to compare
- `mss` is with spectral convergence, `mss_log` without; `value` is a latent statistic, or the share that a
  linear map explains
- `level_rel_l2`, `constant_rel_l2`, `shape_rel_l2`: what `rel_l2` of a "linearity" row consists of
  (`lincae.evaluation.protocols.error_parts`); NaN in sums of less than all stems
"""
SHORTEST_S = 0.1
"""Least length of a track: mel spectrograms need 50 ms."""
KNOWN = PROTOCOLS | PROBES
VERSION = 5
"""Version of the protocols: results of another are not continued."""

log = logging.getLogger(__name__)


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

    Raises ValueError for unknown protocols, no tracks, tracks of one name, tracks shorter than 0.1 s, tracks
    that end before they say, and a model that returns another shape than asked for, naming it; for unreadable
    files what their reader raises.
    """
    config = config or EvaluationConfig()
    if unknown := sorted(set(protocols) - set(KNOWN)):
        raise ValueError(f"unknown protocols {unknown}: use some of {tuple(KNOWN)}")
    absent = _check_tracks(model, tracks)
    music = _Music(model, tracks, config)
    kept_in = Store(store, model, config) if store else None
    frames = []
    with tqdm(total=music.n_chunks, desc=model.name, unit="chunk", disable=not progress) as bar:
        for t, track in enumerate(tracks):
            for k in range(len(music.cuts[t])):
                chunk = music.chunk(t, k)
                kept = _Kept()
                if kept_in:
                    sounds = [music.digest(chunk), chunk.stranger and music.digest(chunk.stranger)]
                    kept = _Kept(kept_in.path(chunk, k, absent[t], sounds))
                labels = {"model": printable(model.name), "dataset": printable(track.dataset)}
                labels |= {"track": printable(track.name), "chunk": k}
                labels["start_s"] = chunk.start / model.sample_rate
                for protocol in kept.missing(protocols):
                    rows = list(KNOWN[protocol](chunk))
                    if protocol == "separation":
                        rows += [MISSING | {"stem": stem} for stem in absent[t]]
                    kept.hold([labels | row for row in rows])
                kept.write()
                frames.append(kept.rows(protocols))
                music.forget(t, k)
                bar.update()
    return pd.concat(frames, ignore_index=True)


def evaluate_models(
    models: str | Sequence[str],
    tracks: Sequence[Stems],
    protocols: Sequence[str] = tuple(PROTOCOLS),
    config: EvaluationConfig | None = None,
    store: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """`evaluate` of each model by name or path (see `lincae.interop.models.listed`), in one frame.

    One model is in memory at a time. Raises ValueError for two models of one name, whose rows could not be
    told apart, and as `lincae.interop.models.load` and `evaluate`.
    """
    frames: dict[str, pd.DataFrame] = {}
    for source in listed(models):
        model = load(source, device)
        if model.name in frames:
            raise ValueError(
                f"two models are called {model.name!r}, the second is {source}: rename one folder"
            )
        frames[model.name] = evaluate(model, tracks, protocols, config, store, progress)
    return pd.concat(frames.values(), ignore_index=True)


def kernel_distance(
    model: AutoencoderLike,
    tracks: Sequence[Stems],
    embed: Callable[[Tensor, int], Tensor],
    config: EvaluationConfig | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Kernel Audio Distance of the reconstructed mixtures (paper 4.2), a frame of `COLUMNS` with `value`.

    The paper's text compares originals with reconstructions: comparison "codec", the reference being the
    originals. Its footnote compares one half of the reconstructed tracks with the other: "halves". "floor" is
    the same of the originals: what the choice of tracks alone amounts to. `embed`: audio (1, T) and its
    sample rate to (n, D), such as `ClapEmbedder.embed`. Raises ValueError for fewer than two
    tracks, and for fewer than two embeddings in a half.
    """
    config = config or EvaluationConfig()
    _check_tracks(model, tracks)
    if len(tracks) < 2:
        raise ValueError(f"KAD compares sets of tracks and needs two or more, got {len(tracks)}")
    music = _Music(model, tracks, config)
    true: tuple[list[Tensor], list[Tensor]] = ([], [])
    decoded: tuple[list[Tensor], list[Tensor]] = ([], [])
    for t in tqdm(range(len(tracks)), f"{model.name}, KAD", disable=not progress):
        for k in range(len(music.cuts[t])):
            chunk = music.chunk(t, k)
            true[t % 2].append(embed(chunk.signal(MIXTURE)[None], model.sample_rate).cpu())
            decoded[t % 2].append(embed(chunk.decoded(MIXTURE)[None], model.sample_rate).cpu())
            music.forget(t, k)
    pairs = {
        "codec": (true[0] + true[1], decoded[0] + decoded[1]),
        "halves": decoded,
        "floor": true,
    }
    rows = []
    for comparison, (reference, evaluated) in pairs.items():
        distance = metrics.kad(torch.cat(reference), torch.cat(evaluated))
        rows.append({"comparison": comparison, "value": distance})
    labels = {"model": model.name, "dataset": tracks[0].dataset, "track": "all", "protocol": "kad"}
    labels |= {"stem": MIXTURE, "condition": "", "status": "ok", "chunk": 0}
    return _frame([labels | row for row in rows])


MISSING = {"protocol": "separation", "comparison": "linearity", "condition": "", "status": "missing"}


def check_stems(tracks: Sequence[Stems]) -> None:
    """Raises ValueError, saying what to do, where no track has two stems to add or to separate."""
    if not any(len(_parts(track)) > 1 for track in tracks):
        datasets = ", ".join(dict.fromkeys(printable(track.dataset) for track in tracks))
        raise ValueError(
            f"{datasets} has no track with two stems, so nothing to add or to separate:"
            " reconstruction and homogeneity can be measured of it"
        )


def _parts(track: Stems) -> list[str]:
    return [name for name in track.stem_names if name != MIXTURE]


def _check_tracks(model: AutoencoderLike, tracks: Sequence[Stems]) -> list[list[str]]:
    """The stems that each track lacks and another has; says once what is resampled, missing or alone."""
    names = [(printable(track.dataset), printable(track.name)) for track in tracks]
    if not tracks or len(set(names)) < len(names):
        raise ValueError(f"evaluation needs tracks of different names, one or more, got {names}")
    for track in tracks:
        if not SHORTEST_S <= track.duration_s < math.inf:
            lasts = f"track {track.name!r} lasts {track.duration_s:.3f} s"
            raise ValueError(f"{lasts}, evaluation needs {SHORTEST_S} s or more")
    if rates := sorted({track.sample_rate for track in tracks} - {model.sample_rate}):
        log.warning("tracks at %s Hz are resampled to the %d Hz of %s", rates, model.sample_rate, model.name)
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


@dataclass(frozen=True)
class Cuts(Sequence):
    """(start, n_samples) of the chunks of a track; a rest shorter than a window belongs to the last.

    Nothing is listed in memory, so that a length stated by a damaged file costs nothing.
    """

    total: int
    step: int
    window: int

    def __len__(self) -> int:
        return max(self.total - self.window, 0) // self.step + 1

    def __getitem__(self, k: int) -> tuple[int, int]:
        if not 0 <= k < len(self):
            raise IndexError(f"chunk {k} of {len(self)}")
        start = k * self.step
        stop = start + self.step if k + 1 < len(self) else self.total
        return start, stop - start


def cuts(track: Stems, sample_rate: int, config: EvaluationConfig) -> Cuts:
    """The chunks of a track, in samples at `sample_rate`."""
    seconds = min(track.duration_s, config.seconds or math.inf)
    step = round(config.chunk_s * sample_rate)
    return Cuts(int(seconds * sample_rate), step, round(config.window_s * sample_rate))


class _Music:
    """The chunks of tracks, made when they are asked for. Each comes with its stranger, the same chunk of the
    next track; latents of a stranger stay until its own track has used them."""

    def __init__(self, model: AutoencoderLike, tracks: Sequence[Stems], config: EvaluationConfig):
        self.model = model
        self.tracks = tracks
        self.config = config
        self.cuts = [cuts(track, model.sample_rate, config) for track in tracks]
        self.n_chunks = sum(map(len, self.cuts))
        self._latents: dict[tuple[int, int], dict[str, Tensor]] = {}
        self._digests: dict[tuple[str, str, int], str] = {}

    def chunk(self, t: int, k: int) -> Chunk:
        """Chunk `k` of track `t` with its stranger; a single track has none."""
        chunk = self._alone(t, k)
        if len(self.tracks) > 1:
            other = (t + 1) % len(self.tracks)
            chunk.stranger = self._alone(other, k % len(self.cuts[other]))
        return chunk

    def _alone(self, t: int, k: int) -> Chunk:
        latents = self._latents.setdefault((t, k), {})
        return Chunk(self.model, self.tracks[t], *self.cuts[t][k], self.config, latents)

    def forget(self, t: int, k: int) -> None:
        """Latents of a chunk go, except those of the first track, the stranger of the last."""
        if t or len(self.tracks) == 1:
            self._latents.pop((t, k), None)

    def digest(self, chunk: Chunk) -> str:
        """A sha256 of the sound of a chunk and of what its stems are called, computed once."""
        key = (chunk.track.dataset, chunk.track.name, chunk.start)
        if key not in self._digests:
            sound = chunk.stems.numpy().tobytes()
            names = json.dumps(chunk.track.stem_names).encode()
            self._digests[key] = hashlib.sha256(names + sound).hexdigest()
        return self._digests[key]


# ---------------------------------------------------------------- what was computed before

N_SEGMENTS = 16
TOLERANCE = 1e-3
"""Relative error within which two models agree, in each of N_SEGMENTS of a sound: another number of threads
rounds differently."""


class Store:
    """A folder of finished chunks, a folder in it for each model, a file in that for each chunk.

    A model is told apart by its fingerprint, and by what it makes of one excerpt: a fingerprint says what
    decides the latents, not how they are decoded, and not every model has one. A chunk is told apart by its
    own sound and by that of its stranger, by its place, and by the configuration.
    """

    def __init__(self, root: str | Path, model: AutoencoderLike, config: EvaluationConfig):
        """Raises ValueError for a damaged folder of a model, naming the file."""
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

    def path(self, chunk: Chunk, number: int, absent: Sequence[str], sounds: Sequence[str | None]) -> Path:
        """Where the rows of a chunk are kept. `sounds`: digests of its sound and of its stranger's."""
        track = chunk.track
        facts = [printable(track.dataset), printable(track.name), absent]
        facts += [number, chunk.start, chunk.n_samples, sounds]
        digest = hashlib.sha256(json.dumps([self.settings, facts]).encode()).hexdigest()
        return self.folder / f"{_slug(track.name)}-{number}-{digest[:16]}.csv"


def _answers(model: AutoencoderLike, config: EvaluationConfig) -> dict[str, Tensor]:
    """What a model makes of a window of noise that rises from -60 dB to 20 dB of full scale."""
    n_samples = round(config.window_s * model.sample_rate)
    noise = torch.randn(1, n_samples, generator=generator(0))
    z = model.encode(noise * torch.logspace(-3, 1, n_samples))
    audio = model.decode(z, length=n_samples, seed=config.seed)
    return {"latents": z.float().cpu().contiguous(), "audio": audio.float().cpu().contiguous()}


def _agrees(path: Path, fingerprint: str, found: dict[str, Tensor]) -> bool:
    """Whether a file holds this fingerprint and these answers of a model."""
    try:
        with tensors_in(path) as file:
            if (file.metadata() or {}).get("fingerprint") != fingerprint:
                return False
            known = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove its folder") from error
    return known.keys() == found.keys() and all(_close(found[key], known[key]) for key in known)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    pairs = zip(ours.tensor_split(N_SEGMENTS, -1), theirs.tensor_split(N_SEGMENTS, -1), strict=True)
    return all((a - b).norm() <= TOLERANCE * b.norm() for a, b in pairs)


class _Kept:
    """The rows of a chunk, in a file where `path` is given."""

    def __init__(self, path: Path | None = None):
        self.path = path
        self.table = read_frame(path) if path and path.is_file() else _frame([])
        self.n_written = len(self.table)

    def missing(self, protocols: Sequence[str]) -> list[str]:
        """Those of the protocols that have no rows yet."""
        done = {name.split("_")[-1] for name in self.table.protocol}
        return [protocol for protocol in KNOWN if protocol in protocols and protocol not in done]

    def hold(self, rows: list[dict]) -> None:
        """Add rows."""
        new = _frame(rows)
        self.table = pd.concat([self.table, new], ignore_index=True) if len(self.table) else new

    def write(self) -> None:
        """Replace the file, if there are new rows."""
        if self.path and len(self.table) > self.n_written:
            with atomic_write(self.path) as file:
                self.table.to_csv(file, index=False)

    def rows(self, protocols: Sequence[str]) -> pd.DataFrame:
        """Rows of some protocols in one order, whatever was computed first."""
        order = {protocol: place for place, protocol in enumerate(KNOWN) if protocol in protocols}
        rank = self.table.protocol.str.split("_").str[-1].map(order).dropna()
        return self.table.loc[rank.sort_values(kind="stable").index]


def _frame(rows: Sequence[dict]) -> pd.DataFrame:
    """Rows as a frame of COLUMNS, numbers as numbers where all are missing too."""
    kinds = dict.fromkeys(LABELS, "str") | dict.fromkeys((*NUMBERS, *METRICS), "float64") | {"chunk": "int64"}
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(kinds)


def read_frame(path: str | Path) -> pd.DataFrame:
    """A frame of `COLUMNS` as it was written; labels stay text (a track may be named "NA"). Metrics that it
    was written without are NaN."""
    numbers = [*NUMBERS, *METRICS]
    frame = pd.read_csv(
        path,
        dtype=dict.fromkeys(LABELS, str) | dict.fromkeys(numbers, float) | {"chunk": int},
        keep_default_na=False,
        na_values=dict.fromkeys(numbers, ""),
    )
    return frame.reindex(columns=list(COLUMNS))


def _slug(name: str) -> str:
    """A name as the beginning of a file's, short enough for every file system."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)[:60]
