"""Mixing on latents: for the exactly linear reference, the waveform operations that it stands for."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lincae
from lincae.cli import main
from lincae.data.audio import read_audio
from lincae.data.folders import read_skipped
from lincae.interop.references import StftAutoencoder
from lincae.latents.algebra import automation, fade, gain, left_right, mid_side, mix, pan
from lincae.latents.store import LatentDataset, describe, write_latents
from lincae.machine import generator
from lincae.reencoder.pairs import folder_sources, write_pairs

RATE, HOP = 16000, 128
MODEL = StftAutoencoder(RATE, HOP)
LATENT_RATE = MODEL.latent_rate
LATIN = os.fsdecode(b"\xe9")  # not UTF-8


def noise(n_samples, items=1, seed=0):
    return 0.3 * torch.randn(items, n_samples, generator=generator(seed))


def close(decoded, expected, atol=2e-6):
    torch.testing.assert_close(decoded, expected, atol=atol, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2000, 9000))
def test_automation_is_a_gain_smoothed_by_three_frames_at_most(seed, n_samples):
    audio, rng = noise(n_samples, seed=seed), np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, n_samples / RATE, 4)) + np.arange(4) * 0.1
    points = list(zip(times.tolist(), rng.uniform(-30, 12, 4).tolist(), strict=True))
    z = MODEL.encode(audio)
    curve = automation(points, z.shape[-1], LATENT_RATE)
    seconds = np.arange(n_samples + 3 * HOP) / RATE  # frames that reach into the signal begin beyond its end
    true = 10 ** (np.interp(seconds, *zip(*points, strict=True)) / 20)  # a second opinion
    error = MODEL.decode(gain(z, curve), n_samples) - torch.from_numpy(true[:n_samples]) * audio
    slope = float(np.abs(np.diff(true)).max() * HOP * 3)
    assert (error.abs() <= slope * audio.abs() + 1e-5).all()
    # what the smoothing is: squared windows of the frames that hold a sample
    window = torch.hann_window(4 * HOP, dtype=torch.float64).square() / 1.5
    smooth = torch.zeros((z.shape[-1] + 3) * HOP, dtype=torch.float64)
    for frame, value in enumerate(curve):
        smooth[frame * HOP : (frame + 4) * HOP] += value * window
    close(MODEL.decode(gain(z, curve), n_samples), (smooth[3 * HOP :][:n_samples] * audio).float(), 1e-5)


def test_automation_between_and_beyond_its_points():
    curve = automation([(0.1, -20.0), (0.3, 0.0)], 5, latent_rate=10.0)
    expected = torch.tensor([0.1, 0.1, 10**-0.5, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(curve, expected)
    assert torch.equal(automation([(5.0, 0.0)], 3, 10.0), torch.ones(3, dtype=torch.float64))
    curves = torch.arange(8.0).reshape(2, 4)  # items may have curves of their own
    assert torch.equal(gain(torch.ones(2, 3, 4), curves)[:, 1], curves)
    assert gain(torch.ones(2, 3, 4).half(), curves).dtype == torch.float16


def test_fades():
    n_samples, in_s, out_s = 8000, 0.1, 0.2
    audio, t = noise(n_samples), torch.arange(n_samples) / RATE
    true = (t / in_s).clamp(max=1).minimum((n_samples / RATE - t) / out_s)
    z = fade(MODEL.encode(audio), LATENT_RATE, in_s, out_s, length_s=n_samples / RATE)
    error = MODEL.decode(z, n_samples) - true * audio
    assert (error.abs() <= 3 / LATENT_RATE / in_s * audio.abs() + 1e-5).all()
    assert error.square().sum() < 0.01 * audio.square().sum()
    assert not z[..., 0].any()
    plain = MODEL.encode(audio)
    assert torch.equal(fade(plain, LATENT_RATE), plain)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 20), st.floats(-2, 2)), min_size=1, max_size=4)
)
def test_a_mix_is_the_sum_of_delayed_signals(stems):
    n_samples = max(length + HOP * frame for length, frame, _ in stems)
    true, latents = torch.zeros(1, n_samples), []
    for k, (length, frame, amplitude) in enumerate(stems):
        audio = noise(length, seed=k)
        true[:, frame * HOP :][:, :length] += amplitude * audio
        latents.append(MODEL.encode(audio))
    offsets = [frame * HOP / RATE for _, frame, _ in stems]
    mixed, placed = mix(latents, LATENT_RATE, offsets, [amplitude for *_, amplitude in stems])
    assert placed == pytest.approx(offsets)
    close(MODEL.decode(mixed, n_samples), true, 1e-5)


def test_offsets_are_rounded_to_frames():
    latents = [torch.ones(1, 2, 5), torch.ones(1, 2, 5)]
    mixed, placed = mix(latents, 100.0, [0.0, 0.0349])
    assert placed == [0.0, 0.03]
    assert mixed[0, 0].tolist() == [1, 1, 1, 2, 2, 1, 1, 1]
    assert all(torch.equal(z, torch.ones(1, 2, 5)) for z in latents)


@pytest.mark.parametrize("position", [-1.0, -0.4])
def test_panning(position):
    audio = noise(3000)
    left, right = MODEL.decode(pan(MODEL.encode(audio), position), 3000)
    angle = (position + 1) * math.pi / 4
    close(torch.stack([left, right]), torch.cat([math.cos(angle) * audio, math.sin(angle) * audio]))
    assert (left.square() + right.square()).sum() == pytest.approx(audio.square().sum().item(), rel=1e-4)
    z = MODEL.encode(audio)
    curve = torch.linspace(position, 1, z.shape[-1])  # along which the power stays as well
    torch.testing.assert_close(pan(z, curve).square().sum(0), z[0].square())


def test_mid_and_side():
    stereo = noise(3000, items=2)
    z = mid_side(MODEL.encode(stereo))
    mid, side = MODEL.decode(z, 3000)
    close(mid, stereo.mean(0))
    close(side, (stereo[0] - stereo[1]) / 2)
    close(MODEL.decode(left_right(z), 3000), stereo)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z: gain(z, torch.ones(3)), r"\(3,\) for \(2, 4, 5\)"),
        (lambda z: gain(z, math.nan), "a gain must be finite"),
        (lambda z: gain(z[0], 1.0), r"latents must be \(B, C, L\), got \(4, 5\)"),
        (lambda z: automation([], 5, 10.0), "points are"),
        (lambda z: automation([(0, 0), (0, 1)], 5, 10.0), "times that increase"),
        (lambda z: fade(z, 10.0, in_s=-1), r"fit into 0\.5 s, got -1 s"),
        (lambda z: mix([], 10.0), "at least one latent"),
        (lambda z: mix([z], 10.0, [0.0, 1.0]), "1 latents, 2 offsets and 1 gains"),
        (lambda z: mix([z, z[:1]], 10.0), r"\(B, C\), got \[\(1, 4\), \(2, 4\)\]"),
        (lambda z: mix([z], 10.0, [math.nan]), "an offset must be .*, got nan"),
        (lambda z: mix([z], 10.0, [1e8]), r"at most 2147483648 values .*, got \(2, 4, 1000000005\)"),
        (lambda z: mix([z, z / 0], 10.0), "latents 1 are not finite, first at item 0, channel 0, frame 0"),
        (lambda z: pan(z), r"to pan must be \(1, C, L\), got \(2, 4, 5\)"),
        (lambda z: pan(z[:1], 1.5), r"between -1 \(left\) and 1"),
        (lambda z: mid_side(z[:1]), r"left and right must be \(2, C, L\), got \(1, 4, 5\)"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.ones(2, 4, 5))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = lincae.Autoencoder(lincae.recipe("test").autoencoder, "untrained")
    return str(model.save(tmp_path_factory.mktemp("model")))


def run(*arguments):
    """Exit status or message."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code
    return 0


