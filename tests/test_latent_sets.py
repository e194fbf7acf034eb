"""Latents on disk: whole after kills, shared by processes, read back by file and time."""

import dataclasses
import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

import lincae
from lincae.cli import main
from lincae.data.audio import read_audio
from lincae.interop.references import StftAutoencoder, TanhToy
from lincae.latents import files as latent_files
from lincae.latents import sets as latent_sets
from lincae.latents.files import KEY, LatentFileError, Shard, describe, fingerprint, in_parts, read_header
from lincae.latents.sets import LatentDataset, encode_corpus, named_files, read_skipped
from lincae.machine import generator
from tests.fakes import RATE, Linear, Streams

ROOT = Path(__file__).parent.parent


def write(path, n_samples, rate=RATE, channels=1, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (n_samples, channels))
    soundfile.write(os.fsencode(path), samples, rate, format=path.suffix[1:])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("files") / "corpus"
    write(root / "a.wav", 3 * RATE)
    write(root / "deep" / "er" / "b.flac", 96000, 192000, channels=2, seed=1)
    write(root / "deep" / "c.ogg", 20000, 8000, seed=2)
    write(root / "one.wav", 1, 8000, seed=3)
    write(root / "two.mp3", RATE, seed=4)
    return root


@pytest.fixture(scope="module")
def written(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_sets, "SHARD_BYTES", 10**6)
        patch.setattr(latent_files, "TENSOR_VALUES", 2**15)  # several parts a file
        summary = encode_corpus(Streams(), [corpus], out, channels="all", progress=False)
    assert (summary.encoded, summary.present, summary.skipped) == (5, 0, {})
    assert summary.seconds == pytest.approx(3 + 0.5 + 2.5 + 1 / 8000 + 1, rel=1e-4)
    return out


# ---------------------------------------------------------------- writing and reading


