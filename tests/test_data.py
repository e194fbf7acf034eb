"""Training crops: stems in memory, weighted folders, and what a command line names."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lincae import data
from lincae.audio import generator
from lincae.data import Corpora, StemBank, training_data
from lincae.tracks import tracks, write_synthetic

RATE = 16000


# ---------------------------------------------------------------- StemBank


def ramps(n_songs=3, n_stems=4, n_samples=500):
    """Songs whose every sample tells song, stem and time."""
    song, stem, time = torch.arange(n_songs), torch.arange(n_stems), torch.arange(n_samples)
    return list(1 + time + n_samples * (stem[:, None] + 10 * song[:, None, None]).float())


def bank(stems=None, **options):
    return StemBank(ramps() if stems is None else stems, RATE, "ramps", **options)


def test_synthetic_training_data_needs_no_audio_library():
    code = (
        "from lincae.data import StemBank; StemBank.from_synth(2, 2.0, 16000).crops(range(3), 9000, 0)\n"
        "import sys; assert not {'soundfile', 'soxr', 'torchaudio', 'av', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


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
    for source in (bank(), Corpora({corpus / "a": 2, corpus / "b": 1}, RATE)):
        batch = source.crops(indices, 100, seed)
        assert batch.shape == (len(indices), 100)
        assert batch.dtype == torch.float32
        assert source.sample_rate == RATE
        assert torch.equal(source.crops(indices[::-1], 100, seed).flip(0), batch)
        assert torch.equal(source.crops(indices[:1], 100, seed)[0], batch[0])
        assert not torch.equal(source.crops(indices[:1], 100, seed + 1)[0], batch[0])


def test_bank_items_are_stretches_of_a_stem_or_of_the_sum():
    songs, n_samples = ramps(), 20
    seen = {"stem": set(), "sum": set()}
    for crop in bank().crops(range(3000), n_samples, 0):
        step = crop[1] - crop[0]
        kind = "stem" if step == 1 else "sum"
        rows = torch.cat(songs) if kind == "stem" else torch.stack([song.sum(0) for song in songs])
        row, start = (rows == crop[0]).nonzero()[0].tolist()
        assert torch.equal(rows[row, start : start + n_samples], crop)
        seen[kind].add((row, start))
    assert {row for row, _ in seen["stem"]} == set(range(12))
    assert {row for row, _ in seen["sum"]} == set(range(3))
    starts = {start for _, start in seen["stem"] | seen["sum"]}
    assert min(starts) == 0
    assert max(starts) == 500 - n_samples


@pytest.mark.parametrize("solo_share", [0.0, 0.25, 1.0])
def test_solo_share_is_the_share_of_single_stems(solo_share):
    crops = bank(solo_share=solo_share).crops(range(2000), 2, 1)
    share = ((crops[:, 1] - crops[:, 0]) == 1).float().mean().item()
    assert share == pytest.approx(solo_share, abs=4 * (solo_share * (1 - solo_share) / 2000) ** 0.5)


def test_a_crop_may_be_the_whole_song():
    crops = bank(ramps(1, 1, 50)).crops(range(5), 50, 0)
    assert torch.equal(crops, ramps(1, 1, 50)[0].expand(5, 50))


def test_silent_crops_are_drawn_again():
    song = torch.zeros(4, 4000)
    song[2, 3000:] = 0.5
    crops = bank([song, torch.zeros(4, 4000)]).crops(range(50), 100, 0)
    assert (crops.square().mean(1).sqrt() >= 1e-3).all()


def test_nothing_but_silence_is_an_error_that_names_a_song():
    with pytest.raises(ValueError, match="song 0 of ramps is silent"):
        bank([torch.zeros(4, 400)]).crops([0], 100, 0)


def test_bank_refuses():
    with pytest.raises(ValueError, match="song 1 of ramps is shorter than 450 samples"):
        bank([torch.ones(4, 500), torch.ones(4, 400)]).crops([0], 450, 0)
    for stems in ([], [torch.ones(5)], [torch.ones(4, 0)]):
        with pytest.raises(ValueError, match=r"stems must be \(S, T\)"):
            bank(stems)
    with pytest.raises(ValueError, match="solo_share"):
        bank(solo_share=1.5)
    with pytest.raises(ValueError, match="no split 'valid'"):
        StemBank.from_synth(1, 1.0, RATE, split="valid")


def test_bank_from_tracks_and_from_synth_hold_the_same_songs(tmp_path):
    root = write_synthetic(tmp_path, n_train=2, n_test=1, seconds=2.0, sample_rate=RATE, seed=3)
    disk = StemBank.from_tracks(tracks("synthetic", "train", root=root), RATE)
    memory = StemBank.from_synth(2, 2.0, RATE, seed=3)
    for ours, theirs in zip(disk.stems, memory.stems, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.51 / 2**15)
    assert disk.description == "2 tracks of synthetic"
    assert memory.description == "2 synthetic train songs of 2 s, seed 3"
    held_out = StemBank.from_synth(1, 2.0, RATE, seed=3, split="test")
    torch.testing.assert_close(
        tracks("synthetic", root=root)[0].stems(), held_out.stems[0], rtol=0, atol=0.51 / 2**15
    )


# ---------------------------------------------------------------- Corpora


def write_constant(path, level, n_samples=400, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(n_samples, float(level)), rate, subtype="FLOAT")


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
    assert list(corpora.skipped) == [tmp_path / "few" / "bad.wav"]
    drawn = expected > 0
    # chi-square with two degrees of freedom: 13.8 is exceeded with probability 0.001
    assert ((counts - expected)[drawn].square() / expected[drawn]).sum() < 13.8
    assert corpora.description == "many=3 (20 files), few=6 (3 files), none=0 (2 files), one=1 (1 files)"


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


def test_the_whole_file_can_be_one_crop(tmp_path):
    write_constant(tmp_path / "a.wav", 0.5, n_samples=441, rate=44100)
    corpora = Corpora({tmp_path: 1}, RATE)
    assert corpora.crops([0, 1], 160, 0).shape == (2, 160)
    with pytest.raises(ValueError, match="200 draws gave no 161 samples"):
        corpora.crops([0], 161, 0)


def test_unusable_files_are_skipped_counted_and_logged_once(tmp_path, caplog):
    write_constant(tmp_path / "good.wav", 0.5)
    write_constant(tmp_path / "short.wav", 0.5, n_samples=50)
    write_constant(tmp_path / "nan.wav", np.nan)
    write_constant(tmp_path / "cut.wav", 0.5)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:700])
    (tmp_path / "junk.flac").write_bytes(b"junk" * 100)
    corpora = Corpora({tmp_path: 1}, RATE)
    fresh = Corpora({tmp_path: 1}, RATE)
    batch = corpora.crops(range(200), 100, 0)
    assert (batch == 0.5).all()
    reasons = {path.name: reason for path, reason in corpora.skipped.items()}
    assert sorted(reasons) == ["cut.wav", "junk.flac", "nan.wav", "short.wav"]
    for name, words in (
        ("cut", "truncated"),
        ("junk", "cannot be read"),
        ("nan", "non-finite"),
        ("short", "too short"),
    ):
        (reason,) = (reason for file, reason in reasons.items() if file.startswith(name))
        assert words in reason
        assert sum(record.getMessage() == f"skipped: {reason}" for record in caplog.records) == 1
    assert torch.equal(fresh.crops([199], 100, 0), corpora.crops([199], 100, 0))


def test_quiet_crops_are_drawn_again_and_silence_is_an_error(tmp_path):
    write_constant(tmp_path / "mixed" / "loud.wav", 0.5)
    write_constant(tmp_path / "mixed" / "quiet.wav", 5e-4)
    write_constant(tmp_path / "quiet" / "quiet.wav", 5e-4)
    assert (Corpora({tmp_path / "mixed": 1}, RATE).crops(range(50), 100, 0) == 0.5).all()
    assert len(Corpora({tmp_path / "mixed": 1}, RATE, min_rms=0).crops(range(50), 100, 0).unique()) == 2
    with pytest.raises(ValueError, match=r"quiet: 200 draws gave no 100 samples of RMS >= 0\.001"):
        Corpora({tmp_path / "quiet": 1}, RATE).crops([0], 100, 0)


@pytest.mark.parametrize("weights", [(-1, 2), (0, 0), (float("nan"), 1), (float("inf"), 1), ()])
def test_weights_must_make_sense(tmp_path, weights):
    with pytest.raises(ValueError, match="weights must be >= 0 with a positive sum"):
        Corpora({tmp_path / str(k): weight for k, weight in enumerate(weights)}, RATE)


def test_folders_must_exist_and_hold_audio(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        Corpora({tmp_path / "absent": 1}, RATE)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "._a.wav").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"holds no file \.wav, \.flac, \.ogg, \.mp3"):
        Corpora({tmp_path: 1}, RATE)


# ---------------------------------------------------------------- training_data


def test_training_data_names(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "N_SONGS", {"train": 2, "test": 1})
    monkeypatch.setattr(data, "SONG_S", 2.0)
    train, test = (training_data(["synthetic"], RATE, split) for split in ("train", "test"))
    assert train.description == "2 synthetic train songs of 2 s, seed 0"
    assert len(test.stems) == 1
    assert training_data("synthetic", RATE).description == train.description
    for name in ("a=b", "c"):
        write_constant(tmp_path / name / "x.wav", 0.5)
    corpora = training_data([f"{tmp_path}/a=b=60", f"{tmp_path}/c=.5".replace("=.5", "=0.5")], 8000)
    assert corpora.description == "a=b=60 (1 files), c=0.5 (1 files)"
    assert corpora.sample_rate == 8000


@pytest.mark.parametrize("spec", ["musdb", ["synthetic", "x=1"], ["x"], ["=3"], ["x=-1"], ["x=much"], []])
def test_training_data_refuses(spec):
    with pytest.raises(ValueError, match="training data is 'synthetic', or FOLDER=WEIGHT"):
        training_data(spec, RATE)


def test_folders_have_no_test_split(tmp_path):
    with pytest.raises(ValueError, match=r"split 'train' only.*split 'test'"):
        training_data([f"{tmp_path}=1"], RATE, "test")
    with pytest.raises(ValueError, match="no split 'valid'"):
        training_data("synthetic", RATE, "valid")


def test_generator_seeds_beyond_32_bits_reach_the_bank():
    assert not torch.equal(bank().crops([2**32], 50, 0), bank().crops([0], 50, 0))
    assert generator(0, 2**32).initial_seed() != generator(0, 0).initial_seed()
