"""Weighted folders: the draws, the index of headers, and files that fail."""

import csv
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import small
from torch.utils.data import DataLoader

from lincae.data import folders as module
from lincae.data.audio import AudioFileError, audio_header
from lincae.data.corpora import RETRY_WAITS_S, Corpora, weighted_folders
from lincae.data.folders import audio_files, file_index
from lincae.interop.recipes import objective_of
from lincae.training.loop import train

RATE = 16000


def write_constant(path, level, n_samples=400, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(n_samples, float(level)), rate, subtype="FLOAT")


CORPUS_FILES = {"a/one.wav": 16000, "a/deep/two.flac": 22050, "a/three.ogg": 44100, "b/four.mp3": 44100}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora")
    for k, (name, rate) in enumerate(CORPUS_FILES.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        samples = 0.1 * np.random.default_rng(k).normal(size=(2 * rate, 1 + k % 2))
        soundfile.write(root / name, samples, rate)
    return root


@settings(deadline=None, max_examples=25)
@given(indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=6), seed=st.integers(0, 2**30))
def test_an_item_is_a_function_of_seed_and_index(corpus, indices, seed):
    source = Corpora({corpus / "a": 2, corpus / "b": 1}, RATE)
    batch = source.crops(indices, 100, seed)
    assert batch.shape == (len(indices), 100)
    assert batch.dtype == torch.float32
    assert source.sample_rate == RATE
    assert torch.equal(source.crops(indices[::-1], 100, seed).flip(0), batch)
    assert torch.equal(source.crops(indices[:1], 100, seed)[0], batch[0])
    assert not torch.equal(source.crops(indices[:1], 100, seed + 1)[0], batch[0])


def test_weights_hold_whatever_the_number_of_files(tmp_path):
    weights = {"many": 3.0, "few": 6.0, "none": 0.0, "one": 1.0}
    for k, (name, n_files) in enumerate(zip(weights, (20, 2, 2, 1), strict=True)):
        for i in range(n_files):
            write_constant(tmp_path / name / f"{i}.wav", k + 1)
    (tmp_path / "few" / "bad.wav").write_bytes(b"broken")
    corpora = Corpora({tmp_path / name: weight for name, weight in weights.items()}, RATE)
    levels = corpora.crops(range(2000), 10, 0)[:, 0]
    counts = torch.stack([(levels == k + 1).sum() for k in range(4)])
    expected = 2000 * torch.tensor(list(weights.values())) / 10
    assert counts[2] == 0
    assert list(corpora.skipped) == [str(tmp_path / "few" / "bad.wav")]
    drawn = expected > 0
    # chi-square with two degrees of freedom: 13.8 is exceeded with probability 0.001
    assert ((counts - expected)[drawn].square() / expected[drawn]).sum() < 13.8
    assert corpora.description == "many=3 (20 files), few=6 (2 files), none=0 (2 files), one=1 (1 files)"


def test_files_and_starts_are_uniform(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.linspace(0.1, 0.2, 501), RATE, subtype="FLOAT")
    write_constant(tmp_path / "b.wav", 3.0)
    first = Corpora({tmp_path: 1}, RATE).crops(range(1000), 1, 0)[:, 0]
    starts = first[first < 3]
    assert len(starts) == pytest.approx(500, abs=70)
    assert starts.mean() == pytest.approx(0.15, abs=0.006)
    assert starts.min() < 0.102
    assert starts.max() > 0.198


@pytest.mark.parametrize(("suffix", "rate"), [("wav", RATE), ("flac", 22050), ("ogg", 44100), ("mp3", 44100)])
def test_crops_are_resampled_mono_stretches(tmp_path, suffix, rate):
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    soundfile.write(tmp_path / f"a.{suffix}", np.stack([0.3 * tone, 0.1 * tone], 1), rate)
    angle = 2 * torch.pi * 440 * torch.arange(4000) / RATE
    basis = torch.stack([angle.cos(), angle.sin()])
    crops = Corpora({tmp_path: 1}, RATE).crops(range(8), 4000, 0)
    for crop in crops[:, 100:-100]:
        weights = crop @ torch.linalg.pinv(basis[:, 100:-100])
        assert weights.norm() == pytest.approx(0.2, rel=0.02)
        assert (weights @ basis[:, 100:-100] - crop).norm() < 0.05 * crop.norm()
    assert not torch.equal(crops[0], crops[1])