def test_single_files(tmp_path, capsys):
    """Encode, mix, decode and info: the sum of the waveforms, at the offsets that were printed."""
    audio = {name: noise(n, seed=n)[0] for name, n in (("a", 30000), ("b", 20000))}
    for name, samples in audio.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 44100, "FLOAT")
        assert (
            run("encode", tmp_path / f"{name}.wav", tmp_path / f"{name}.safetensors", "--model", "stft") == 0
        )
    latents = [tmp_path / f"{name}.safetensors" for name in audio]
    mixed = tmp_path / "mixed.safetensors"
    assert run("mix", *latents, mixed, "--gains-db", "0", "-6", "--offsets-s", "0", "0.4") == 0
    assert "0.000000 s, 0.394739 s" in capsys.readouterr().out  # frame 34 of 512 samples
    assert run("decode", mixed, tmp_path / "mixed.wav", "--model", "stft") == 0
    expected = torch.zeros(34 * 512 + 20000)
    expected[:30000] += audio["a"]
    expected[34 * 512 :] += 10 ** (-6 / 20) * audio["b"]
    close(read_audio(tmp_path / "mixed.wav")[0], expected, 1e-5)
    assert run("info", mixed) == 0
    out = capsys.readouterr().out
    assert json.loads(out[: out.rindex("}") + 1])["model"]["name"] == "stft"
    assert "0.848 s" in out


