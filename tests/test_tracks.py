"""Tracks with stems: the synthetic folder, the clip, MUSDB18, folders of one's own, stretches."""

import importlib.util
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lincae.data import tracks as room
from lincae.data.audio import AudioFileError, resample
from lincae.data.folders import AUDIO_EXTENSIONS
from lincae.data.synth import STEMS, render_song
from lincae.data.tracks import song_seed, tracks, write_synthetic

RATE = 16000
SMALL = {"n_train": 2, "n_test": 1, "seconds": 2.0, "sample_rate": RATE, "seed": 3}


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


def test_synthetic_tracks_are_the_rendered_songs(synthetic, monkeypatch):
    (track,) = tracks("synthetic", root=synthetic)
    rendered = torch.from_numpy(render_song(song_seed("test", 0, SMALL["seed"]), 2.0, RATE))
    facts = (track.dataset, track.stem_names, track.sample_rate, track.duration_s)
    assert facts == ("synthetic", STEMS, RATE, 2)
    torch.testing.assert_close(track.stems(), rendered, rtol=0, atol=0.51 / 2**15)

    monkeypatch.setenv("MUSDB_PATH", str(synthetic))
    as_musdb = tracks("musdb", "train")
    assert [track.name for track in as_musdb] == ["train_000", "train_001"]
    assert torch.equal(as_musdb[1].stems(), tracks("synthetic", "train", root=synthetic)[1].stems())
    for folder in (synthetic / "train").iterdir():
        stems = [soundfile.read(folder / f"{stem}.wav", dtype="int16")[0] for stem in STEMS]
        mixture = soundfile.read(folder / "mixture.wav", dtype="int16")[0]
        np.testing.assert_array_equal(sum(stems), mixture)
        assert np.abs(mixture).max() > 1000


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


def test_other_songs_and_other_folders_are_refused(synthetic, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="songs of seed 3, not 4"):
        write_synthetic(synthetic, **{**SMALL, "seed": 4})
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"not empty and has no synthetic\.json"):
        write_synthetic(tmp_path, **SMALL)
    assert os.listdir(tmp_path) == ["mine.txt"]
    with pytest.raises(ValueError, match=r"folder test: use dataset 'musdb' with root=.*'"):
        tracks(synthetic)  # stems are never taken for mixtures

    manifest = json.loads((synthetic / "synthetic.json").read_text())
    assert manifest == {**SMALL, "version": 1}
    monkeypatch.setattr(room, "SYNTH_VERSION", 2)
    del manifest["version"]  # as the first manifests
    (tmp_path / "synthetic.json").write_text(json.dumps(manifest))
    for root in (synthetic, tmp_path):
        with pytest.raises(ValueError, match=r"songs of version (1|None), not 2"):
            tracks("synthetic", root=root)


def test_default_folder_is_rendered_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setenv("LINCAE_DATA", str(tmp_path))
    root = tmp_path / "synthetic"
    root.mkdir()
    (root / "synthetic.json").write_text(json.dumps({**SMALL, "n_train": 1}))
    assert [track.name for track in tracks("synthetic")] == ["test_000"]
    assert not (root / "train").exists()  # only what was asked for
    assert [track.name for track in tracks("synthetic", "train")] == ["train_000"]


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
    for name in "ba":
        write_song(tmp_path / "test" / name)
    (tmp_path / "test" / "notes").mkdir()
    names = {}
    for split in ("train", "valid", "test"):
        names[split] = [track.name for track in tracks("musdb", split, root=tmp_path)]
    assert names["train"] == ["Some - Other"]
    assert names["test"] == ["a", "b"]
    assert names["valid"] == ["ANiMAL - Rockshow", "Alexander Ross - Goodbye Bolero"]
    assert [t.name for t in tracks("musdb", n_tracks=1, root=tmp_path)] == ["a"]


def test_clip_is_four_real_stems(clip):
    stems = clip.stems()
    assert stems.shape == (4, 268288 - 2205 - 1632)
    # The file has a spike near either end, in all stems at once, which would pass full scale in their sum.
    mixture = stems.sum(0).abs()
    assert 0.7 < mixture.max() < 0.8
    assert min(mixture[:4410].max(), mixture[-4410:].max()) > 0.2
    assert stems.dtype == torch.float32
    assert clip.sample_rate == 44100
    assert clip.duration_s == stems.shape[1] / 44100
    assert clip.stem_names == STEMS
    # kick drums hold most below 150 Hz and voices least; the bass holds most below 2 kHz
    power = torch.fft.rfft(stems).abs().square()
    low, middle = (power[:, : round(hz * stems.shape[1] / 44100)].sum(1) / power.sum(1) for hz in (150, 2000))
    assert (low.argmax(), low.argmin(), middle.argmax()) == (0, 3, 1)
    part = clip.stems(start_s=1.0, seconds=0.5)
    assert torch.equal(part, stems[:, 44100 : 44100 + 22050])


