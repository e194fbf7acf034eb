"""Shards: the crops of the folders they were written from, from one range of bytes each."""

import json
import os
import subprocess
import sys

import fsspec
import numpy as np
import pytest
import soundfile
import torch

from lincae.cli import main
from lincae.data import shards
from lincae.data.audio import AudioFileError
from lincae.data.corpora import Corpora
from lincae.data.shards import BLOCK_S, Shards, write_shards
from tests.fuzzing import fuzz

RATE = 8000
N_CROP = 1000


def noise(n_samples, level, seed):
    return level * np.random.default_rng(seed).uniform(-1, 1, n_samples)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora")
    for k in range(6):
        path = root / "a" / f"{k}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, noise((40 + k) * RATE, 0.9, k), RATE, subtype="PCM_16")
    (root / "b").mkdir()
    soundfile.write(root / "b" / "stereo.flac", noise((RATE, 2), 0.5, 10), RATE)
    soundfile.write(root / "b" / "loud.wav", noise(RATE, 3.0, 11), RATE, subtype="FLOAT")
    soundfile.write(root / "b" / "soft.wav", noise(RATE, 0.004, 12), RATE, subtype="FLOAT")
    soundfile.write(root / "b" / "tiny.wav", noise(10, 0.5, 13), RATE)
    return root


@pytest.fixture(scope="module")
def corpora(folders):
    return Corpora({folders / "a": 2, folders / "b": 1}, RATE)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 100 * 2 * RATE)


def test_crops_are_those_of_the_folders(corpora, folders, tmp_path):
    written = Shards(write_shards(corpora, tmp_path), RATE)
    assert written.description == corpora.description == "a=2 (6 files), b=1 (4 files)"
    assert len(list(tmp_path.glob("0*.safetensors"))) == 3
    ours, theirs = (data.crops(range(300), N_CROP, 0) for data in (written, corpora))
    assert ours.dtype == torch.float32
    peak = theirs.abs().amax(1, keepdim=True)
    # half a step of the next power of two above the peak of the block, a little more than the crop's
    assert ((ours - theirs).abs() <= 1.2 * peak / 2**15).all()
    assert theirs.abs().max() > 2.9
    assert (peak < 0.0041).any()
    mono = Corpora({folders / "a": 1}, RATE)
    exact = Shards(write_shards(mono, tmp_path / "mono"), RATE)
    # 16-bit mono audio is kept to the bit, also in stretches over two blocks, which 40 s and more have
    assert torch.equal(exact.crops(range(50), 5 * RATE, 0), mono.crops(range(50), 5 * RATE, 0))
    assert BLOCK_S == 30
    assert torch.equal(exact.crops([7, 3], N_CROP, 0).flip(0), exact.crops([3, 7], N_CROP, 0))


@pytest.mark.parametrize("peak", [1.0, -1.0, 32767.4 / 32768, 1e-20, 0.0])
def test_no_level_overflows(tmp_path, peak):
    soundfile.write(tmp_path / "a.wav", np.array([peak, 0.3 * peak] * 50), RATE, subtype="FLOAT")
    written = write_shards(Corpora({tmp_path: 1}, RATE), tmp_path / "out")
    crop = Shards(written, RATE, min_rms=0).crops([0], 100, 0)
    expected = torch.tensor([peak, 0.3 * peak] * 50)
    assert ((crop[0] - expected).abs() <= abs(peak) / 2**15).all()


def test_shards_are_resampled(tmp_path):
    (tmp_path / "in").mkdir()
    time = np.arange(62 * 22050) / 22050
    soundfile.write(tmp_path / "in" / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * time), 22050, subtype="FLOAT")
    whole = Shards(write_shards(Corpora({tmp_path / "in": 1}, RATE), tmp_path / "out"), RATE)
    crop = whole.crops([0], 62 * RATE, 0)[0]
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(62 * RATE, dtype=torch.float64) / RATE)
    assert (crop - expected)[100:-100].abs().max() < 1e-3


def test_an_interrupted_writing_is_continued(corpora, tmp_path, monkeypatch):
    whole = write_shards(corpora, tmp_path / "whole")
    read = shards.file_track

    def fails(name, *rest):
        if name == "5.wav":
            raise KeyboardInterrupt
        return read(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "file_track", fails)
        with pytest.raises(KeyboardInterrupt):
            write_shards(corpora, tmp_path / "cut", workers=1)
    with pytest.raises(FileNotFoundError, match="holds no complete shards"):
        Shards(tmp_path / "cut", RATE)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("0*")}
    assert kept
    write_shards(corpora, tmp_path / "cut", workers=1)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    files = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == files
    assert all((whole / name).read_bytes() == (tmp_path / "cut" / name).read_bytes() for name in files)