def test_an_autoencoder_by_its_checkpoint(tmp_path, checkpoint):
    soundfile.write(tmp_path / "a.wav", noise(3 * 8000)[0], 8000, "FLOAT")
    assert run("encode", tmp_path / "a.wav", tmp_path / "a.safetensors", "--model", checkpoint) == 0
    stored, model = LatentDataset(tmp_path / "a.safetensors"), lincae.load(checkpoint)
    audio, _ = read_audio(tmp_path / "a.wav", RATE)
    torch.testing.assert_close(stored[0][None], model.encode(audio[None]))
    options = ("--seed", "3", "--device", "cpu")
    assert run("decode", tmp_path / "a.safetensors", tmp_path / "b.wav", "--model", checkpoint, *options) == 0
    decoded = model.decode(stored[0][None], audio.numel(), seed=3)
    close(read_audio(tmp_path / "b.wav")[0], decoded[0], 1e-5)
    out = ("--start-s", "0.5", "--seconds", "0.4")
    assert run("decode", tmp_path / "a.safetensors", tmp_path / "part.wav", "--model", checkpoint, *out) == 0
    first = round(0.5 * model.latent_rate)
    part, _ = read_audio(tmp_path / "part.wav")
    stretch = model.decode(stored.seconds("a.wav", 0.5, 0.4), len(part), first_frame=first)
    close(part, stretch[0], 1e-5)
    half = ("--precision", "bf16", "--memory-gb", "free")
    assert run("encode", tmp_path / "a.wav", tmp_path / "half.safetensors", "--model", checkpoint, *half) == 0
    model.precision = "bf16"
    torch.testing.assert_close(
        LatentDataset(tmp_path / "half.safetensors")[0][None], model.encode(audio[None])
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory, checkpoint):
    """A folder with latents of two models, and files that are none."""
    folder = tmp_path_factory.mktemp("bench")
    for name in ("a", "b"):
        soundfile.write(folder / f"{name}.wav", noise(2000)[0], RATE)
    run("encode", folder / "a.wav", folder / "ours.safetensors", "--model", "stft")
    run("encode", folder / "a.wav", folder / "theirs.safetensors", "--model", "tanh")
    (folder / "text.safetensors").write_text("text")
    (folder / "text.wav").write_text("text")
    os.symlink(f"{checkpoint}/model.safetensors", folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("decode ours x.wav --model tanh", "latents of another model: stft (hash "),
        ("decode ours x.wav --model stft --file z", "has 1 files (a.wav"),
        ("decode ours x.wav --model stft --start-s 9", "frames 0..13, wanted all from 775 on"),
        ("decode ours x.wav --model stft --start-s inf", "start_s must be finite and within the file"),
        ("decode no x.wav --model stft", "no such file of latents"),
        ("decode text x.wav --model stft", "not a whole safetensors file"),
        ("info model", "a safetensors file, but not one of latents"),
        ("mix ours theirs out", "latents of another model: tanh (hash "),
        ("mix ours out --offsets-s 0 1", "2 offsets"),
        ("mix ours ours out --offsets-s 1e8 0", "with offsets up to 1e+08 s"),
        ("mix ours ours out --gains-db 1e9 0", "--gains-db must be 200 dB at most, got 1e+09"),
        ("mix ours ours.jsonl", "ours.jsonl: a file of latents must end in .safetensors"),
        ("encode a.wav b.wav out --model stft", "takes one audio file"),
        ("encode text.wav out --model stft", "text.wav: cannot be read as audio"),
        ("encode . set.d --model no", "unknown model 'no'"),
        ("encode a.wav out --model stft --precision bf16", "in fp32 only"),
        ("encode a.wav out --model stft --memory-gb 1", "takes a signal at once, got --memory-gb 1.0"),
        (
            "encode a.wav out --model desk/m2l --memory-gb 1e-3",
            "window of desk/m2l, 768 latent frames, takes 0.13",
        ),
    ],
)
def test_errors_of_the_command_line(bench, monkeypatch, words, message):
    monkeypatch.chdir(bench)
    arguments = [f"{w}.safetensors" if w in ("ours", "theirs", "text", "model", "out", "no") else w
                 for w in words.replace("--model ", "--model=").split()]  # fmt: skip
    error = str(run(*arguments))
    assert error.startswith("error: ")
    assert message in error
    assert not list(bench.glob("out*"))


