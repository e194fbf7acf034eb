"""The protocols over tracks: one long-format frame, and nothing lost when a run is interrupted.

Nothing is averaged here: one row per (model, track, chunk, protocol, stem, condition, comparison).
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lincae import metrics
from lincae.evaluation.probes import PROBES
from lincae.evaluation.protocols import MIXTURE, PROTOCOLS, Chunk, EvaluationConfig, Stems
from lincae.files import atomic_write
from lincae.interface import AutoencoderLike
from lincae.machine import generator

LABELS = ("model", "dataset", "track", "protocol", "stem", "condition", "comparison", "status")
NUMBERS = ("chunk", "start_s", "gain", "n_sources")
METRICS = ("snr_db", "si_sdr_db", "mss", "mss_log", "rel_l2", "value")
COLUMNS = (*LABELS, *NUMBERS, *METRICS)
"""Of a frame.

- `protocol`: "reconstruction", "encoder_homogeneity", "decoder_homogeneity", "encoder_additivity",
  "decoder_additivity", "separation", "latents"; of the probes "encoder_equivariance",
  "decoder_equivariance", "linear_fit"
- `comparison`: see `lincae.evaluation.protocols`
- `status`: "ok", or why the metrics are NaN: "silent", where the true signal is (RMS below
  `metrics.SILENCE_DBFS`), "silent decode", where only the decoded reference is, "missing", where the track
  lacks the stem, "alone", where all other sounds of a sum are silent, "window too short", where a shift
  would leave nothing to compare
- `mss` is with spectral convergence, `mss_log` without; `value` is a latent statistic, or the share that a
  linear map explains
"""
SHORTEST_S = 0.1  # of a track: mel spectrograms need 50 ms
KNOWN = PROTOCOLS | PROBES
VERSION = 2  # of the protocols: results of another are not continued

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

    With a `store` folder, finished chunks are kept there, and a later call with the same model, tracks and
    configuration computes only what is missing. Tracks at another sample rate are resampled to the model's.

    Raises ValueError for unknown protocols, no tracks, tracks of one name, tracks shorter than 0.1 s, and a
    model that returns another shape than asked for, naming it; for unreadable files what their reader raises.
    """
    config = config or EvaluationConfig()
    if unknown := sorted(set(protocols) - set(KNOWN)):
        raise ValueError(f"unknown protocols {unknown}: use some of {tuple(KNOWN)}")
    absent = _check_tracks(model, tracks)
    cuts = [_cuts(track, model.sample_rate, config) for track in tracks]
    identity, digests = [], [""] * len(tracks)
    if store:
        identity = [VERSION, _fingerprint(model, config), asdict(config) | {"batch_size": None}]
        digests = [_digest(track, model, cut[0]) for track, cut in zip(tracks, cuts, strict=True)]
    latents = [[{} for _ in cut] for cut in cuts]  # of every chunk of a track and of its stranger

    def chunk(t: int, k: int) -> Chunk:
        k %= len(cuts[t])
        return Chunk(model, tracks[t], *cuts[t][k], config, latents[t][k])

    frames = []
    with tqdm(total=sum(map(len, cuts)), desc=model.name, unit="chunk", disable=not progress) as bar:
        for t, track in enumerate(tracks):
            other = (t + 1) % len(tracks)
            kept = _Kept(store, model, track, [*identity, absent[t], digests[t], digests[other]])
            for k, (start, _) in enumerate(cuts[t]):
                labels = {"model": model.name, "dataset": track.dataset, "track": track.name}
                labels |= {"chunk": k, "start_s": start / model.sample_rate}
                current, rows = chunk(t, k), []
                current.stranger = None if other == t else chunk(other, k)
                for protocol in kept.missing(k, protocols):
                    rows += KNOWN[protocol](current)
                    if protocol == "separation":
                        rows += [MISSING | {"stem": stem} for stem in absent[t]]
                kept.add([labels | row for row in rows])
                if t or len(tracks) == 1:  # the first is the stranger of the last
                    latents[t][k] = {}
                bar.update()
            frames.append(kept.frame(protocols))
    return pd.concat(frames, ignore_index=True)


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
    sides: dict[tuple[str, int], list[Tensor]] = {(s, h): [] for s in ("true", "decoded") for h in (0, 1)}
    for t, track in enumerate(tqdm(tracks, f"{model.name}, KAD", disable=not progress)):
        for cut in _cuts(track, model.sample_rate, config):
            chunk = Chunk(model, track, *cut, config)
            for side, audio in (("true", chunk.signal(MIXTURE)), ("decoded", chunk.decoded(MIXTURE))):
                sides[side, t % 2].append(embed(audio[None], model.sample_rate).cpu())
    true, decoded = ([torch.cat(sides[side, half]) for half in (0, 1)] for side in ("true", "decoded"))
    pairs = {"codec": (torch.cat(true), torch.cat(decoded)), "halves": decoded, "floor": true}
    rows = [
        {"comparison": comparison, "value": metrics.kad(reference, evaluated)}
        for comparison, (reference, evaluated) in pairs.items()
    ]
    labels = {"model": model.name, "dataset": tracks[0].dataset, "track": "all", "protocol": "kad"}
    labels |= {"stem": MIXTURE, "condition": "", "status": "ok", "chunk": 0}
    return pd.DataFrame([labels | row for row in rows], columns=list(COLUMNS))