@pytest.fixture
def stem_files(tmp_path, clip):
    """The clip in a folder as MUSDB18 comes, three times."""
    source = importlib.util.find_spec("stempeg").submodule_search_locations[0]
    for split, name in (("test", "song"), ("train", "ANiMAL - Rockshow"), ("train", "other")):
        (tmp_path / split).mkdir(exist_ok=True)
        shutil.copy(f"{source}/data/{clip.name}.stem.mp4", tmp_path / split / f"{name}.stem.mp4")
    return tmp_path


def test_musdb_in_stems_form_needs_no_program(stem_files, clip, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (track,) = tracks("musdb", root=stem_files)
    assert (track.name, track.dataset, track.stem_names, track.sample_rate) == ("song", "musdb", STEMS, 44100)
    assert track.duration_s == 268288 / 44100
    assert torch.equal(track.stems()[:, 2205:-1632], clip.stems())
    part = track.stems(start_s=1.55, seconds=2.0)
    assert torch.equal(part, clip.stems(start_s=1.5, seconds=2.0))
    whole, part = track.stems(16000), track.stems(16000, 20011 / 16000, 40009 / 16000)
    assert (part - whole[:, 20011:60020]).abs().max() < 1e-5 * whole.abs().max()
    assert [t.name for t in tracks("musdb", "train", root=stem_files)] == ["other"]
    assert [t.name for t in tracks("musdb", "valid", root=stem_files)] == ["ANiMAL - Rockshow"]


@pytest.mark.parametrize("damage", ["no video", "cut"])
def test_damaged_stem_files_are_named(stem_files, damage):
    path = stem_files / "test" / "song.stem.mp4"
    (track,) = tracks("musdb", root=stem_files)
    content = path.read_bytes()
    path.write_bytes(b"no video" if damage == "no video" else content[: len(content) // 2])
    with pytest.raises(AudioFileError, match=r"song\.stem\.mp4"):
        track.stems()
    with pytest.raises(AudioFileError, match=r"song\.stem\.mp4"):
        tracks("musdb", root=stem_files)[0].stems()


def noise_folder(folder, n_samples, suffix=".wav", rate=44100):
    folder.mkdir(exist_ok=True)
    samples = 0.1 * np.random.default_rng(0).normal(size=(n_samples, 2))
    soundfile.write(folder / f"noise{suffix}", samples, rate)
    return folder


@pytest.mark.parametrize("suffix", [".wav", ".mp3"])
@pytest.mark.parametrize(("sample_rate", "chunk"), [(16000, 5001), (48000, 20011), (22050, 7)])
def test_chunks_join_as_if_cut_from_the_whole(tmp_path, sample_rate, chunk, suffix):
    (track,) = tracks(noise_folder(tmp_path, 44100 + 123, suffix))
    whole = track.stems(sample_rate)
    n_samples = -(-44223 * sample_rate // 44100)
    assert whole.shape == (1, n_samples)
    starts = range(0, n_samples, chunk) if chunk > 100 else (0, 7, 5000, n_samples - 7, n_samples - 2)
    for start in starts:
        part = track.stems(sample_rate, start / sample_rate, chunk / sample_rate)
        assert part.shape == (1, min(chunk, n_samples - start))
        assert (part - whole[:, start : start + chunk]).abs().max() < 1e-5 * whole.abs().max()
        assert part.is_contiguous()
    rest = track.stems(sample_rate, 3000 / sample_rate)
    assert (rest - whole[:, 3000:]).abs().max() < 1e-5 * whole.abs().max()


def test_embedded_is_the_clip_and_then_songs(synthetic, tmp_path, clip):
    found = [(track.dataset, track.name) for track in tracks("embedded", root=synthetic)]
    assert found == [("clip", clip.name), ("synthetic", "test_000")]
    assert tracks("embedded", n_tracks=1, root=tmp_path / "unused") == [clip]
    assert not (tmp_path / "unused").exists()


def test_every_audio_file_of_a_folder_is_a_mixture(tmp_path):
    folder = tmp_path / "captions"
    (folder / "deep" / ".cache").mkdir(parents=True)
    level = {f"b.1{suffix}": 0.1 * (k + 1) for k, suffix in enumerate(AUDIO_EXTENSIONS)}
    level |= {"deep/a.flac": 0.2, "deep/UPPER.WAV": 0.3, ".hidden.wav": 0.9, "deep/.cache/c.wav": 0.9}
    for name, value in level.items():
        form = {".aif": "AIFF", ".opus": "OGG"}.get(Path(name).suffix)  # soundfile knows neither name
        soundfile.write(folder / name, np.full((4410, 2), value), 44100, format=form)
    (folder / "notes.txt").write_text("")
    found = tracks(folder)
    names = [f"b.1{suffix}" for suffix in sorted(AUDIO_EXTENSIONS)] + ["deep/UPPER", "deep/a"]
    assert [track.name for track in found] == names
    assert {(track.dataset, track.stem_names, track.sample_rate) for track in found} == {
        ("captions", ("mixture",), 44100)
    }
    assert found[-1].stems(RATE).shape == (1, 1600)
    torch.testing.assert_close(found[-1].stems(), torch.full((1, 4410), 0.2), rtol=0, atol=1e-4)
    assert tracks(str(folder), n_tracks=2) == found[:2]
    (folder / "z.wav").write_bytes(b"junk")
    assert len(tracks(folder, n_tracks=len(names))) == len(names)
    with pytest.raises(AudioFileError, match=r"z\.wav"):
        tracks(folder)


def test_a_folder_of_tracks_with_stems(tmp_path, caplog):
    expected = write_song(tmp_path / "mine" / "b")
    write_song(tmp_path / "mine" / "a", seed=1)
    (tmp_path / "mine" / "b" / "mixture.wav").unlink()
    noise_folder(tmp_path / "mine" / "other things", 100)
    found = tracks(tmp_path / "mine")
    assert f"left out of {tmp_path / 'mine'}, without stems as WAV files: other things" in caplog.text
    facts = [(track.name, track.dataset, track.stem_names) for track in found]
    assert facts == [("a", "mine", STEMS), ("b", "mine", STEMS)]
    torch.testing.assert_close(found[1].stems(), expected, rtol=0, atol=1e-7)
    assert tracks(tmp_path / "mine", n_tracks=1) == found[:1]


@pytest.mark.parametrize("form", ["musdb", "folder"])
def test_missing_stems_are_left_out_and_named_once(tmp_path, caplog, form):
    expected = write_song(tmp_path / "test" / "a")
    write_song(tmp_path / "test" / "b")
    for stem in ("drums", "other"):
        (tmp_path / "test" / "a" / f"{stem}.wav").unlink()
    dataset, root = ("musdb", tmp_path) if form == "musdb" else (tmp_path / "test", None)
    for _ in range(2):
        broken, whole = tracks(dataset, root=root)
    assert (broken.stem_names, whole.stem_names) == (("bass", "vocals"), STEMS)
    torch.testing.assert_close(broken.stems(), expected[[1, 3]], rtol=0, atol=1e-7)
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage().startswith("track a has no drums, other: ")
    for stem in ("bass", "vocals"):
        (tmp_path / "test" / "a" / f"{stem}.wav").unlink()
    with pytest.raises(AudioFileError, match=r"test/a: has none of the stems"):
        tracks(dataset, root=root)


HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"dataset": "jamendo"}, ValueError, r"'jamendo'.*'synthetic', .*'musdb', .*folder"),
        ({"dataset": Path("no/such")}, ValueError, r"'no/such'.*'synthetic'.*path of an existing folder"),
        ({"dataset": "embedded", "split": "train"}, ValueError, r"'embedded' has no split 'train'"),
        ({"dataset": "synthetic", "split": "valid"}, ValueError, r"no split 'valid'.*'train', 'test'"),
        ({"dataset": "musdb", "n_tracks": 0}, ValueError, "n_tracks must be at least 1.*got 0"),
        ({"dataset": HERE, "root": "x"}, ValueError, "is a folder itself and takes no root"),
        ({"dataset": "musdb"}, FileNotFoundError, r"root=.*MUSDB_PATH"),
        ({"dataset": "musdb", "root": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"dataset": "musdb", "root": "."}, FileNotFoundError, r"no test tracks.*mixture\.wav"),
    ],
)
def test_refusals(tmp_path, monkeypatch, arguments, error, named):
    monkeypatch.delenv("MUSDB_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test" / "empty song").mkdir(parents=True)
    write_song(tmp_path / "train" / "a")
    with pytest.raises(error, match=named):
        tracks(**arguments)


def test_missing_package_says_what_to_install(tmp_path, monkeypatch):
    write_song(tmp_path / "train" / "a")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install stempeg"):
        tracks("clip")
    with pytest.raises(ImportError, match="pip install musdb"):
        tracks("musdb", "train", root=tmp_path)


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
        track.stems()


@pytest.mark.parametrize(
    "stretch",
    [
        {"start_s": -0.1},
        {"start_s": 268288 / 44100},
        {"seconds": -1.0},
        {"seconds": 1e-5},
        {"sample_rate": 0},
    ],
)
def test_a_part_must_lie_in_the_track(clip, stretch):
    with pytest.raises(ValueError, match=r"Falcon 69' lasts 5\.997 s, nothing at start_s="):
        clip.stems(**stretch)


def test_two_processes_that_want_the_same_songs_get_them(tmp_path):
    songs = {"n_train": 0, "n_test": 2, "seconds": 2.5, "sample_rate": RATE, "workers": 1}
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_synthetic, args=(tmp_path,), kwargs=songs) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(song.name for song in (tmp_path / "test").iterdir()) == ["test_000", "test_001"]