def test_crops_are_drawn_again_where_files_are_quiet_or_too_short(tmp_path):
    write_constant(tmp_path / "long.wav", 0.5, n_samples=800, rate=2 * RATE)
    write_constant(tmp_path / "short.wav", 0.25, n_samples=100)
    write_constant(tmp_path / "quiet.wav", 5e-4)
    corpora = Corpora({tmp_path: 1}, RATE)
    assert (corpora.crops(range(50), 101, 0)[:, 50] > 0.4).all()
    assert len(corpora.crops(range(50), 100, 0)[:, 50].round(decimals=2).unique()) == 2
    assert corpora.crops(range(2), 400, 0).shape == (2, 400)  # all of a file
    assert corpora.skipped == {}


def constant(level, folder, **options):
    """A corpus of one file."""
    write_constant(folder / "a.wav", level, **options)
    return Corpora({folder: 1}, RATE)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda _: weighted_folders(["a=1", "./a=2"]), ValueError, "named twice"),
        (lambda at: Corpora({at / "absent": 1}, RATE), FileNotFoundError, "absent does not exist"),
        (lambda at: Corpora({at: 1}, RATE), FileNotFoundError, r"holds no file \.wav, \.flac, \.ogg, \.mp3"),
        (lambda at: Corpora({at / "bad": 1}, RATE), AudioFileError, r"none of its 1 files .*junk\.wav"),
        (lambda at: constant(5e-4, at / "q").crops([0], 100, 0), ValueError, "q: 200 draws gave no 100"),
        (lambda at: constant(0.5, at / "s", n_samples=441, rate=44100).crops([0], 161, 0), ValueError,
         r"s: no file has 161 samples at 16000 Hz, the longest lasts 0\.010 s"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, call, error, named):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "._a.wav").write_bytes(b"")
    if "junk" in named:
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "junk.wav").write_bytes(b"junk")
    with pytest.raises(error, match=named):
        call(tmp_path)
    assert weighted_folders(["a=b=60", "c/d=0.5"]) == {"a=b": 60, "c/d": 0.5}
    for weights in ((-1, 2), (0, 0), (float("nan"), 1), ()):
        with pytest.raises(ValueError, match="weights must be >= 0 with a positive sum"):
            Corpora(dict(zip("ab", weights, strict=False)), RATE)
    for names in (["a"], ["a=-1"], ["a=1", "b"], []):
        with pytest.raises(ValueError, match="corpora are FOLDER=WEIGHT once or more often"):
            weighted_folders(names)


