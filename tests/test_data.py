"""Training crops: stems in memory, weighted folders, and what a command line names."""

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lincae.data import crops as data
from lincae.data.crops import StemBank, training_data
from lincae.data.shards import write_shards
from lincae.data.tracks import tracks, write_synthetic

RATE = 16000


def ramps(n_songs=3, n_stems=4, n_samples=500):
    """Songs whose every sample tells song, stem and time."""
    song, stem, time = torch.arange(n_songs), torch.arange(n_stems), torch.arange(n_samples)
    return list(1 + time + n_samples * (stem[:, None] + 10 * song[:, None, None]).float())


def bank(stems=None):
    return StemBank(ramps() if stems is None else stems, RATE, "ramps")


@settings(deadline=None, max_examples=25)
@given(indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=6), seed=st.integers(0, 2**30))
def test_an_item_is_a_function_of_seed_and_index(indices, seed):
    batch = bank().crops(indices, 100, seed)
    assert batch.shape == (len(indices), 100)
    assert batch.dtype == torch.float32
    assert torch.equal(bank().crops(indices[::-1], 100, seed).flip(0), batch)
    assert torch.equal(bank().crops(indices[:1], 100, seed)[0], batch[0])
    assert not torch.equal(bank().crops(indices[:1], 100, seed + 1)[0], batch[0])


def test_bank_items_are_audible_stretches_of_a_stem_or_as_often_of_the_sum():
    songs, n_samples = ramps(), 20
    seen = {"stem": set(), "sum": set()}
    kinds = []
    for crop in bank().crops(range(3000), n_samples, 0):
        kinds.append("stem" if crop[1] - crop[0] == 1 else "sum")
        rows = torch.cat(songs) if kinds[-1] == "stem" else torch.stack([song.sum(0) for song in songs])
        row, start = (rows == crop[0]).nonzero()[0].tolist()
        assert torch.equal(rows[row, start : start + n_samples], crop)
        seen[kinds[-1]].add((row, start))
    assert kinds.count("stem") == pytest.approx(1500, abs=110)
    assert {row for row, _ in seen["stem"]} == set(range(12))
    assert {row for row, _ in seen["sum"]} == set(range(3))
    starts = {start for _, start in seen["stem"] | seen["sum"]}
    assert (min(starts), max(starts)) == (0, 500 - n_samples)
    whole = ramps(1, 1, 50)
    assert torch.equal(bank(whole).crops(range(5), 50, 0), whole[0].expand(5, 50))
    song = torch.zeros(4, 4000)
    song[2, 3000:] = 0.5
    audible = bank([song, torch.zeros(4, 4000)]).crops(range(50), 100, 0)
    assert (audible.square().mean(1).sqrt() >= 1e-3).all()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: bank([torch.zeros(4, 400)]).crops([0], 100, 0), "song 0 of ramps is silent"),
        (lambda: bank([torch.ones(4, 500), torch.ones(4, 400)]).crops([0], 450, 0), "song 1 of ramps.* 450"),
        (lambda: bank([torch.ones(5)]), r"\(5,\)"),
        (lambda: StemBank.from_synth(1, 1.0, RATE, split="valid"), "no split 'valid'"),
        (lambda: training_data(["x=1"], RATE, "test"), "split 'test'"),
        *[
            (lambda spec=spec: training_data(spec, RATE), r"'synthetic', .*shards:FOLDER or corpora")
            for spec in ("musdb", ["synthetic", "x=1"], ["x=much"], [])
        ],
    ],
)
def test_refusals(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_bank_from_synth_holds_the_songs_of_the_disk(tmp_path):
    root = write_synthetic(tmp_path, n_train=2, n_test=1, seconds=2.0, sample_rate=RATE, seed=3)
    for split, count in (("train", 2), ("test", 1)):
        memory = StemBank.from_synth(count, 2.0, RATE, seed=3, split=split)
        assert memory.description == f"{count} synthetic {split} songs of 2 s, seed 3"
        for ours, track in zip(memory.stems, tracks("synthetic", split, root=root), strict=True):
            torch.testing.assert_close(ours, track.stems(), rtol=0, atol=0.51 / 2**15)


def test_processes_of_a_launcher_render_songs_once(tmp_path, monkeypatch):
    alone = StemBank.from_synth(2, 2.0, RATE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    first = StemBank.from_synth(2, 2.0, RATE)
    monkeypatch.setattr(data, "render_song", None)
    second = StemBank.from_synth(2, 2.0, RATE)
    for ours, theirs, wanted in zip(first.stems, second.stems, alone.stems, strict=True):
        assert torch.equal(ours, wanted)
        assert torch.equal(theirs, wanted)


def test_training_data_names(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "N_SONGS", {"train": 2, "test": 1})
    monkeypatch.setattr(data, "SONG_S", 2.0)
    train, test = (training_data(["synthetic"], RATE, split) for split in ("train", "test"))
    assert train.description == "2 synthetic train songs of 2 s, seed 0"
    assert len(test.stems) == 1
    assert training_data("synthetic", RATE).description == train.description
    for name in ("a=b", "c"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "x.wav", np.full(400, 0.5), 8000)
    corpora = training_data([f"{tmp_path}/a=b=60", f"{tmp_path}/c=0.5"], 8000)
    assert corpora.description == "a=b=60 (1 files), c=0.5 (1 files)"
    assert corpora.sample_rate == 8000
    write_shards(corpora, tmp_path / "shards")
    assert training_data(f"shards:{tmp_path}/shards", 8000).description == corpora.description
    with pytest.raises(FileNotFoundError, match="holds no complete shards"):
        training_data(f"shards:{tmp_path}", 8000)
