"""Recordings of free packages, with packages made here: fetching, hashes, splits, pairs."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lincae.cli import main
from lincae.data import free_music
from lincae.data.crops import training_data
from lincae.data.free_music import fetch, listed, refuse_test_recordings
from lincae.data.tracks import SPLITS, tracks
from lincae.machine.files import sha256_of

FIELDS = ("package", "version", "split", "album", "file", "licence", "seconds", "bytes", "sha256")


def recording(path: Path, seed: int, rate: int = 8000, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = 0.1 * np.random.default_rng(seed).standard_normal((int(rate * seconds), 2))
    soundfile.write(path, audio, rate)
    return path


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of three unpacked packages, one with an archive, and the list of them; the root is empty."""
    source = tmp_path / "unpacked"
    found = [
        ("tunes", "train", "music/a.wav", recording(source / "tunes" / "music" / "a.wav", 1)),
        ("tunes", "valid", "music/b.wav", recording(source / "tunes" / "music" / "b.wav", 2)),
    ]
    for n in range(3):
        path = recording(source / "songs" / f"{n}.wav", n, 8000 + 1000 * n, 0.5 + n / 8)
        found.append(("songs", "test", f"{n}.wav", path))
    inner = recording(tmp_path / "packed.wav", 9)
    archive = source / "packed" / "base" / "0music.pk3"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.write(inner, "music/packed.wav")
    found.append(("packed", "test", "base/0music.pk3/music/packed.wav", inner))

    rows = []
    for package, split, name, path in found:
        about = (package, "1.0-1", split, f"album of {package}", name, "GPL-2+", "1.0")
        rows.append(dict(zip(FIELDS, (*about, str(path.stat().st_size), sha256_of(path)), strict=True)))
    monkeypatch.setattr(free_music, "listed", lambda: tuple(rows))
    monkeypatch.setenv("LINCAE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(free_music, "NEEDED_BYTES", 1000)
    return source


def programs(folder: Path, monkeypatch, **scripts: str) -> None:
    """Make these shell scripts all the programs that there are."""
    folder.mkdir()
    for name, script in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_list_is_whole_and_no_album_is_in_two_splits():
    splits = {}
    assert set(FIELDS) <= set(listed()[0])
    for row in listed():
        splits.setdefault((row["package"], row["album"]), set()).add(row["split"])
        assert len(row["sha256"]) == 64
        assert float(row["seconds"]) > 0
        assert row["licence"]
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == set(SPLITS["free-music"])
    n_test = sum(row["split"] == "test" for row in listed())
    assert 50 <= n_test <= 70
    folder_names = [(row["split"], row["package"], Path(row["file"]).name) for row in listed()]
    assert len(set(folder_names)) == len(folder_names)


def test_fetched_once_and_read_by_split(packages, tmp_path):
    root = fetch(unpacked=packages)
    assert root == tmp_path / "data" / "free-music"
    assert (root / "test" / "packed" / "packed.wav").is_file()
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*.wav")}
    assert fetch(unpacked=tmp_path / "gone") == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.wav")} == stamps
    assert not list(root.glob(".fetch-*"))

    assert [track.name for track in tracks("free-music", "valid")] == ["tunes/b"]
    assert len(tracks("free-music", "test")) == 4
    assert training_data("free-music", 8000).crops(range(2), 400, 0).shape == (2, 400)
    assert training_data("free-music", 8000, "valid").crops(range(2), 400, 0).shape == (2, 400)


def test_pairs_are_mixtures_of_two_recordings(packages):
    fetch(unpacked=packages)
    pairs = tracks("pairs", n_tracks=2)
    pair, (first, *_) = pairs[0], tracks("free-music", "test")
    assert pair.stem_names == ("first", "second")
    assert pair.name == "songs/0 + songs/2"

    stems = pair.stems(16000, 0.1, 0.2)
    assert stems.shape == (2, 3200)
    assert torch.allclose(stems[0], 0.5 * first.stems(16000, 0.1, 0.2)[0], atol=5e-3)
    whole = pair.stems()
    assert whole.shape == (2, round(0.5 * 44100))


def test_test_recordings_are_not_trained_on(packages, tmp_path):
    root = fetch(unpacked=packages)
    held_out = f"{root / 'test' / 'songs'}=1"
    with pytest.raises(ValueError, match=r"0\.wav is a test recording of free-music \(album of songs\)"):
        training_data([held_out], 8000)
    with pytest.raises(SystemExit, match=r"error: .*0\.wav is a test recording of free-music"):
        main(["shards", held_out, str(tmp_path / "shards"), "--sample-rate", "8000"])
    assert not (tmp_path / "shards").exists()
    renamed = recording(tmp_path / "mine" / "1.wav", 77)
    refuse_test_recordings([renamed, root / "train" / "tunes" / "a.wav"])


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda _: tracks("free-music", "test"), FileNotFoundError, "lincae data free-music"),
        (lambda _: tracks("free-music", "dev"), ValueError, "'train', 'valid', 'test'"),
        (lambda _: tracks("pairs", "train"), ValueError, "'test'"),
        (lambda source: fetch(unpacked=source / "gone"), FileNotFoundError, "gone"),
    ],
)
def test_refusals(packages, call, error, named):
    with pytest.raises(error, match=named):
        call(packages)


def test_another_file_and_a_small_disk_are_refused(packages, tmp_path, monkeypatch):
    recording(packages / "songs" / "1.wav", 5)
    with pytest.raises(ValueError, match=r"songs: 1\.wav has the sha256 .* of version 1\.0-1, or damaged"):
        fetch(unpacked=packages)
    assert not list((tmp_path / "data").rglob("*1.wav*"))
    monkeypatch.setattr(free_music, "NEEDED_BYTES", 10**18)
    with pytest.raises(OSError, match=r"needs 1000000000\.0 GB of free disk"):
        fetch(unpacked=packages)


def test_packages_are_downloaded_and_their_version_compared(packages, tmp_path, monkeypatch):
    copy = f"/bin/cp -r {packages}/${{2%%_*}} $3"
    unpack = f'if [ "$1" = --field ]; then echo 1.0-1; else {copy}; fi'
    programs(tmp_path / "bin", monkeypatch, apt_get=': > "$2"_1.0.deb', dpkg_deb=unpack)
    assert len(list(fetch().rglob("*.wav"))) == 6

    programs(tmp_path / "other", monkeypatch, apt_get=': > "$2"_2.0.deb', dpkg_deb="echo 2.0-1")
    with pytest.raises(ValueError, match=r"of version 2\.0-1 here, the list is of 1\.0-1"):
        fetch(tmp_path / "elsewhere")
    assert os.listdir(tmp_path / "elsewhere") == []