def test_files_that_fail_are_left_out_and_listed(tmp_path, caplog):
    for name, level in (("good", 0.5), ("nan", np.nan)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(2000, level), RATE, "FLOAT")
    corpora = Corpora({tmp_path: 1}, RATE)
    out = write_shards(corpora, tmp_path / "out")
    (reason,) = json.loads((out / "shards.json").read_text())["skipped"].values()
    assert "nan.wav: 2000 non-finite samples" in reason
    assert f"skipped: {reason}" in caplog.text
    assert Shards(out, RATE).description.endswith("=1 (1 files)")
    (tmp_path / "good.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"good\.wav: no such audio file"):
        write_shards(corpora, tmp_path / "other")


def test_shards_that_fail_are_drawn_again_up_to_a_limit(corpora, tmp_path):
    written = Shards(write_shards(corpora, tmp_path), RATE)
    path = tmp_path / "00002.safetensors"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(AudioFileError, match=r"draws failed.*00002\.safetensors at byte \d+: truncated"):
        written.crops(range(2000), N_CROP, 0)


def test_shards_are_read_from_any_file_system(corpora, tmp_path):
    local = write_shards(corpora, tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(str(local), "/bucket/shards", recursive=True)
    remote = Shards("memory://bucket/shards", RATE)
    assert torch.equal(remote.crops(range(20), N_CROP, 0), Shards(local, RATE).crops(range(20), N_CROP, 0))


def test_other_folders_are_refused(corpora, folders, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"is not empty and has no shards\.json"):
        write_shards(corpora, tmp_path)
    out = write_shards(corpora, tmp_path / "out")
    with pytest.raises(ValueError, match=r"has shards of corpora .*, not .*: use another folder"):
        write_shards(Corpora({folders / "a": 1}, RATE), out)
    with pytest.raises(ValueError, match="shards at 8000 Hz, wanted 16000"):
        Shards(out, 16000)
    manifest = json.loads((out / "shards.json").read_text())
    (out / "shards.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(ValueError, match="shards of version 99"):
        Shards(out, RATE)

    # A file that has taken the place of another of equal length is not taken for it.
    path = tmp_path / "in" / "a.wav"
    path.parent.mkdir()
    soundfile.write(path, noise(RATE, 0.5, 0), RATE)
    write_shards(Corpora({path.parent: 1}, RATE), tmp_path / "replaced")
    soundfile.write(path, noise(RATE, 0.5, 1), RATE)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match=r"replaced has shards of files 1 files as they were"):
        write_shards(Corpora({path.parent: 1}, RATE), tmp_path / "replaced")


def test_command_line(folders, tmp_path, capsys):
    words = [f"{folders}/a=2", f"{folders}/b=1", str(tmp_path / "out"), "--sample-rate", str(RATE)]
    main(["shards", *words])
    assert capsys.readouterr().out == f"{tmp_path}/out: a=2 (6 files), b=1 (4 files)\n"
    with pytest.raises(SystemExit, match=r"error: .*does not exist"):
        main(["shards", f"{folders}/absent=1", str(tmp_path)])


def test_training_on_shards_and_synthetic_songs_needs_no_audio_library(corpora, tmp_path):
    write_shards(corpora, tmp_path)
    code = "from lincae.data.crops import StemBank, training_data\nStemBank.from_synth(1, 2.0, 16000)\n"
    code += f"training_data('shards:{tmp_path}', {RATE}).crops([0], 9, 0)"
    code += "\nimport sys; assert not {'soundfile', 'soxr', 'torchaudio', 'av', 'pandas'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small_shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    (root / "in").mkdir()
    for k in range(3):
        soundfile.write(root / "in" / f"{k}.wav", noise(RATE // 2, 0.5, k), RATE)
    return write_shards(Corpora({root / "in": 1}, RATE), root / "out")


@pytest.mark.parametrize("name", ["shards.json", "index.safetensors", "00000.safetensors"])
def test_damaged_shards_are_read_or_named(small_shards, name):
    def draw(path):
        crops = Shards(small_shards, RATE).crops(range(4), 100, 0)
        assert torch.isfinite(crops).all()

    fuzz(small_shards / name, draw, header_bytes=1024)