def test_latents_are_those_of_the_files(corpus, written):
    dataset, model = LatentDataset(written), Linear()
    assert len(list(written.glob("00000-*.safetensors"))) > 1
    assert max(len(dataset.entry(file).parts) for file in dataset.files) > 2
    assert sorted(dataset.files) == sorted(named_files([corpus]))
    for file, path in named_files([corpus]).items():
        audio, _ = read_audio(path, RATE, channels="all")
        entry, z = dataset.entry(file), dataset.frames(file)
        assert entry.n_samples == audio.shape[1]
        assert entry.channels == len(audio) == len(z)
        torch.testing.assert_close(z, model.encode(audio), atol=1e-4, rtol=0)
        for first, n_frames in ((0, 1), (1, None), (entry.n_frames // 3, entry.n_frames // 2)):
            stretch = dataset.frames(file, first, max(n_frames, 1) if n_frames else None)
            assert torch.equal(stretch, z[..., first:][..., : stretch.shape[-1]])


def test_random_access_by_time(corpus, written):
    dataset, (audio, _) = LatentDataset(written), read_audio(corpus / "a.wav")
    z = dataset.frames("corpus/a.wav")
    assert torch.equal(dataset.seconds("corpus/a.wav", 1.0, 0.5), z[..., 125:188])  # 187.5
    assert torch.equal(dataset.seconds("corpus/a.wav", 2.0), z[..., 250:])
    stretch = torch.cat(list(dataset.decode(Streams(), "corpus/a.wav", 1.0, 0.5)), 1)
    assert stretch.shape == (1, 60 * 128)  # three frames fewer, as this model decodes
    inside = stretch[0, 3 * 128 :]
    torch.testing.assert_close(inside, audio[128 * 128 :][: len(inside)], atol=1e-5, rtol=0)


def test_items_are_channels_and_crops_a_function_of_seed_epoch_and_index(written):
    whole = LatentDataset(written)
    assert len(whole) == 6  # one file has two channels
    shapes = sorted(tuple(z.shape) for z in whole)
    assert shapes[0] == (514, 4)
    assert shapes[-1] == (514, 378)
    crops = LatentDataset(written, crop_frames=50, seed=1)
    assert len(crops) == 5  # without the file of one sample
    again = pickle.loads(pickle.dumps(crops))
    batches = list(DataLoader(again, batch_size=2))
    assert torch.equal(torch.cat(batches), torch.stack([crops[i] for i in range(5)]))
    first = torch.stack(list(crops))
    crops.set_epoch(1)
    assert not torch.equal(torch.stack(list(crops)), first)
    crops.set_epoch(0)
    assert torch.equal(torch.stack(list(crops)), first)
    assert torch.equal(crops[-1], crops[4])
    # every crop is a stretch of its file
    z = whole.frames("corpus/a.wav")[0]
    assert any(torch.equal(first[0], z[:, k : k + 50]) for k in range(z.shape[-1]))
    with pytest.raises(IndexError):
        crops[5]


def test_half_precision(corpus, tmp_path):
    encode_corpus(Streams(), [corpus], tmp_path / "half", "float16", progress=False)
    dataset = LatentDataset(tmp_path / "half")
    audio, _ = read_audio(corpus / "a.wav")
    z = dataset.frames("corpus/a.wav")
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, Linear().encode(audio[None]), atol=1e-3, rtol=1e-3)
    size = sum(path.stat().st_size for path in (tmp_path / "half").glob("*.safetensors"))
    values = sum(dataset.entry(file).n_values for file in dataset.files)
    assert size < 2.1 * values


def test_values_beyond_half_precision_are_skipped_with_the_reason(tmp_path):
    soundfile.write(tmp_path / "corpus.wav", np.full(5000, 1000.0), RATE, "FLOAT")
    (tmp_path / "in").mkdir()
    (tmp_path / "corpus.wav").rename(tmp_path / "in" / "loud.wav")
    summary = encode_corpus(Streams(), [tmp_path / "in"], tmp_path / "out", "float16", progress=False)
    assert summary.encoded == 0
    assert "in/loud.wav: latents from frame 0 on exceed float16: use float32" in str(summary.skipped)


# ---------------------------------------------------------------- kills, processes, disks


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_kills_lose_and_repeat_nothing(tmp_path):
    """Killed at random moments, files begun again are at most those that were being encoded."""
    for k in range(12):
        write(tmp_path / "corpus" / f"{k}.wav", 3000 + 2500 * k, seed=k)
    command = [sys.executable, "tests/latent_jobs.py", str(tmp_path / "corpus"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    alone = contents(tmp_path / "alone")
    assert len(alone) > 3
    assert sum(kills) >= 15
    for run, n_kills in enumerate(kills):
        assert contents(tmp_path / str(run)) == alone
        assert 12 <= len((tmp_path / f"{run}.begun").read_text()) <= 12 + n_kills
        names = {path.name for path in (tmp_path / str(run)).iterdir()}
        leftovers = {name for name in names if not name.startswith(".latents.json")} - set(alone)
        assert leftovers == {"latents.json", ".00000.lock", ".skipped.csv.lock"}
    assert len(LatentDataset(tmp_path / "0").files) == 12


def test_processes_share_the_files(corpus, tmp_path):
    """Under torchrun; then one process finds nothing left to do, and less when there was more to do."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "-m",
        "lincae",
        "encode",
        str(corpus),
        str(tmp_path / "out"),
        "--model",
        "stft",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "process 0 of 2: 3 files encoded" in done.stdout
    assert "process 1 of 2: 2 files encoded" in done.stdout
    assert sorted(contents(tmp_path / "out")) == ["00000-000000.safetensors", "00001-000000.safetensors"]
    dataset = LatentDataset(tmp_path / "out")
    assert sorted(dataset.files) == sorted(named_files([corpus]))
    summary = encode_corpus(StftAutoencoder(), [corpus], tmp_path / "out", progress=False)
    assert (summary.encoded, summary.present) == (0, 5)


def interrupted(corpus, out, after, **options):
    """Like a kill while file number `after` is encoded, within one process."""
    count = iter(range(100))

    class Stops(Streams):
        def encode_stream(self, blocks):
            if next(count) == after:
                raise KeyboardInterrupt
            return super().encode_stream(blocks)

    with pytest.raises(KeyboardInterrupt):
        encode_corpus(Stops(), [corpus], out, progress=False, **options)


def test_another_number_of_processes_continues(corpus, tmp_path):
    for rank in range(3):
        interrupted(corpus, tmp_path / "out", 1 if rank < 2 else 0, rank=rank, world=3)
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == 2
    counts = [
        encode_corpus(Streams(), [corpus], tmp_path / "out", rank=r, world=2, progress=False) for r in (0, 1)
    ]
    assert sum(c.encoded for c in counts) == 3
    assert sum(c.present for c in counts) == 2
    assert not [*(tmp_path / "out").glob("*.jsonl"), *(tmp_path / "out").glob("*.data")]
    assert len(LatentDataset(tmp_path / "out").files) == 5


def test_moments_that_a_kill_seldom_meets(corpus, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    encode_corpus(Streams(), [corpus], whole, progress=False)
    interrupted(corpus, out, 3)
    data, journal = out / "00000-000000.data", out / "00000-000000.jsonl"
    # within the line of a file; a line whose data did not reach the disk; a temporary shard
    journal.write_bytes(journal.read_bytes() + b'{"file": "corpus/one')
    os.truncate(data, data.stat().st_size - 1)
    (out / ".00000-000000.safetensors.123.tmp").touch()
    kept = data.read_bytes(), journal.read_bytes()
    assert encode_corpus(Streams(), [corpus], out, progress=False).encoded == 3
    assert contents(out) == contents(whole)
    # between the shard and the removal of what it was made from
    data.write_bytes(kept[0])
    journal.write_bytes(kept[1])
    assert encode_corpus(Streams(), [corpus], out, progress=False).present == 5
    assert contents(out) == contents(whole)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_unfinished_sets_are_told(corpus, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(latent_sets, "SHARD_BYTES", 7 * 10**5)
    interrupted(corpus, tmp_path / "out", 2)
    assert LatentDataset(tmp_path / "out").files == ["corpus/a.wav"]  # the next is not in a shard yet
    assert "encoding goes on or was killed; 1 shards are missing" in caplog.text


def test_file_systems_without_locks(corpus, tmp_path, monkeypatch, caplog):
    def unsupported(file, flags):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    assert encode_corpus(Streams(), [corpus], tmp_path, progress=False).encoded == 5
    assert ".00000.lock cannot be locked: start no second run" in caplog.text


def test_shards_hold_so_many_files_at_most(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_sets, "SHARD_FILES", 2)
    encode_corpus(Streams(), [corpus], tmp_path, progress=False)
    assert [len(read_header(path)[1]) for path in sorted(tmp_path.glob("0*.safetensors"))] == [2, 2, 1]


def test_a_rank_belongs_to_one_process(corpus, tmp_path):
    out = tmp_path / "out"

    class Again(Streams):
        def encode_stream(self, blocks):
            encode_corpus(self, [corpus], out, progress=False)

    with pytest.raises(ValueError, match="process 0 of another run encodes into"):
        encode_corpus(Again(), [corpus], out, progress=False)


@pytest.mark.parametrize("stage", ["data", "shard"])
def test_a_full_disk_loses_no_file(corpus, tmp_path, monkeypatch, stage):
    out, fsync = tmp_path / "out", os.fsync

    def full(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        fills = {
            "data": len(list(out.glob("*.jsonl"))) and name.endswith(".data"),
            "shard": name.endswith(".tmp"),
        }
        if fills[stage] and "latents.json" not in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            encode_corpus(Streams(), [corpus], out, progress=False)
    assert "What was encoded until then stays" in caught.value.__notes__[0]
    summary = encode_corpus(Streams(), [corpus], out, progress=False)
    assert (summary.encoded, summary.present) == {"data": (4, 1), "shard": (0, 5)}[stage]
    whole = tmp_path / "whole"
    encode_corpus(Streams(), [corpus], whole, progress=False)
    assert contents(out) == contents(whole)


# ---------------------------------------------------------------- files that fail


def test_files_that_fail_are_listed_and_tried_again(corpus, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("bad.wav", "good.wav", "sub/worse.flac"):
        write(folder / name, 4000)
    (folder / "bad.wav").write_bytes((folder / "bad.wav").read_bytes()[:5000])
    (folder / "sub" / "worse.flac").write_bytes(b"no audio")
    (folder / "empty.wav").touch()
    with pytest.raises(SystemExit, match="3"):
        main(["encode", str(folder), str(out), "--model", "stft"])
    assert f"1 files encoded (0.00 h), 0 were encoded before, 3 skipped, see {out}/skipped.csv" in (
        capsys.readouterr().out
    )
    skipped = read_skipped(out)
    assert list(skipped) == ["in/bad.wav", "in/empty.wav", "in/sub/worse.flac"]
    assert "truncated, 3044 bytes fewer than its header states" in skipped["in/bad.wav"]
    assert LatentDataset(out).files == ["in/good.wav"]
    write(folder / "bad.wav", 4000)
    assert encode_corpus(StftAutoencoder(), [folder], out, rank=0, world=2, progress=False).encoded == 1
    assert list(read_skipped(out)) == ["in/empty.wav", "in/sub/worse.flac"]  # of the other rank's files, too
    (folder / "empty.wav").unlink()
    (folder / "sub" / "worse.flac").unlink()
    encode_corpus(StftAutoencoder(), [folder], out, progress=False)
    assert read_skipped(out) == {}


def test_models_that_yield_no_numbers(corpus, tmp_path):
    class Broken(Streams):
        def encode_stream(self, blocks):
            return (z / 0 for z in super().encode_stream(blocks))

    summary = encode_corpus(Broken(), [corpus], tmp_path, progress=False)
    assert summary.encoded == 0
    assert all("latents from frame 0 on are not finite" in reason for reason in summary.skipped.values())


def test_names_that_are_not_utf8(tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9")
    write(tmp_path / "in" / f"{name}.wav", 2000)
    (tmp_path / "in" / f"{name}2.wav").touch()
    encode_corpus(Streams(), [tmp_path / "in"], tmp_path / "out", progress=False)
    assert LatentDataset(tmp_path / "out").files == [f"in/{name}.wav"]
    assert list(read_skipped(tmp_path / "out")) == [f"in/{name}2.wav"]
    main(["info", str(tmp_path / "out")])
    assert r"in/caf\udce9.wav" in capsys.readouterr().out


# ---------------------------------------------------------------- folders and files that do not fit


def test_other_folders_are_refused(corpus, written, tmp_path):
    (tmp_path / "notes.txt").touch()
    other = {"channels": "all", "progress": False}
    tanh, stft = fingerprint(TanhToy(RATE))[:16], fingerprint(Streams())[:16]
    for model, out, options, words in (
        (Streams(), tmp_path, {}, r"is not empty and has no latents\.json"),
        (TanhToy(RATE), written, {}, rf"another model: stft \(hash {stft}\), not of tanh \(hash {tanh}\)"),
        (Streams(), written, {"dtype": "float16"}, "has latents of dtype float32, not float16"),
        (Streams(), written, {"channels": "mean"}, "has latents of channels all, not mean"),
        (Streams(), written, {"channels": "left"}, "channels must be one of"),
        (Streams(), tmp_path / "new", {"dtype": "int8"}, "dtype must be one of"),
        (Streams(), written, {"rank": 2, "world": 2}, r"rank must lie in 0\.\.1, got 2"),
    ):
        with pytest.raises(ValueError, match=words):
            encode_corpus(model, [corpus], out, **{**other, **options})
    with pytest.raises(ValueError, match="must differ in their names"):
        named_files([corpus, corpus / ".." / "corpus"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        encode_corpus(Streams(), [corpus, tmp_path / "absent"], tmp_path / "new", progress=False)


def test_reading_what_is_not_there(written, tmp_path):
    dataset = LatentDataset(written)
    for call, words in (
        (lambda: dataset.frames("b"), r"has 5 files \(.*, \.\.\.\), no 'b'"),
        (
            lambda: dataset.frames("corpus/a.wav", 378),
            r"corpus/a\.wav has frames 0\.\.377, wanted all from 378",
        ),
        (lambda: dataset.frames("corpus/a.wav", 370, 9), "wanted 9 from 370"),
        (lambda: dataset.frames("corpus/a.wav", -1, 2), "wanted 2 from -1"),
        (lambda: dataset.frames("corpus/a.wav", 5, 0), "wanted 0 from 5"),
        (lambda: dataset.seconds("corpus/a.wav", 1.0, -0.5), "wanted -63 from 125"),
        (lambda: dataset.seconds("corpus/a.wav", float("inf")), "start_s must be finite .*, got inf s"),
        (lambda: dataset.seconds("corpus/a.wav", 0.0, float("nan")), "^seconds must be finite .*, got nan s"),
        (lambda: dataset.decode(Streams(), "corpus/a.wav", 1e308), r"start_s must be .*, got 1e\+308 s"),
        (lambda: dataset.frame_at(-float("inf")), "a time must be finite and within the file, got -inf s"),
        (lambda: dataset.only_file(), "has 5 files, name one: "),
        (lambda: dataset.check_model(TanhToy(RATE)), r"another model: stft \(hash \w{16}\), not of tanh"),
        (lambda: dataset.decode(TanhToy(RATE), "corpus/a.wav"), "holds latents of another model"),
        (lambda: LatentDataset(written, crop_frames=379), r"in 1\.\.378, the longest file, got 379"),
        (lambda: LatentDataset(written, crop_frames=0), "got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(FileNotFoundError, match="holds no latents"):
        LatentDataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file of latents"):
        LatentDataset(tmp_path / "absent.safetensors")


def test_damaged_shards_are_named(corpus, tmp_path):
    encode_corpus(Streams(), [corpus], tmp_path, progress=False)
    (path,) = tmp_path.glob("*.safetensors")
    whole, tensors = path.read_bytes(), load_file(path)
    header, entries = read_header(path)
    k = [entry.file for entry in entries].index("corpus/a.wav")
    tensors[f"{k}.0"][0, 3, 7] = torch.nan
    text = json.dumps({**header, "entries": [dataclasses.asdict(entry) for entry in entries]})
    save_file(tensors, path, {KEY: text})
    with pytest.raises(
        ValueError, match=r"corpus/a\.wav are not finite, first at channel 0, latent channel 3, frame 7"
    ):
        LatentDataset(tmp_path).frames("corpus/a.wav", 5)
    save_file(tensors, path, {KEY: text.replace('"version": 1', '"version": 9')})
    with pytest.raises(ValueError, match="latents of version 9, this lincae reads 1"):
        LatentDataset(tmp_path)
    for damaged, words in (
        ("{", r"its header is damaged, this is no JSON"),
        ("[1]", r"its header is damaged: it must hold a JSON object, got \[1\]"),
        ("{}", "latents of version None, this lincae reads 1"),
    ):
        save_file(tensors, path, {KEY: damaged})
        with pytest.raises(LatentFileError, match=rf"00000-000000\.safetensors.*{words}"):
            LatentDataset(tmp_path)
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"00000-000000\.safetensors is not a whole safetensors file"):
        LatentDataset(tmp_path)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"n_samples": -5}, r"\(a\.wav\): n_samples must be a whole number >= 1, got -5"),
        ({"n_samples": None}, "n_samples must be a whole number >= 1, got None"),
        ({"n_samples": 1.5}, r"n_samples must be a whole number >= 1, got 1\.5"),
        ({"n_samples": True}, "n_samples must be a whole number >= 1, got True"),
        ({"channels": 0}, "channels must be a whole number >= 1, got 0"),
        ({"channels": 3}, r"states \(3, 4, 10\) for part 0, the tensor is \(2, 4, 10\)"),
        ({"latent_channels": 5}, r"states \(2, 5, 10\) for part 0, the tensor is \(2, 4, 10\)"),
        ({"latent_channels": "4"}, "latent_channels must be a whole number >= 1, got '4'"),
        ({"parts": [[0, 10], [10, 99]]}, r"states \(2, 4, 99\) for part 1, the tensor is \(2, 4, 7\)"),
        (
            {"parts": [[0, 10], [10, 7], [17, 1]]},
            r"states \(2, 4, 1\) for part 2, there is no such tensor",
        ),
        ({"parts": [[0, 10], [11, 7]]}, r"next of parts must be \[10, a number of frames\], got \[11, 7\]"),
        ({"parts": [[0, 0]]}, r"next of parts must be \[0, a number of frames\], got \[0, 0\]"),
        (
            {"parts": [[0.0, 10], [10, 7]]},
            r"next of parts must be \[0, a number of frames\], got \[0\.0, 10\]",
        ),
        ({"parts": [7]}, r"next of parts must be \[0, a number of frames\], got 7"),
        ({"parts": []}, r"parts must be a list of one or more, got \[\]"),
        ({"parts": None}, "parts must be a list of one or more, got None"),
        ({"file": None}, "must be an object of file, n_samples, channels, latent_channels, parts, got {"),
        ({"more": 1}, "must be an object of file"),
    ],
)
def test_entries_that_cannot_be_are_named(tmp_path, monkeypatch, entry, words):
    monkeypatch.setattr(latent_files, "TENSOR_VALUES", 2 * 4 * 10)
    shard = Shard(tmp_path / "a.safetensors", describe(Linear()))
    shard.add("a.wav", [torch.zeros(2, 4, 17)], 2000)
    shard.finish()
    (known,) = read_header(shard.path)[1]
    changed_header(shard.path, {"entries": [{**dataclasses.asdict(known), **entry}]})
    with pytest.raises(LatentFileError, match=rf"a\.safetensors: entry 0.*{words}"):
        LatentDataset(shard.path)


def changed_header(path, changes):
    header, entries = read_header(path)
    header["entries"] = [dataclasses.asdict(entry) for entry in entries]
    save_file(load_file(path), path, {KEY: json.dumps({**header, **changes})})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"entries": []}, r"entries must be a list of one or more, got \[\]"),
        ({"entries": None}, "entries must be a list of one or more, got None"),
        ({"entries": [3]}, "entry 0 must be an object of file, .*, got 3"),
        ({"dtype": "int8"}, r"dtype must be one of \('float32', 'float16'\), got 'int8'"),
        ({"dtype": []}, r"dtype must be one of \('float32', 'float16'\), got \[\]"),
        ({"model": None}, "name of the model must be text, got None"),
        ({"model": {**describe(Linear()), "fingerprint": 5}}, "fingerprint of the model must be text, got 5"),
        (
            {"model": {**describe(Linear()), "sample_rate": 0}},
            "sample_rate of the model must be a number > 0",
        ),
        (
            {"model": {**describe(Linear()), "latent_rate": None}},
            "latent_rate of the model must be a number > 0, got None",
        ),
        (
            {"model": {**describe(Linear()), "latent_rate": float("inf")}},
            "latent_rate of the model must be a number > 0, got inf",
        ),
    ],
)
def test_headers_that_cannot_be_are_named(tmp_path, changes, words):
    shard = Shard(tmp_path / "a.safetensors", describe(Linear()))
    shard.add("a.wav", [torch.zeros(2, 4, 17)], 2000)
    shard.finish()
    changed_header(shard.path, changes)
    with pytest.raises(LatentFileError, match=rf"a\.safetensors: {words}"):
        LatentDataset(shard.path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is damaged, this is no JSON: Expecting value"),
        ('{"version": 1, "dty', "is damaged, this is no JSON: Unterminated string"),
        ("[]", r"is damaged: it must hold a JSON object, got \[\]"),
        ("{}", "name of the model must be text, got None"),
    ],
)
def test_a_damaged_manifest_is_named(corpus, tmp_path, text, words):
    (tmp_path / "latents.json").write_text(text)
    with pytest.raises(LatentFileError, match=rf"latents\.json:? {words}"):
        encode_corpus(Streams(), [corpus], tmp_path, progress=False)


def test_a_damaged_journal_is_named(corpus, tmp_path):
    interrupted(corpus, tmp_path, 2)
    journal = tmp_path / "00000-000000.jsonl"
    first, second = journal.read_text().splitlines()
    for damaged, words in (
        (second[:20], "is damaged, this is no JSON"),
        (
            second.replace('"channels": 1', '"channels": 0'),
            r".*: channels must be a whole number >= 1, got 0",
        ),
    ):
        journal.write_text(f"{first}\n{damaged}\n")
        with pytest.raises(LatentFileError, match=rf"00000-000000\.jsonl: line 2 {words}"):
            encode_corpus(Streams(), [corpus], tmp_path, progress=False)


def test_the_users_files_beside_the_shards_stay(corpus, tmp_path, caplog):
    interrupted(corpus, tmp_path, 2)
    for name in ("notes.data", "notes.jsonl"):
        (tmp_path / name).write_text("of the user")
    assert encode_corpus(Streams(), [corpus], tmp_path, progress=False).encoded == 3
    assert [(tmp_path / f"notes.{kind}").read_text() for kind in ("data", "jsonl")] == 2 * ["of the user"]
    assert len(LatentDataset(tmp_path).files) == 5
    assert not caplog.text


def test_wrong_latents_are_refused_by_the_decoder(tmp_path):
    """A file that states this model, with other channels."""
    model = Linear()
    shard = Shard(tmp_path / "a.safetensors", describe(model))
    shard.add("a", [torch.zeros(1, 7, 20)], 2000)
    shard.finish()
    with pytest.raises(ValueError, match=r"latents of stft are \(B, 514, L\), got \(1, 7, 20\)"):
        list(LatentDataset(tmp_path / "a.safetensors").decode(model, "a"))
    with pytest.raises(ValueError, match="a: no latents"):
        Shard(tmp_path / "b.safetensors", describe(model)).add("a", [], 2000)


def test_decoding_passes_on_seed_steps_and_place(written):
    asked = []

    class Decoder(Streams):
        def decode_stream(self, latents, length=None, seed=0, steps=1, first_frame=0):
            asked.append((length, seed, steps, first_frame))
            return super().decode_stream(latents, length)

    decoder, dataset = Decoder(), LatentDataset(written)
    blocks = list(dataset.decode(decoder, "corpus/a.wav", 1.0, seed=5, steps=2))
    assert asked == [(2 * RATE, 5, 2, 125)]
    assert sum(block.shape[1] for block in blocks) == 2 * RATE


# ---------------------------------------------------------------- parts and fingerprints


def test_parts_do_not_depend_on_the_blocks(monkeypatch):
    monkeypatch.setattr(latent_files, "TENSOR_VALUES", 2 * 3 * 10)
    z = torch.randn(2, 3, 47, generator=generator(0))
    for size in (1, 7, 10, 33, 47):
        parts = list(in_parts(z.split(size, -1)))
        assert [part.shape[-1] for part in parts] == [10, 10, 10, 10, 7]
        assert torch.equal(torch.cat(parts, -1), z)


def test_fingerprints(tmp_path):
    config = lincae.recipe("test").autoencoder
    model = lincae.Autoencoder(config, "one", {"step": 1})
    same = fingerprint(model)
    assert len(same) == 64
    assert fingerprint(lincae.load(model.save(tmp_path), "cpu")) == same
    model.name, model.metadata = "two", {}
    assert fingerprint(model) == same
    for changes, differs in (
        ({"window_frames": 100}, False),
        ({"latent_scale": 2.0}, True),
        ({"pad_edges": False}, True),
        ({"transform": dataclasses.replace(config.transform, beta=0.3)}, True),
    ):
        other = lincae.Autoencoder(dataclasses.replace(config, **changes), "one")
        other.load_state_dict(model.state_dict())
        assert (fingerprint(other) != same) == differs
    with torch.no_grad():
        next(model.network.parameters()).flatten()[0] += 1e-3
    assert fingerprint(model) != same
    assert fingerprint(TanhToy(drive=2.0)) != fingerprint(TanhToy())