MISSING = {"protocol": "separation", "comparison": "linearity", "condition": "", "status": "missing"}


def _check_tracks(model: AutoencoderLike, tracks: Sequence[Stems]) -> list[list[str]]:
    """The stems that each track lacks and another has; says once what is resampled, missing or alone."""
    names = [(track.dataset, track.name) for track in tracks]
    if not tracks or len(set(names)) < len(names):
        raise ValueError(f"evaluation needs tracks of different names, one or more, got {names}")
    for track in tracks:
        if track.duration_s < SHORTEST_S:
            lasts = f"track {track.name!r} lasts {track.duration_s:.3f} s"
            raise ValueError(f"{lasts}, evaluation needs {SHORTEST_S} s or more")
    if rates := sorted({track.sample_rate for track in tracks} - {model.sample_rate}):
        log.warning("tracks at %s Hz are resampled to the %d Hz of %s", rates, model.sample_rate, model.name)
    stems = list(dict.fromkeys(name for track in tracks for name in track.stem_names if name != MIXTURE))
    if len(stems) < 2:
        log.warning("no track has two stems: additivity and separation have no rows")
    absent = [[stem for stem in stems if stem not in track.stem_names] for track in tracks]
    for track, lacks in zip(tracks, absent, strict=True):
        if lacks:
            log.warning("track %r has no %s: skipped and counted", track.name, ", ".join(lacks))
    return absent


def _cuts(track: Stems, sample_rate: int, config: EvaluationConfig) -> list[tuple[int, int]]:
    """(start, n_samples) of the chunks of a track. A rest shorter than a window belongs to the last chunk."""
    seconds = min(track.duration_s, config.seconds or math.inf)
    total, step = int(seconds * sample_rate), round(config.chunk_s * sample_rate)
    last = total - round(config.window_s * sample_rate)
    starts = [start for start in range(0, total, step) if start <= max(last, 0)]
    return [(start, stop - start) for start, stop in zip(starts, [*starts[1:], total], strict=True)]


def _digest(track: Stems, model: AutoencoderLike, cut: tuple[int, int]) -> str:
    """Tells tracks apart, by name, length and the sound of the first chunk."""
    start_s, seconds = (n / model.sample_rate for n in cut)
    sound = track.stems(track.sample_rate, start_s, seconds).numpy().tobytes()
    facts = [track.dataset, track.name, track.stem_names, track.sample_rate, track.duration_s]
    return hashlib.sha256(json.dumps(facts).encode() + sound).hexdigest()


def _fingerprint(model: AutoencoderLike, config: EvaluationConfig) -> list[str]:
    """Tells models apart, whatever they are made of: what they make of a window of noise, to three digits, so
    that the rounding of another number of threads does not count."""
    n_samples = round(config.window_s * model.sample_rate)
    probe = 0.1 * torch.randn(1, n_samples, generator=generator(0))
    z = model.encode(probe)
    audio = model.decode(z, length=n_samples, seed=config.seed)
    values = [z.std(), z.abs().max(), audio.std(), (audio - probe.to(audio)).std()]
    return [model.name, str(model.sample_rate), *(f"{value.item():.3g}" for value in values)]


class _Kept:
    """The rows of a track, in a file that is replaced whenever a chunk is done."""

    def __init__(self, store: str | Path | None, model: AutoencoderLike, track: Stems, identity: list):
        self.path, self.table = None, pd.DataFrame(columns=list(COLUMNS))
        if store:
            digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
            self.path = Path(store) / _slug(model.name) / f"{_slug(track.name)}-{digest}.csv"
            if self.path.is_file():
                self.table = read_frame(self.path)

    def missing(self, chunk: int, protocols: Sequence[str]) -> list[str]:
        """Those of the protocols that have no rows of a chunk yet."""
        done = {name.split("_")[-1] for name in self.table.protocol[self.table.chunk == chunk]}
        return [protocol for protocol in KNOWN if protocol in protocols and protocol not in done]

    def add(self, rows: list[dict]) -> None:
        if rows:
            new = pd.DataFrame(rows, columns=list(COLUMNS))
            self.table = pd.concat([self.table, new], ignore_index=True) if len(self.table) else new
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(self.path) as file:
                    self.table.to_csv(file, index=False)

    def frame(self, protocols: Sequence[str]) -> pd.DataFrame:
        """Rows of some protocols in one order, whatever was computed first."""
        order = {protocol: i for i, protocol in enumerate(KNOWN) if protocol in protocols}
        rank = self.table.protocol.str.split("_").str[-1].map(order)
        keys = pd.DataFrame({"chunk": self.table.chunk, "rank": rank}).dropna()
        return self.table.loc[keys.sort_values(["chunk", "rank"], kind="stable").index]


def read_frame(path: str | Path) -> pd.DataFrame:
    """A frame of `COLUMNS` as it was written; labels stay text (a track may be named "NA")."""
    numbers = [*NUMBERS, *METRICS]
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(LABELS, str) | dict.fromkeys(numbers, float) | {"chunk": int},
        keep_default_na=False,
        na_values=dict.fromkeys(numbers, ""),
    )


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
