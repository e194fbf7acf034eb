"""Latents on disk: whole after kills, shared by processes, read back by file and time."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from lincae.cli import main
from lincae.data.audio import read_audio
from lincae.data.folders import read_skipped
from lincae.interop.adapters import adapt
from lincae.interop.references import StftAutoencoder, TanhToy
from lincae.latents import store
from lincae.latents.store import (
    KEY,
    LatentDataset,
    LatentFileError,
    describe,
    encode_corpus,
    named_files,
    read_header,
    write_latents,
)
from lincae.machine import generator
from tests.fakes import RATE, Linear, Streams
from tests.fuzzing import fuzz
from tests.test_autoencoder import TEST, random_model

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
        patch.setattr(store, "SHARD_BYTES", 10**6)
        summary = encoded(corpus, out, channels="all")
    assert (summary.encoded, summary.present, summary.skipped) == (5, 0, {})
    assert summary.seconds == pytest.approx(3 + 0.5 + 2.5 + 1 / 8000 + 1, rel=1e-4)
    return out


def encoded(folder, out, model=None, **options):
    return encode_corpus(model or Streams(), [folder], out, progress=False, **options)


def contents(folder):
    """Name -> latents of all audio files; none of them is there twice."""
    paths = folder.glob("*.safetensors")
    names = [entry.file for path in paths for entry in read_header(path)[1]]
    dataset = LatentDataset(folder)
    assert sorted(names) == dataset.files
    return {file: dataset.frames(file) for file in dataset.files}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for file, z in found.items():
        assert torch.equal(z, wanted[file]), file


def test_latents_are_those_of_the_files(corpus, written):
    dataset, model = LatentDataset(written), Linear()
    assert len(list(written.glob("00000-*.safetensors"))) > 1
    assert max(len(dataset.entry(file).parts) for file in dataset.files) > 1
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
    dataset = LatentDataset(written)
    audio, _ = read_audio(corpus / "a.wav")
    z = dataset.frames("corpus/a.wav")
    assert torch.equal(dataset.seconds("corpus/a.wav", 1.0, 0.5), z[..., 125:188])  # 187.5
    assert torch.equal(dataset.seconds("corpus/a.wav", 2.0), z[..., 250:])
    asked = []

    class Decoder(Streams):
        def decode_stream(self, latents, length=None, seed=0, steps=1, first_frame=0):
            asked.append((length, seed, steps, first_frame))
            return super().decode_stream(latents, length)

    stretch = torch.cat(list(dataset.decode(Decoder(), "corpus/a.wav", 1.0, 0.5)), 1)
    assert stretch.shape == (1, 60 * 128)  # three frames fewer, as this model decodes
    inside = stretch[0, 3 * 128 :]
    torch.testing.assert_close(inside, audio[128 * 128 :][: len(inside)], atol=1e-5, rtol=0)
    to_the_end = dataset.decode(Decoder(), "corpus/a.wav", 1.0, seed=5, steps=2)
    assert sum(block.shape[1] for block in to_the_end) == 2 * RATE
    assert asked == [(None, 0, 1, 125), (2 * RATE, 5, 2, 125)]


def test_items_are_channels_and_crops_a_function_of_seed_epoch_and_index(written):
    """Also for data workers that last from one epoch to the next."""
    whole = LatentDataset(written)
    assert len(whole) == 6  # one file has two channels
    shapes = sorted(tuple(z.shape) for z in whole)
    assert (shapes[0], shapes[-1]) == ((514, 4), (514, 378))
    crops = LatentDataset(written, crop_frames=50, seed=1)
    assert len(crops) == 5  # without the file of one sample
    loader = DataLoader(crops, batch_size=5, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        crops.set_epoch(epoch)
        epochs.append(torch.cat(list(loader)))
        assert torch.equal(epochs[-1], torch.stack(list(crops)))
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(crops[-1], crops[4])
    z = whole.frames("corpus/a.wav")[0]  # every crop is a stretch of its file
    assert any(torch.equal(crops[0], z[:, k : k + 50]) for k in range(z.shape[-1]))
    with pytest.raises(IndexError):
        crops[5]


class Begun(Streams):
    """Notes in a file when a file is begun."""

    def __init__(self, notes):
        super().__init__()
        self.notes = notes

    def encode_stream(self, blocks):
        with self.notes.open("a") as file:
            file.write("x")
        return super().encode_stream(blocks)


def killed(folder, out, at):
    """Encode in a process that is killed before its write to the disk number `at`; whether it was."""
    pid = os.fork()
    if pid == 0:
        count = iter(range(10**6))

        def deadly(call):
            def wrapped(*arguments, **options):
                if next(count) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return wrapped

        for name in ("fsync", "replace", "unlink", "rmdir", "mkdir"):
            setattr(os, name, deadly(getattr(os, name)))
        try:
            encoded(folder, out, Begun(out.with_suffix(".begun")))
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


@pytest.mark.slow
def test_kills_lose_and_repeat_nothing(tmp_path, monkeypatch):
    """Killed at each of its writes: at most the files that it was encoding and writing are begun again."""
    monkeypatch.setattr(store, "SHARD_BYTES", 10**5)
    monkeypatch.setattr(store, "FILES_BEHIND", 0)
    for k in range(3):
        write(tmp_path / "corpus" / f"{k}.wav", 3000 + 5000 * k, seed=k)
    assert not killed(tmp_path / "corpus", tmp_path / "alone", at=None)
    alone = contents(tmp_path / "alone")
    assert len(list((tmp_path / "alone").glob("*.safetensors"))) > 1
    at = 0
    while killed(tmp_path / "corpus", tmp_path / f"{at}", at):
        out = tmp_path / f"{at}"
        assert not killed(tmp_path / "corpus", out, at=None)
        assert_same(contents(out), alone)
        assert 3 <= len(out.with_suffix(".begun").read_text()) <= 5
        shards = {path.name for path in out.glob("*.safetensors")}
        left = {path.name for path in out.iterdir() if not path.name.startswith(".latents.json")}
        assert left - shards == {"latents.json", ".00000.lock", ".skipped.csv.lock"}
        at += 1
    assert at > 12


def test_processes_share_the_files(corpus, tmp_path, monkeypatch, capsys):
    """By the variables of torchrun, so many files to a shard; then one process finds nothing left to do."""
    monkeypatch.setattr(store, "SHARD_FILES", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, count in ((0, 3), (1, 2)):
        monkeypatch.setenv("RANK", str(rank))
        main(["encode", str(corpus), str(tmp_path), "--model", "stft", "--channels", "mean"])
        assert f"process {rank} of 2: {count} files encoded" in capsys.readouterr().out
    shards = sorted(tmp_path.glob("0*.safetensors"))
    assert [path.stem for path in shards] == ["00000-000000", "00000-000001", "00001-000000"]
    assert [len(read_header(path)[1]) for path in shards] == [2, 1, 2]
    assert sorted(contents(tmp_path)) == sorted(named_files([corpus]))
    summary = encoded(corpus, tmp_path, StftAutoencoder())
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
        encoded(corpus, out, Stops(), **options)


def test_another_number_of_processes_continues(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_BYTES", 7 * 10**5)
    for rank in range(3):
        interrupted(corpus, tmp_path, 1 if rank < 2 else 0, rank=rank, world=3)
    assert len(list(tmp_path.glob("*.part"))) == 2
    counts = [encoded(corpus, tmp_path, rank=rank, world=2) for rank in (0, 1)]
    assert sum(count.encoded for count in counts) == 3
    assert sum(count.present for count in counts) == 2
    assert not list(tmp_path.glob("*.part"))
    assert len(contents(tmp_path)) == 5


def test_what_is_not_finished_is_told_and_the_users_files_stay(corpus, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(store, "SHARD_BYTES", 7 * 10**5)
    interrupted(corpus, tmp_path, 2)
    assert LatentDataset(tmp_path).files == ["corpus/a.wav"]  # the next is not in a shard yet
    assert "encoding goes on or was killed; 1 shards are missing" in caplog.text
    caplog.clear()
    for name in ("notes.part", "notes.jsonl"):
        (tmp_path / name).write_text("of the user")
    assert encoded(corpus, tmp_path).encoded == 3
    assert len(LatentDataset(tmp_path).files) == 5
    assert not caplog.text
    assert [(tmp_path / f"notes.{kind}").read_text() for kind in ("part", "jsonl")] == 2 * ["of the user"]


def test_a_file_is_written_while_the_next_is_encoded(corpus, written, tmp_path, monkeypatch):
    """The first takes its place when the second has begun; and all of them in their order."""
    second = threading.Event()
    replace = os.replace

    class Model(Streams):
        def encode_stream(self, blocks):
            if self.encoded:
                second.set()
            for z in super().encode_stream(blocks):
                self.encoded += 1
                yield z

    def late(source, target):
        if target.name == "000000.safetensors":
            assert second.wait(60)
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    assert encoded(corpus, tmp_path, Model(), channels="all").encoded == 5
    (shard,) = tmp_path.glob("0*.safetensors")
    assert [entry.file for entry in read_header(shard)[1]] == list(named_files([corpus]))
    assert_same(contents(tmp_path), contents(written))


@pytest.mark.parametrize("stage", ["file", "shard"])
def test_a_full_disk_loses_no_file(corpus, tmp_path, monkeypatch, stage):
    out = tmp_path / "out"
    fsync = os.fsync

    def full(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if {"file": "/.000001.safetensors.", "shard": "/.whole."}[stage] in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    named = {"file": r"latents of corpus/deep/c\.ogg cannot be written: .*", "shard": ""}[stage]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=f"{named}No space left on device") as caught:
            encoded(corpus, out)
    assert "What was encoded until then stays" in caught.value.__notes__[0]
    summary = encoded(corpus, out)
    assert (summary.encoded, summary.present) == {"file": (4, 1), "shard": (0, 5)}[stage]
    encoded(corpus, tmp_path / "whole")
    assert_same(contents(out), contents(tmp_path / "whole"))


def is_whole(out, path):
    """What is stored of in/song.wav is what the file holds now."""
    audio, _ = read_audio(path)
    found = LatentDataset(out).frames("in/song.wav")
    torch.testing.assert_close(found, Linear().encode(audio[None]), atol=1e-4, rtol=0)
    return True


@pytest.mark.parametrize(("n_samples", "first_rank"), [(4000, 0), (6000, 1)])
def test_a_file_that_has_changed_is_encoded_anew(tmp_path, caplog, n_samples, first_rank):
    """Of another length or of the same, whichever process had encoded it; not one that was only touched."""
    path = tmp_path / "in" / "song.wav"
    out = tmp_path / "out"
    write(path, 4000)
    if first_rank:
        write(tmp_path / "in" / "a.wav", 100)  # so that the song is the second process's
    for rank in range(first_rank + 1):
        encoded(tmp_path / "in", out, rank=rank, world=first_rank + 1)
    write(path, n_samples, seed=1)
    summary = encoded(tmp_path / "in", out)
    assert (summary.encoded, summary.present) == (1, first_rank)
    assert is_whole(out, path)
    assert f"{path} has changed since it was encoded" in caplog.text
    os.utime(path, (1, 1))
    assert encoded(tmp_path / "in", out).encoded == 0
    write(path, 4000)
    assert encoded(tmp_path / "in", out).encoded == 1
    assert is_whole(out, path)


def test_latents_of_earlier_versions_know_their_length_alone(tmp_path):
    path = tmp_path / "in" / "song.wav"
    out = tmp_path / "out"
    write(path, 4000)
    encoded(tmp_path / "in", out)
    (shard,) = out.glob("0*.safetensors")
    rewritten(shard, entry={"source": ..., "edition": ...})
    manifest = json.loads((out / "latents.json").read_text())
    del manifest["precision"]
    (out / "latents.json").write_text(json.dumps(manifest))
    assert encoded(tmp_path / "in", out).present == 1
    write(path, 4001)
    assert encoded(tmp_path / "in", out).encoded == 1
    assert is_whole(out, path)


def test_models_and_precisions_do_not_mix(corpus, tmp_path):
    """Models of equal names, and one model at two precisions."""

    def adapted(level):
        inner = Linear()
        encode = lambda audio: level * inner.encode(audio)  # noqa: E731
        return adapt(encode=encode, decode=inner.decode, name="mine", sample_rate=RATE)

    encoded(corpus, tmp_path / "one", adapted(1.0))
    with pytest.raises(LatentFileError, match=r"another model: mine \(hash .*, not of mine \(hash"):
        encoded(corpus, tmp_path / "one", adapted(2.0))
    with pytest.raises(LatentFileError, match="another model"):
        LatentDataset(tmp_path / "one").decode(adapted(2.0), "corpus/a.wav")
    model = Streams()
    encoded(corpus, tmp_path / "two", model)
    model.precision = "bf16"
    with pytest.raises(ValueError, match="has latents of precision fp32, not bf16"):
        encoded(corpus, tmp_path / "two", model)


def test_files_that_fail_are_listed_and_tried_again(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("bad.wav", "good.wav", "sub/worse.flac"):
        write(folder / name, 4000)
    (folder / "bad.wav").write_bytes((folder / "bad.wav").read_bytes()[:5000])
    (folder / "sub" / "worse.flac").write_bytes(b"no audio")
    (folder / "empty.wav").touch()
    with pytest.raises(SystemExit, match="3"):
        main(["encode", str(folder), str(out), "--model", "stft"])
    counts = f"1 files encoded (0.00 h), 0 were encoded before, 3 skipped, see {out}/skipped.csv"
    assert counts in capsys.readouterr().out
    skipped = read_skipped(out / "skipped.csv")
    assert list(skipped) == ["in/bad.wav", "in/empty.wav", "in/sub/worse.flac"]
    assert "truncated" in skipped["in/bad.wav"]
    assert LatentDataset(out).files == ["in/good.wav"]
    write(folder / "bad.wav", 4000)
    assert encoded(folder, out, StftAutoencoder(), rank=0, world=2).encoded == 1
    assert list(read_skipped(out / "skipped.csv")) == ["in/empty.wav", "in/sub/worse.flac"]  # of rank 1 too
    (folder / "empty.wav").unlink()
    (folder / "sub" / "worse.flac").unlink()
    encoded(folder, out, StftAutoencoder())
    assert read_skipped(out / "skipped.csv") == {}


@pytest.mark.parametrize("together", [2, 3, 9])
def test_files_in_one_batch_have_the_latents_of_each(corpus, tmp_path, monkeypatch, together):
    """Of any lengths and channels, also beside files that cannot be read, to their end or at all, and those
    that are there already."""
    model = random_model(dataclasses.replace(TEST, window_frames=24, context_frames=6, norm_frames=8))
    shutil.copytree(corpus, tmp_path / "in")
    (tmp_path / "in" / "b.wav").write_text("no audio")
    cut = (tmp_path / "in" / "two.mp3").read_bytes()
    (tmp_path / "in" / "deep" / "cut.wav").write_bytes((corpus / "a.wav").read_bytes()[:90000])
    (tmp_path / "in" / "two.mp3").unlink()
    encoded(tmp_path / "in", tmp_path / "alone", model, channels="all", together=1)
    sizes = []
    monkeypatch.setattr(
        model, "_latents_of", lambda audio, of=model._latents_of: sizes.append(len(audio)) or of(audio)
    )
    out = tmp_path / "out"
    summary = encoded(tmp_path / "in", out, model, channels="all", together=together)
    assert max(sizes) > 1
    (tmp_path / "in" / "two.mp3").write_bytes(cut)
    again = encoded(tmp_path / "in", out, model, channels="all", together=together)
    assert list(summary.skipped) == list(again.skipped) == ["in/b.wav", "in/deep/cut.wav"]
    assert (summary.encoded, again.encoded, again.present) == (4, 1, 4)
    alone = LatentDataset(tmp_path / "alone")
    for file in alone.files:
        entry, z = LatentDataset(out).entry(file), LatentDataset(out).frames(file)
        assert entry == alone.entry(file)
        torch.testing.assert_close(z, alone.frames(file), rtol=0, atol=1e-5)


def test_values_that_cannot_be_stored_are_skipped_with_the_reason(corpus, tmp_path):
    class Broken(Streams):
        def encode_stream(self, blocks):
            return (z / 0 for z in super().encode_stream(blocks))

    summary = encoded(corpus, tmp_path / "broken", Broken())
    assert summary.encoded == 0
    assert all("latents from frame 0 on are not finite" in reason for reason in summary.skipped.values())
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "loud.wav", np.full(5000, 1000.0), RATE, "FLOAT")
    summary = encoded(tmp_path / "in", tmp_path / "out", dtype="float16")
    assert "in/loud.wav: latents from frame 0 on exceed float16: use float32" in str(summary.skipped)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (TanhToy(RATE), {}, r"another model: stft \(hash \w{16}\), not of tanh \(hash \w{16}\)"),
        (Streams(), {"dtype": "float16"}, "dtype float32, not float16"),
        (Streams(), {"channels": "left"}, "channels must be one of .*, got 'left'"),
        (Streams(), {"dtype": "int8"}, "dtype must be one of .*, got 'int8'"),
        (Streams(), {"rank": 2, "world": 2}, r"rank must lie in 0\.\.1, got 2"),
    ],
)
def test_folders_that_cannot_be_encoded(corpus, written, model, options, words):
    with pytest.raises(ValueError, match=words):
        encoded(corpus, written, model, **{"channels": "all", **options})


def test_folders_that_are_not_of_latents(corpus, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"no latents\.json"):
        encoded(corpus, tmp_path)
    with pytest.raises(ValueError, match="must differ in their names"):
        named_files([corpus, corpus / ".." / "corpus"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        encoded(tmp_path / "absent", tmp_path / "new")
    (tmp_path / "latents.json").write_text('{"version": 1, "dty')
    with pytest.raises(ValueError, match=r"latents\.json is damaged"):
        encoded(corpus, tmp_path)
    for absent in (tmp_path, tmp_path / "absent.safetensors"):
        with pytest.raises(FileNotFoundError, match=absent.name):
            LatentDataset(absent)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: d.frames("b"), "has 5 files .*, no 'b'"),
        (lambda d: d.frames("corpus/a.wav", 378), r"corpus/a\.wav has frames 0\.\.377, wanted all from 378"),
        (lambda d: d.frames("corpus/a.wav", 370, 9), "9 from 370"),
        (lambda d: d.frames("corpus/a.wav", 5, 0), "0 from 5"),
        (lambda d: d.seconds("corpus/a.wav", 1.0, -0.5), "-63 from 125"),
        (lambda d: d.seconds("corpus/a.wav", float("inf")), "start_s .* got inf s"),
        (lambda d: d.only_file(), "has 5 files"),
        (lambda d: d.check_model(TanhToy(RATE)), r"another model: stft \(hash \w{16}\), not of tanh"),
        (lambda d: LatentDataset(d.source, crop_frames=379), r"in 1\.\.378, the longest file, got 379"),
    ],
)
def test_reading_what_is_not_there(written, call, words):
    with pytest.raises(ValueError, match=words):
        call(LatentDataset(written))


def single(path, z=None, n_samples=2000):
    """One file of latents, those of Linear."""
    write_latents(path, MODEL, "a.wav", [torch.zeros(2, 4, 17)] if z is None else z, n_samples)
    return path


def rewritten(path, header=None, entry=None, text=None):
    """The same tensors under another header; what is changed to `...` is left out."""
    known, entries = read_header(path)
    known["entries"] = [dataclasses.asdict(one) | (entry or {}) for one in entries]
    for one in known["entries"]:
        for key in [key for key, value in one.items() if value is ...]:
            del one[key]
    save_file(load_file(path), path, {KEY: text or json.dumps(known | (header or {}))})


MODEL = describe(Linear())
HEADERS = [
    ({"version": 9}, "version 9, this lincae reads 1"),
    ({"entries": []}, r"entries must be a list of one or more, got \[\]"),
    ({"dtype": "int8"}, "dtype must be one of .*, got 'int8'"),
    ({"dtype": "float16"}, "the header states .'F16', .*, there is .'F32', "),
    ({"model": {**MODEL, "fingerprint": 5}}, "fingerprint of the model .* got 5"),
    ({"model": {**MODEL, "latent_rate": float("inf")}}, "latent_rate of the model .* got inf"),
]
ENTRIES = [
    ({"n_samples": -5}, "n_samples must be .*, got -5"),
    ({"n_samples": 10**15}, "n_samples 10{15} of 17 latent frames"),
    ({"edition": 0}, "edition must be .*, got 0"),
    ({"source": [1, 2]}, r"source .*, got \(1, 2\)"),
    ({"channels": 3}, r"states \('F32', 3, 4, 10\) for part 0, there is \('F32', 2, 4, 10\)"),
    ({"latent_channels": "4"}, "latent_channels of Entry must be int, got '4'"),
    ({"parts": [[0, 10], [10, 99]]}, r"states \('F32', 2, 4, 99\) for part 1, there is \('F32', 2, 4, 7\)"),
    ({"parts": [[0, 10], [10, 7], [17, 1]]}, r"states \('F32', 2, 4, 1\) for part 2, there is None"),
    ({"parts": [[0, 10], [11, 7]]}, r"next of parts must be \[10, .*\], got \[11, 7\]"),
    ({"parts": [[0.0, 10], [10, 7]]}, "parts of Entry must be"),
    ({"parts": []}, "parts must be one or more"),
    ({"parts": ...}, "lacks 'parts'"),
    ({"more": 1}, "'more'"),
]


@pytest.mark.parametrize(
    ("changes", "entry", "words"),
    [(changes, {}, words) for changes, words in HEADERS] + [({}, entry, words) for entry, words in ENTRIES],
)
def test_headers_that_cannot_be_are_named(tmp_path, changes, entry, words):
    path = single(tmp_path / "a.safetensors", torch.zeros(2, 4, 17).split(10, -1))
    rewritten(path, changes, entry)
    with pytest.raises(LatentFileError, match=rf"a\.safetensors: .*{words}"):
        LatentDataset(path)


def test_damaged_files_are_named(tmp_path):
    path = single(tmp_path / "a.safetensors")
    whole = path.read_bytes()
    for damaged in ("{", "[1]", "{}"):
        rewritten(path, text=damaged)
        with pytest.raises(LatentFileError, match=r"a\.safetensors"):
            LatentDataset(path)
        path.write_bytes(whole)
    path.write_bytes(whole[:-100])
    with pytest.raises(LatentFileError, match=r"a\.safetensors is not a whole safetensors file"):
        LatentDataset(path)
    write_latents(path, MODEL, "a.wav", [torch.zeros(1, 7, 20)], 2000)  # of this model, with other channels
    with pytest.raises(LatentFileError, match=r"a\.safetensors: latents of a\.wav: .*got \(1, 7, 20\)"):
        list(LatentDataset(path).decode(Linear(), "a.wav"))
    at = (3 * 17 + 7) * 4  # channel 0, latent channel 3, frame 7
    start = len(whole) - 2 * 4 * 17 * 4
    path.write_bytes(whole[: start + at] + np.float32(np.nan).tobytes() + whole[start + at + 4 :])
    with pytest.raises(LatentFileError, match=r"a\.wav are not finite, .* channel 0, .* channel 3, frame 7"):
        LatentDataset(path).frames("a.wav", 5)


def used(path):
    """All that is done with a file of latents."""
    dataset = LatentDataset(path)
    for file in dataset.files:
        dataset.frames(file)
        list(dataset.decode(Streams(), file))


def test_damaged_shards(tmp_path):
    audio = 0.1 * torch.randn(2, 2500, generator=generator(0))
    path = single(tmp_path / "a.safetensors", Linear().encode(audio).split(5, -1), 2500)
    header_bytes = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    fuzz(path, used, header_bytes)