def test_names_that_are_not_utf8(tmp_path, monkeypatch, capsys):
    """Of all that a command reads and writes, as long as file systems take; it says them as it can."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / LATIN).mkdir()
    name = f"{LATIN}/{'a' * (255 - len('.safetensors') - 1)}{LATIN}"
    soundfile.write(os.fsencode(f"{name}.wav"), noise(2000)[0], 44100, "FLOAT", format="WAV")
    bad = Path(LATIN, f"bad{LATIN}.wav")
    bad.touch()
    for _ in range(2):
        assert run("encode", LATIN, f"out{LATIN}", "--model", "stft") == 3
    assert LatentDataset(f"out{LATIN}").files == [f"{name}.wav"]
    assert list(read_skipped(Path(f"out{LATIN}", "skipped.csv"))) == [str(bad)]
    bad.unlink()
    assert run("info", f"out{LATIN}") == 0
    assert r"\udce9.wav" in capsys.readouterr().out
    assert run("encode", f"{name}.wav", f"{name}.safetensors", "--model", "stft") == 0
    assert run("mix", f"{name}.safetensors", f"mix{LATIN}.safetensors") == 0
    assert run("decode", f"mix{LATIN}.safetensors", f"mix{LATIN}.wav", "--model", "stft") == 0
    close(read_audio(f"mix{LATIN}.wav")[0], read_audio(f"{name}.wav")[0], 1e-5)
    write_pairs(MODEL, folder_sources("bandwidth", [LATIN]), f"pairs{LATIN}", "bandwidth", progress=False)


@pytest.mark.parametrize("inputs", ["a", "ab"])
def test_a_mix_without_out_replaces_no_input(tmp_path, inputs):
    """`mix a b` and `mix a b c`, where the last was meant as an input."""
    paths = [tmp_path / f"{name}.safetensors" for name in inputs + "z"]
    for k, path in enumerate(paths):
        write_latents(path, describe(MODEL), path.stem, [torch.full((1, 3, 5), float(k))], 100)
    before = paths[-1].read_bytes()
    assert run("mix", *paths) == (
        f"error: {paths[-1]} exists: is OUT missing, the last argument? --overwrite replaces it"
    )
    assert paths[-1].read_bytes() == before
    assert run("mix", *paths, "--overwrite") == 0
    assert LatentDataset(paths[-1])[0].unique().tolist() == [sum(range(len(inputs)))]
    assert run("mix", paths[0], tmp_path / "half.safetensors", "--dtype", "float16") == 0  # a conversion