def test_linked_folders_are_followed_each_once(tmp_path, caplog):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    write_constant(corpus / "own" / "a.wav", 0.5)
    write_constant(elsewhere / "deep" / "b.wav", 0.5)
    write_constant(elsewhere / "c.wav", 0.5)
    (corpus / "1 alias").symlink_to(corpus / "own")
    (corpus / "2 link").symlink_to(elsewhere)
    (corpus / "3 part").symlink_to(elsewhere / "deep")
    (corpus / "own" / "loop").symlink_to(corpus)
    (corpus / "own" / "above").symlink_to(tmp_path)
    (elsewhere / "deep" / "loop").symlink_to(elsewhere)
    (corpus / "linked.wav").symlink_to(elsewhere / "c.wav")
    (corpus / "gone").symlink_to(tmp_path / "gone")
    names = {path.relative_to(corpus).as_posix() for path in audio_files(corpus)}
    assert names == {"own/a.wav", "2 link/deep/b.wav", "2 link/c.wav", "linked.wav"}
    assert {path.relative_to(corpus) for path in audio_files(corpus / "3 part")} == {Path("3 part/b.wav")}
    left_out = caplog.text
    for name in ("1 alias", "own/loop", "own/above", "3 part", "2 link/deep/loop", "gone"):
        assert f"left out: {corpus / name} " in left_out
    assert len(Corpora({corpus: 1}, RATE).files()) == 4


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """Names of the files whose headers are read, in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = []
    monkeypatch.setattr(module, "audio_header", lambda path: names.append(path.name) or audio_header(path))
    return names


def test_headers_are_read_once_and_again_where_files_changed(tmp_path, counted):
    folder = tmp_path / "corpus"
    for name in ("kept", "longer", "touched", "vanished"):
        write_constant(folder / "deep" / f"{name}.wav", 0.5)
    index, unreadable = file_index(folder)
    assert index["deep/kept.wav"][2:] == [RATE, 400]
    assert (len(counted), unreadable) == (4, {})
    assert file_index(folder) == (index, {})
    assert len(Corpora({folder: 1}, RATE).files()) == 4
    assert len(counted) == 4

    counted.clear()
    write_constant(folder / "deep" / "longer.wav", 0.5, n_samples=500)
    write_constant(folder / "deep" / "new.wav", 0.5, n_samples=600)
    write_constant(folder / "deep" / "touched.wav", 0.5, rate=8000)  # of the same size
    os.utime(folder / "deep" / "touched.wav", ns=(1, 1))
    (folder / "deep" / "vanished.wav").unlink()
    index, _ = file_index(folder)
    assert sorted(counted) == ["longer.wav", "new.wav", "touched.wav"]
    found = {Path(name).stem: entry[2:] for name, entry in index.items()}
    assert found == {"kept": [RATE, 400], "longer": [RATE, 500], "new": [RATE, 600], "touched": [8000, 400]}
    (cache,) = (tmp_path / "cache" / "lincae" / "corpora").iterdir()
    assert sorted(json.loads(cache.read_text())) == sorted(index)


def test_a_broken_or_unwritable_cache_costs_only_time(tmp_path, counted, monkeypatch, caplog):
    write_constant(tmp_path / "corpus" / "a.wav", 0.5)
    index = file_index(tmp_path / "corpus")
    (cache,) = (tmp_path / "cache" / "lincae" / "corpora").iterdir()
    cache.write_bytes(cache.read_bytes()[:-5])
    assert file_index(tmp_path / "corpus") == index
    assert "headers are indexed again" in caplog.text
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert file_index(tmp_path / "corpus") == index
    assert "headers will be indexed again next time" in caplog.text
    assert counted == ["a.wav"] * 3


def test_unreadable_files_are_left_out_counted_and_listed(tmp_path, caplog):
    write_constant(tmp_path / "good.wav", 0.5)
    write_constant(tmp_path / "cut.wav", 0.5)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:700])
    (tmp_path / "junk.flac").write_bytes(b"junk" * 100)
    corpora = Corpora({tmp_path: 1}, RATE)
    assert "skipped 2 files that cannot be read" in caplog.text
    assert (corpora.crops(range(2000), 100, 0) == 0.5).all()
    assert "truncated" in corpora.skipped[f"{tmp_path}/cut.wav"]
    assert "cannot be read" in corpora.skipped[f"{tmp_path}/junk.flac"]
    assert corpora.skip_report().startswith("2 files skipped: ")
    soundfile.write(tmp_path / "junk.flac", np.full(400, 0.5), RATE)
    assert list(Corpora({tmp_path: 1}, RATE).skipped) == [f"{tmp_path}/cut.wav"]


def many(folder, n_files=300):
    for k in range(n_files):
        write_constant(folder / f"{k:03d}.wav", 0.5)
    return Corpora({folder: 1}, RATE)


def test_files_that_vanish_shrink_or_fail_are_drawn_again(tmp_path, caplog):
    corpora = many(tmp_path)
    before = corpora.crops(range(300), 100, 0)
    (tmp_path / "000.wav").unlink()
    write_constant(tmp_path / "001.wav", 0.5, n_samples=50)
    write_constant(tmp_path / "002.wav", np.nan)
    with caplog.at_level(logging.WARNING):
        after = corpora.crops(range(600), 100, 0)
    assert (after == 0.5).all()
    assert torch.equal(after[:300], before)
    reasons = {name[-7:]: reason for name, reason in corpora.skipped.items()}
    assert "no such audio file" in reasons["000.wav"]
    assert "nothing to read from" in reasons["001.wav"] or "shorter" in reasons["001.wav"]
    assert "non-finite" in reasons["002.wav"]
    assert sum(record.getMessage().startswith("skipped: ") for record in caplog.records) == 3
    assert "3 files skipped: " in corpora.skip_report()


@pytest.mark.parametrize("passes", [True, False])
def test_a_fault_that_passes_changes_no_crop(corpus, monkeypatch, passes):
    """The system reads no file before the last wait, or never."""
    whole = Corpora({corpus: 1}, RATE).crops([7], 100, 0)
    faulty = Corpora({corpus: 1}, RATE)
    waits_s = []
    sound_file = soundfile.SoundFile

    def unreliable(*arguments, **options):
        if passes and len(waits_s) == len(RETRY_WAITS_S):
            return sound_file(*arguments, **options)
        raise soundfile.LibsndfileError(2)  # "System error"

    monkeypatch.setattr(soundfile, "SoundFile", unreliable)
    monkeypatch.setattr("time.sleep", waits_s.append)
    if passes:
        assert torch.equal(faulty.crops([7], 100, 0), whole)
        assert not faulty.skipped
    else:
        with pytest.raises(AudioFileError, match=r"draws failed.*System error"):
            faulty.crops([7], 100, 0)
    n_files = max(1, len(faulty.skipped))
    assert waits_s == n_files * list(RETRY_WAITS_S)


class Batches:
    def __init__(self, corpora):
        self.corpora = corpora

    def __getitem__(self, step):
        return self.corpora.crops(range(20 * step, 20 * step + 20), 100, 0)


def test_more_than_one_percent_of_failed_draws_is_an_error(tmp_path):
    corpora = many(tmp_path)
    for k in range(2):
        (tmp_path / f"{k:03d}.wav").unlink()
    assert len(corpora.crops(range(3000), 100, 0)) == 3000
    for k in range(30):
        (tmp_path / f"{k:03d}.wav").unlink(missing_ok=True)
    with pytest.raises(AudioFileError, match=r"of 5000 draws failed, more than 1% of 5000: .*; \d+ files"):
        corpora.crops(range(2000), 100, 1)

    few = many(tmp_path / "few", 20)
    (tmp_path / "few" / "000.wav").unlink()
    assert len(few.crops(range(100), 100, 0)) == 100
    with pytest.raises(AudioFileError, match=r"\d+ of 500 draws failed, more than 1% of 1000"):
        few.crops(range(100, 500), 100, 0)
    for k in range(10):
        (tmp_path / "few" / f"{k:03d}.wav").unlink(missing_ok=True)
    with pytest.raises(AudioFileError, match="repair or remove the files"):  # said by data workers, too
        list(DataLoader(Batches(few), batch_size=None, sampler=range(60), num_workers=1))


def test_what_data_workers_skip_is_listed_in_the_run(tmp_path):
    corpora = many(tmp_path / "corpus")
    junk = tmp_path / "corpus" / "junk, \n.wav"
    junk.write_bytes(b"")
    corpora = Corpora({tmp_path / "corpus": 1}, RATE)
    for k in range(2):
        (tmp_path / "corpus" / f"{k:03d}.wav").unlink()
    table = tmp_path / "skipped.csv"
    for _ in range(2):  # the second is the run resumed
        corpora.share_skipped(table)
        for batch in DataLoader(Batches(corpora), batch_size=None, sampler=range(60), num_workers=2):
            assert (batch == 0.5).all()
    names = [row["file"] for row in csv.DictReader(table.open(newline=""))]
    assert set(names) == {str(tmp_path / "corpus" / name) for name in ("000.wav", "001.wav")} | {str(junk)}
    assert names.count(str(junk)) == 1
    assert set(corpora.skipped) == set(names)
    assert corpora.skip_report().startswith(f"3 files skipped, listed in {table}: ")
    with table.open("a") as file:
        file.write("cut sho")
    assert set(corpora.skipped) == set(names)


@pytest.mark.slow
def test_training_lists_what_it_skipped_at_its_end(tmp_path, caplog):
    (tmp_path / "corpus").mkdir()
    for k in range(30):
        samples = 0.1 * np.random.default_rng(k).normal(size=2 * RATE)
        soundfile.write(tmp_path / "corpus" / f"{k}.wav", samples, RATE)
    corpora = Corpora({tmp_path / "corpus": 1}, RATE)
    (tmp_path / "corpus" / "0.wav").unlink()
    config = small(steps=12, batch_size=4)
    options = {"device": "cpu", "progress": False, "workers": 1}
    train(objective_of(config), corpora, tmp_path / "run", stop_at=8, **options)
    assert f"1 files skipped, listed in {tmp_path}/run/skipped.csv: {tmp_path}/corpus/0.wav" in caplog.text
    caplog.clear()
    left = Corpora({tmp_path / "corpus": 1}, RATE)
    with pytest.raises(ValueError, match=r"data: corpus=1 \(30 files\) -> corpus=1 \(29 files\)"):
        train(objective_of(config), left, tmp_path / "run", **options)
    train(objective_of(config), left, tmp_path / "run", other_data=True, **options)
    assert "1 files skipped" in caplog.text
