"""Weighted folders of audio files (paper 4.1): drawn by weight, their headers indexed once.

Axis legend: `B` batch, `T` samples.
"""

import contextlib
import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lincae.data.audio import AudioFileError, read_audio
from lincae.data.folders import THREADS, add_skipped, file_index, read_skipped
from lincae.machine import generator

MIN_RMS = 1e-3
"""Quieter crops (-60 dBFS) are drawn again."""
MAX_DRAWS = 200
MAX_FAILED = 0.01
"""The share of draws that may fail; fewer than FEW_DRAWS are judged as if they were so many."""
FEW_DRAWS = 1000

RETRY_WAITS_S = (1.0, 5.0, 25.0)
"""After a fault of a disk, a network or an object store, which may pass."""

log = logging.getLogger(__name__)


class WeightedFiles:
    """A folder by weight, then one of its files, then a stretch of it: what `Corpora` and `Shards` share.

    Files shorter than the crops asked for are left out. A file that fails, and a crop quieter than `min_rms`,
    is drawn again within its folder. Files that failed are logged once and kept, with the reason, in
    `skipped`. Item i is a pure function of (seed, i) as long as the same files can be read.

    Subclasses have `_read(folder, number, start, n_samples)`, a crop (T,) from frame `start` of a file on,
    which raises OSError or ValueError, and `_name(folder, number)`.
    """

    def __init__(
        self,
        folders: Mapping[str, float],
        headers: Sequence[np.ndarray],
        sample_rate: int,
        min_rms: float,
        skipped: Mapping[str, str],
    ):
        """`folders`: name -> weight; `headers`: of each folder, rate and frames (2, n_files) of its files."""
        self.sample_rate = sample_rate
        self.min_rms = min_rms
        self._folders = list(folders)
        self._headers = headers
        self._weights = torch.tensor(list(folders.values()), dtype=torch.float64)
        counts = []
        for (folder, weight), header in zip(folders.items(), headers, strict=True):
            counts.append(f"{Path(folder).name}={weight:g} ({header.shape[1]} files)")
        self.description = ", ".join(counts)
        self._long_enough: dict[int, list[np.ndarray]] = {}
        self._skipped = dict(skipped)
        self._skip_list: Path | None = None
        self._n_draws = 0
        self._n_failed = 0

    def crops(self, indices: Sequence[int], n_samples: int, seed: int) -> Tensor:
        """Items `indices` (B, T) float32. Raises ValueError naming a folder without a file that is long
        enough, or where no draw gave a crop; AudioFileError when more than 1 % of the draws failed."""
        if n_samples not in self._long_enough:
            self._long_enough[n_samples] = [self._files_of(k, n_samples) for k in range(len(self._folders))]
        self._n_draws += len(indices)
        with ThreadPoolExecutor(min(THREADS, len(indices))) as pool:
            return torch.stack(list(pool.map(lambda i: self._draw(generator(seed, i), n_samples), indices)))

    def _files_of(self, folder: int, n_samples: int) -> np.ndarray:
        """Numbers of the files of a folder that hold a crop."""
        rates, frames = self._headers[folder]
        numbers = np.flatnonzero(frames >= self._frames_of(n_samples, rates))
        wanted = f"{n_samples} samples at {self.sample_rate} Hz"
        name = self._folders[folder]
        if len(numbers) == 0 and self._weights[folder] > 0:
            longest_s = (frames / rates).max(initial=0)
            raise ValueError(f"{name}: no file has {wanted}, the longest lasts {longest_s:.3f} s")
        if len(numbers) < len(frames):
            log.info("%s: %d of %d files have %s", name, len(numbers), len(frames), wanted)
        return numbers

    def _frames_of(self, n_samples: int, rates: np.ndarray | int) -> np.ndarray | int:
        return -(-n_samples * rates // self.sample_rate)

    def _draw(self, rng: torch.Generator, n_samples: int) -> Tensor:
        folder = int(torch.multinomial(self._weights, 1, generator=rng))
        files = self._long_enough[n_samples][folder]
        for _ in range(MAX_DRAWS):
            u_file, u_start = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
            number = int(files[int(u_file * len(files))])
            rate, n_frames = self._headers[folder][:, number].tolist()
            start = int(u_start * (n_frames - self._frames_of(n_samples, rate) + 1))
            try:
                crop = self._read_patiently(folder, number, start, n_samples)
            # ValueError: an AudioFileError, or a start beyond the end of a file that has become shorter.
            except (OSError, ValueError) as error:
                self._skip(self._name(folder, number), str(error))
                continue
            if rms(crop.numpy()) >= self.min_rms:
                return crop
        reason = f"{MAX_DRAWS} draws gave no {n_samples} samples of RMS >= {self.min_rms:g}"
        raise ValueError(f"{self._folders[folder]}: {reason}; {self.skip_report()}")

    def _read_patiently(self, folder: int, number: int, start: int, n_samples: int) -> Tensor:
        """`_read`, again while a fault may pass; not for a missing file, nor for one that was skipped."""
        name = self._name(folder, number)
        for wait_s in () if name in self._skipped else RETRY_WAITS_S:
            try:
                return self._read(folder, number, start, n_samples)
            except FileNotFoundError:
                raise
            except OSError as error:
                log.warning("%s: tried again in %g s: %s", name, wait_s, error)
                time.sleep(wait_s)
        return self._read(folder, number, start, n_samples)

    @property
    def skipped(self) -> dict[str, str]:
        """Name -> reason of all files that failed; with `share_skipped`, in any process of the run."""
        shared = read_skipped(self._skip_list) if self._skip_list else {}
        return {**shared, **self._skipped}

    def share_skipped(self, path: str | Path) -> None:
        """From now on keep what is skipped in a CSV (file, reason), for all data workers and resumptions. To
        be called before workers start."""
        self._skip_list = Path(path)
        known = read_skipped(path)
        with contextlib.suppress(FileExistsError), self._skip_list.open("x") as file:
            file.write("file,reason\n")
        for name, reason in self._skipped.items():
            if name not in known:
                add_skipped(path, name, reason)

    def skip_report(self) -> str:
        """One line: how many files were skipped, the first with their reasons, where to find the rest."""
        reasons = list(self.skipped.values())
        where = f", listed in {self._skip_list}" if self._skip_list else ""
        shown = [*reasons[:5], *(["..."] if len(reasons) > 5 else [])]
        return f"{len(reasons)} files skipped{where}" + (": " + "; ".join(shown) if shown else "")

    def _skip(self, name: str, reason: str) -> None:
        if self._skipped.setdefault(name, reason) is reason:
            log.warning("skipped: %s", reason)
            if self._skip_list:
                add_skipped(self._skip_list, name, reason)
        self._n_failed += 1
        n_judged = max(self._n_draws, FEW_DRAWS)
        if self._n_failed > MAX_FAILED * n_judged:
            found = f"{self._n_failed} of {self._n_draws} draws failed"
            limit = f"more than {MAX_FAILED:.0%} of {n_judged}: repair or remove the files, then resume"
            raise AudioFileError(f"{found}, {limit}; {self.skip_report()}")


class Corpora(WeightedFiles):
    """Weighted folders of audio files in any format that libsndfile reads, as mono at one rate. Files whose
    header cannot be read are listed in `skipped` from the start; files are opened for each crop."""

    def __init__(self, folders: Mapping[str | Path, float], sample_rate: int, min_rms: float = MIN_RMS):
        """`folders`: folder -> weight, searched at any depth. Raises ValueError for weights that are negative
        or sum to zero; FileNotFoundError as `audio_files`; AudioFileError for a folder without a readable
        file."""
        weights = {str(folder): weight for folder, weight in folders.items()}
        if not all(0 <= weight < math.inf for weight in weights.values()) or sum(weights.values()) <= 0:
            raise ValueError(f"weights must be >= 0 with a positive sum, got {weights}")
        skipped = {}
        self._stamps = []
        self._files = []
        headers = []
        for folder in weights:
            index, unreadable = file_index(Path(folder))
            if not index:
                reason = next(iter(unreadable.values()))
                raise AudioFileError(f"{folder}: none of its {len(unreadable)} files can be read: {reason}")
            if unreadable:
                log.warning("%s: skipped %d files that cannot be read", folder, len(unreadable))
            skipped |= {os.path.join(folder, name): reason for name, reason in unreadable.items()}
            # Arrays are shared by data workers, lists would be copied into each of them.
            table = np.array(list(index.values())).T
            self._stamps.append(table[:2])
            headers.append(table[2:])
            self._files.append(np.array([os.fsencode(name) for name in index]))
        super().__init__(weights, headers, sample_rate, min_rms, skipped)

    def weights(self) -> dict[str, float]:
        return dict(zip(self._folders, self._weights.tolist(), strict=True))

    def files(self) -> list[tuple[int, str, int, int]]:
        """Number of the folder, path, sample rate and frames of every readable file."""
        found = []
        for folder, headers in enumerate(self._headers):
            for number, header in enumerate(headers.T.tolist()):
                found.append((folder, self._name(folder, number), *header))
        return found

    def stamps(self) -> list[tuple[int, int]]:
        """Size and time of modification (ns) of every readable file, in the order of `files`."""
        return [tuple(stamp) for stamps in self._stamps for stamp in stamps.T.tolist()]

    def _read(self, folder: int, number: int, start: int, n_samples: int) -> Tensor:
        rate = int(self._headers[folder][0, number])
        path = self._name(folder, number)
        seconds = self._frames_of(n_samples, rate) / rate
        crop, _ = read_audio(path, self.sample_rate, start / rate, seconds, channels="mean")
        if len(crop) < n_samples:
            raise AudioFileError(f"{path}: has become shorter since it was indexed")
        return crop[:n_samples]

    def _name(self, folder: int, number: int) -> str:
        return os.path.join(self._folders[folder], os.fsdecode(self._files[folder][number]))


def weighted_folders(names: Sequence[str]) -> dict[str, float]:
    """["a=60", "b=0.5"] -> {"a": 60, "b": 0.5}. ValueError for another form or a folder named twice."""
    pairs = [re.fullmatch(r"(.+)=(\d+(?:\.\d*)?)", name) for name in names]
    if not names or None in pairs:
        raise ValueError(f"corpora are FOLDER=WEIGHT once or more often, got {list(names)}")
    folders = {pair[1]: float(pair[2]) for pair in pairs}
    if len({Path(folder).resolve() for folder in folders}) < len(names):
        raise ValueError(f"a folder is named twice in {list(names)}")
    return folders


def rms(crop: np.ndarray) -> float:
    return math.sqrt(np.dot(crop, crop) / len(crop))
