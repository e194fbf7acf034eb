"""Tracks with stems, the synthetic folder, and training crops."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lincae import data
from lincae.audio import AudioFileError, generator, resample
from lincae.data import Corpora, StemBank, song_seed, tracks, training_data, write_synthetic
from lincae.synth import STEMS, render_song

RATE = 16000
SMALL = {"n_train": 2, "n_test": 1, "seconds": 2.0, "sample_rate": RATE, "seed": 3}
needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")) and os.environ.get("CI") != "true",
    reason="ffmpeg and ffprobe are not on PATH",
)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("data") / "synthetic", **SMALL)


@pytest.fixture(scope="module")
def clip():
    return tracks("clip")[0]


def write_song(folder, n_samples=1000, channels=2, seed=0):
    stems = 0.1 * np.random.default_rng(seed).normal(size=(len(STEMS), n_samples, channels))
    folder.mkdir(parents=True)
    for name, samples in [*zip(STEMS, stems, strict=True), ("mixture", stems.sum(0))]:
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    return torch.tensor(stems.mean(-1), dtype=torch.float32)


# ---------------------------------------------------------------- synthetic songs


def test_synthetic_tracks_are_the_rendered_songs(synthetic):
    (track,) = tracks("synthetic", root=synthetic)
    rendered = torch.from_numpy(render_song(song_seed("test", 0, SMALL["seed"]), 2.0, RATE))
    assert (track.dataset, track.stem_names, track.sample_rate, track.duration_s) == (
        "synthetic",
        STEMS,
        RATE,
        2,
    )
    torch.testing.assert_close(track.stems(), rendered, rtol=0, atol=0.51 / 2**15)


def test_mixture_file_is_exactly_the_sum_of_the_stem_files(synthetic):
    for folder in (synthetic / "train").iterdir():
        stems = [soundfile.read(folder / f"{stem}.wav", dtype="int16")[0] for stem in STEMS]
        mixture = soundfile.read(folder / "mixture.wav", dtype="int16")[0]
        np.testing.assert_array_equal(sum(stems), mixture)
        assert np.abs(mixture).max() > 1000


def test_synthetic_folder_is_read_as_musdb_too(synthetic, monkeypatch):
    monkeypatch.setenv("MUSDB_PATH", str(synthetic))
    ours, theirs = tracks("synthetic", "train", root=synthetic), tracks("musdb", "train")
    assert [track.name for track in ours] == [track.name for track in theirs] == ["train_000", "train_001"]
    assert torch.equal(ours[1].stems(), theirs[1].stems())
    assert theirs[1].dataset == "musdb"


def test_no_two_songs_share_a_seed():
    seeds = {song_seed(split, i, seed) for split in ("train", "test") for i in range(99) for seed in range(5)}
    assert len(seeds) == 2 * 99 * 5


def test_interrupted_rendering_is_continued_and_whole_songs_are_kept(synthetic, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(synthetic, root)
    kept = root / "train" / "train_001" / "drums.wav"
    before = kept.stat().st_mtime_ns
    shutil.rmtree(root / "train" / "train_000")
    (root / "train" / ".train_000.1").mkdir()
    found = tracks("synthetic", "train", root=root)
    assert [track.name for track in found] == ["train_000", "train_001"]
    assert kept.stat().st_mtime_ns == before
    for stem in STEMS:
        path = f"train/train_000/{stem}.wav"
        assert (root / path).read_bytes() == (synthetic / path).read_bytes()


def test_other_parameters_and_other_folders_are_refused(synthetic, tmp_path):
    with pytest.raises(ValueError, match=r"'seed': 3.*'seed': 4.*delete it, or use another root"):
        write_synthetic(synthetic, **{**SMALL, "seed": 4})
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"not empty and has no synthetic\.json"):
        write_synthetic(tmp_path, **SMALL)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_failed_rendering_leaves_no_half_song(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "render_song", lambda seed, seconds, rate: np.full((4, 100), 0.3, np.float32))
    with pytest.raises(ValueError, match=r"peak 1\.200 of song 0 does not fit 16-bit"):
        data._write_song(tmp_path / "train" / "train_000", 0, 1.0, RATE)
    assert not (tmp_path / "train").exists()


def test_default_folder_is_rendered_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setenv("LINCAE_DATA", str(tmp_path))
    root = tmp_path / "synthetic"
    root.mkdir()
    (root / "synthetic.json").write_text(json.dumps({**SMALL, "n_train": 1}))
    assert [track.name for track in tracks("synthetic")] == ["test_000"]
    assert (root / "train" / "train_000" / "mixture.wav").is_file()


# ---------------------------------------------------------------- tracks


def test_stems_are_channel_means_and_parts_are_parts(tmp_path):
    expected = write_song(tmp_path / "test" / "a")
    (track,) = tracks("musdb", root=tmp_path)
    torch.testing.assert_close(track.stems(), expected, rtol=0, atol=1e-7)
    assert track.stems().dtype == torch.float32
    part = track.stems(start_s=100 / RATE, seconds=300 / RATE)
    torch.testing.assert_close(part, expected[:, 100:400], rtol=0, atol=1e-7)
    torch.testing.assert_close(track.stems(8000), resample(track.stems(), RATE, 8000))


def test_musdb_splits_are_the_official_ones(tmp_path):
    for name in ("Alexander Ross - Goodbye Bolero", "Some - Other", "ANiMAL - Rockshow"):
        write_song(tmp_path / "train" / name)
    write_song(tmp_path / "test" / "b")
    write_song(tmp_path / "test" / "a")
    (tmp_path / "test" / "notes").mkdir()
    names = {
        split: [t.name for t in tracks("musdb", split, root=tmp_path)] for split in ("train", "valid", "test")
    }
    assert names["train"] == ["Some - Other"]
    assert names["test"] == ["a", "b"]
    assert names["valid"] == ["ANiMAL - Rockshow", "Alexander Ross - Goodbye Bolero"]
    assert [t.name for t in tracks("musdb", n_tracks=1, root=tmp_path)] == ["a"]


def test_clip_is_four_real_stems(clip):
    stems = clip.stems()
    assert stems.shape == (4, 268288)
    assert stems.dtype == torch.float32
    assert clip.sample_rate == 44100
    assert clip.duration_s == pytest.approx(268288 / 44100)
    assert clip.stem_names == STEMS
    # kick drums hold most below 150 Hz and voices least; the bass holds most below 2 kHz
    power = torch.fft.rfft(stems).abs().square()
    low, middle = (power[:, : round(hz * 268288 / 44100)].sum(1) / power.sum(1) for hz in (150, 2000))
    assert (low.argmax(), low.argmin(), middle.argmax()) == (0, 3, 1)
    part = clip.stems(start_s=1.0, seconds=0.5)
    assert torch.equal(part, stems[:, 44100 : 44100 + 22050])


def test_clip_is_read_without_stempeg_and_ffmpeg():
    code = (
        "from lincae.data import tracks; tracks('clip')[0].stems()\n"
        "import sys; assert not {'stempeg', 'musdb', 'ffmpeg'} & set(sys.modules)"
    )
    environment = {**os.environ, "PATH": os.path.dirname(sys.executable)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_synthetic_training_data_needs_no_audio_library():
    code = (
        "from lincae.data import StemBank; StemBank.from_synth(2, 2.0, 16000).crops(range(3), 9000, 0)\n"
        "import sys; assert not {'soundfile', 'soxr', 'torchaudio', 'av', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@needs_ffmpeg
def test_stems_form_is_read_through_musdb(tmp_path, clip):
    source = importlib.util.find_spec("stempeg").submodule_search_locations[0]
    for split, name in (("test", "song"), ("train", "ANiMAL - Rockshow"), ("train", "other")):
        (tmp_path / split).mkdir(exist_ok=True)
        shutil.copy(f"{source}/data/{clip.name}.stem.mp4", tmp_path / split / f"{name}.stem.mp4")
    (track,) = tracks("musdb", root=tmp_path)
    assert (track.name, track.dataset, track.stem_names, track.sample_rate) == ("song", "musdb", STEMS, 44100)
    assert track.duration_s == pytest.approx(clip.duration_s, abs=0.01)
    torch.testing.assert_close(track.stems(), clip.stems(), rtol=0, atol=1e-6)
    part = track.stems(start_s=1.5, seconds=2.0)
    torch.testing.assert_close(part, clip.stems(start_s=1.5, seconds=2.0), rtol=0, atol=1e-6)
    assert [t.name for t in tracks("musdb", "train", root=tmp_path)] == ["other"]
    assert [t.name for t in tracks("musdb", "valid", root=tmp_path)] == ["ANiMAL - Rockshow"]
    (tmp_path / "test" / "song.stem.mp4").write_bytes(b"not a video")
    with pytest.raises(AudioFileError, match=r"song\.stem\.mp4"):
        track.stems()
    with pytest.raises(AudioFileError, match=r"song\.stem\.mp4"):
        tracks("musdb", root=tmp_path)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "jamendo"}, r"'jamendo'.*'synthetic', 'clip', 'musdb'"),
        ({"dataset": "clip", "split": "train"}, r"'clip' has no split 'train'.*\('test',\)"),
        ({"dataset": "synthetic", "split": "valid"}, r"no split 'valid'.*'train', 'test'"),
        ({"dataset": "musdb", "n_tracks": 0}, "n_tracks must be at least 1.*got 0"),
        ({"dataset": "clip", "root": "x"}, "takes no root"),
    ],
)
def test_unknown_names_list_the_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        tracks(**arguments)


def test_musdb_root_missing_or_without_tracks(tmp_path, monkeypatch):
    monkeypatch.delenv("MUSDB_PATH", raising=False)
    with pytest.raises(FileNotFoundError, match=r"root=.*MUSDB_PATH"):
        tracks("musdb")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tracks("musdb", root=tmp_path / "nowhere")
    (tmp_path / "test" / "empty song").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no test tracks.*mixture\.wav"):
        tracks("musdb", root=tmp_path)
    write_song(tmp_path / "train" / "a")
    with pytest.raises(FileNotFoundError, match="no valid tracks"):
        tracks("musdb", "valid", root=tmp_path)


def test_missing_ffmpeg_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.stem.mp4").write_bytes(b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RuntimeError, match="needs ffmpeg and ffprobe: apt install ffmpeg, or conda install -c conda-forge"
    ):
        tracks("musdb", root=tmp_path)


@pytest.mark.parametrize(("dataset", "package"), [("clip", "stempeg"), ("musdb", "musdb")])
def test_missing_package_says_what_to_install(tmp_path, monkeypatch, dataset, package):
    write_song(tmp_path / "train" / "a")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arguments = (
        {"dataset": "clip"} if dataset == "clip" else {"dataset": "musdb", "split": "train", "root": tmp_path}
    )
    with pytest.raises(ImportError, match=f"pip install {package}"):
        tracks(**arguments)


def test_bad_files_of_a_track_are_named(tmp_path):
    write_song(tmp_path / "test" / "a")
    (track,) = tracks("musdb", root=tmp_path)
    path = tmp_path / "test" / "a" / "bass.wav"
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(AudioFileError, match=r"a/bass\.wav: truncated"):
        track.stems()
    with pytest.raises(AudioFileError, match=r"a/bass\.wav: truncated"):
        tracks("musdb", root=tmp_path)
    soundfile.write(path, np.zeros(999), RATE)
    with pytest.raises(AudioFileError, match=r"test/a: .* differ in sample rate or length"):
        tracks("musdb", root=tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"bass\.wav"):
        tracks("musdb", root=tmp_path)


@pytest.mark.parametrize("request_", [{"start_s": 7.0}, {"start_s": -0.1}, {"seconds": 0.0}])
def test_a_part_must_lie_in_the_track(clip, request_):
    with pytest.raises(ValueError, match=r"Falcon 69' lasts 6\.084 s, nothing at start_s="):
        clip.stems(**request_)


# ---------------------------------------------------------------- StemBank


def ramps(n_songs=3, n_stems=4, n_samples=500):
    """Songs whose every sample tells song, stem and time."""
    song, stem, time = torch.arange(n_songs), torch.arange(n_stems), torch.arange(n_samples)
    return list(1 + time + n_samples * (stem[:, None] + 10 * song[:, None, None]).float())


def bank(stems=None, **options):
    return StemBank(ramps() if stems is None else stems, RATE, "ramps", **options)


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


def test_bank_refuses(clip):
    with pytest.raises(ValueError, match="song 1 of ramps is shorter than 450 samples"):
        bank([torch.ones(4, 500), torch.ones(4, 400)]).crops([0], 450, 0)
    for stems in ([], [torch.ones(5)], [torch.ones(4, 0)]):
        with pytest.raises(ValueError, match=r"stems must be \(S, T\)"):
            bank(stems)
    with pytest.raises(ValueError, match="solo_share"):
        bank(solo_share=1.5)
    with pytest.raises(ValueError, match="no split 'valid'"):
        StemBank.from_synth(1, 1.0, RATE, split="valid")


def test_bank_from_tracks_and_from_synth_hold_the_same_songs(synthetic):
    disk = StemBank.from_tracks(tracks("synthetic", "train", root=synthetic), RATE)
    memory = StemBank.from_synth(2, 2.0, RATE, seed=SMALL["seed"])
    for ours, theirs in zip(disk.stems, memory.stems, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.51 / 2**15)
    assert disk.description == "2 tracks of synthetic"
    assert memory.description == "2 synthetic train songs of 2 s, seed 3"
    held_out = StemBank.from_synth(1, 2.0, RATE, seed=SMALL["seed"], split="test")
    torch.testing.assert_close(
        tracks("synthetic", root=synthetic)[0].stems(), held_out.stems[0], rtol=0, atol=0.51 / 2**15
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
