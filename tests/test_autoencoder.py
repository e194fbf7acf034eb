"""Lengths, windows, determinism, checkpoints and refusals of `lincae.autoencoder`."""

import dataclasses
import errno
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lincae.autoencoder import MODEL_PRESETS, TEST, Autoencoder
from lincae.checkpoints import CARD, CONFIG, WEIGHTS
from lincae.interface import AutoencoderLike


def random_model(config=TEST, seed: int = 0) -> Autoencoder:
    """A model whose zero-initialised tensors are random too, so that nothing is the identity by accident."""
    torch.manual_seed(seed)
    model = Autoencoder(config, "toy", {"step": 7, "data": "none"}).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def unpadded():
    return random_model(dataclasses.replace(TEST, pad_edges=False))


def noise(*shape, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_is_autoencoder_like(model):
    assert isinstance(model, AutoencoderLike)
    assert model.latent_rate == 16000 / 128
    assert model.compression == 16


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.booleans())
def test_length_comes_back(n_samples, pad):
    chosen = dataclasses.replace(TEST, pad_edges=pad)
    model = LENGTHS.setdefault(pad, random_model(chosen))
    audio = noise(1, n_samples)
    z = model.encode(audio)
    assert z.shape == (1, 8, model.latent_frames(n_samples))
    assert model.decode(z, length=n_samples).shape == (1, n_samples)


LENGTHS: dict[bool, Autoencoder] = {}


@pytest.mark.parametrize("n_samples", [48_000, 160_001, 262_143])
def test_long_lengths_come_back(model, n_samples):
    audio = noise(1, n_samples)
    z = model.encode(audio)
    assert z.shape[-1] == model.latent_frames(n_samples)
    assert model.decode(z, length=n_samples).shape == audio.shape


@pytest.mark.parametrize(
    ("n_samples", "frames", "held"),
    [(2048, 1, 5632), (34304, 8, 34304), (34816, 9, 38400), (88200, 22, 91648), (441000, 108, 443904)],
)
def test_lengths_of_the_paper_model(n_samples, frames, held):
    with torch.device("meta"):
        model = Autoencoder(MODEL_PRESETS["paper"])
    assert model.latent_frames(n_samples) == frames
    assert model.decoded_samples(frames) == held


def test_no_sample_is_lost_where_frames_fill_the_last_latent_frame():
    with torch.device("meta"):
        model = Autoencoder(MODEL_PRESETS["paper"])
    assert model.latent_frames(34500) == 9  # the released code decodes 34304 of the 34500 samples
    assert model.decoded_samples(9) >= 34500


def test_padded_edges_are_whole(model):
    """With an exact network in the middle, silence around the signal makes T^-1 T exact at its ends."""
    audio = noise(1, 3000)
    edge = 3 * model.config.transform.hop
    padded = torch.nn.functional.pad(audio, (edge, edge + 64))
    back = model.transform.inverse(model.transform(padded))[:, edge : edge + 3000]
    assert (back - audio)[:, :edge].norm() / audio[:, :edge].norm() < 0.1  # the Nyquist bin alone is lost


def test_latents_of_long_audio_are_one_sequence(model):
    """Windowed and whole encodings agree up to what GroupNorm sees of the window."""
    whole = random_model(dataclasses.replace(TEST, window_frames=10_000))
    audio = noise(1, 60_000) * 0.1
    assert model.latent_frames(60_000) > 256
    error = (model.encode(audio) - whole.encode(audio)).norm() / whole.encode(audio).norm()
    other = (model.encode(audio) - whole.encode(audio.roll(30_000, -1))).norm() / whole.encode(audio).norm()
    assert error < 0.1 < other


def test_decode_is_deterministic_and_shares_noise_between_items(model):
    z = noise(3, 8, 20)
    first = model.decode(z)
    assert torch.equal(first, model.decode(z))
    assert not torch.allclose(first, model.decode(z, seed=1))
    torch.testing.assert_close(model.decode(z[1:2]), first[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.decode(z, steps=2), first)


def test_noise_of_a_latent_frame_depends_on_its_index_alone(model):
    assert torch.equal(model._noise(0, 9, 3, 0)[..., 8:12], model._noise(4, 6, 3, 0))


def test_nothing_is_clamped(unpadded):
    """Decoded audio may exceed full scale: T^-1 of a large spectrogram is as large as it is."""
    assert unpadded.transform.inverse(50 * torch.ones(1, 2, 128, 8)).abs().max() > 1


def test_latent_scale_multiplies_public_latents(model):
    scaled = random_model(dataclasses.replace(TEST, latent_scale=4.0))
    audio = noise(2, 4000)
    torch.testing.assert_close(scaled.encode(audio), 4 * model.encode(audio))
    torch.testing.assert_close(scaled.decode(scaled.encode(audio)), model.decode(model.encode(audio)))


def test_latents_can_be_used_in_autograd(model):
    """Other modules train on latents: inference tensors would refuse."""
    z = model.encode(noise(1, 4000))
    weight = torch.ones(1, requires_grad=True)
    (weight * z).sum().backward()
    assert weight.grad is not None


# ---------------------------------------------------------------- checkpoints


def test_save_and_load(model, tmp_path):
    model.save(tmp_path / "a")
    again = Autoencoder.load(tmp_path / "a", device="cpu")
    assert again.config == model.config
    assert (again.name, again.metadata) == ("toy", {"step": 7, "data": "none"})
    audio = noise(2, 3000)
    assert torch.equal(again.encode(audio), model.encode(audio))
    assert json.loads((tmp_path / "a" / CONFIG).read_text())["autoencoder"]["sample_rate"] == 16000


def test_half_precision_checkpoint(model, tmp_path):
    model.save(tmp_path / "half", torch.float16)
    assert (tmp_path / "half" / WEIGHTS).stat().st_size < 0.6 * (
        model.save(tmp_path / "b") / WEIGHTS
    ).stat().st_size
    audio = noise(1, 3000)
    torch.testing.assert_close(
        Autoencoder.load(tmp_path / "half", "cpu").encode(audio), model.encode(audio), rtol=0.05, atol=0.02
    )


def rewritten(model, folder: Path, change) -> Path:
    """A saved checkpoint whose header and tensors went through `change(description, tensors)`."""
    model.save(folder)
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as file:
        description = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(description, tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"config": json.dumps(description)})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(format_version=99), "format version 99"),
        (lambda d, t: d["autoencoder"].update(flavour="mint"), "unknown flavour"),
        (lambda d, t: d["autoencoder"]["network"].update(depth=3), "network: unknown depth"),
        (lambda d, t: t.pop("encoder.conv_in.bias"), r"1 missing \(encoder.conv_in.bias\)"),
        (lambda d, t: t.update(extra=torch.ones(1)), r"1 unknown \(extra\)"),
        (
            lambda d, t: t.update({"encoder.conv_in.bias": torch.ones(3)}),
            r"conv_in.bias \(3,\) instead of \(8,\)",
        ),
    ],
)
def test_damaged_checkpoints_are_named(model, tmp_path, change, message):
    folder = rewritten(model, tmp_path / "c", change)
    with pytest.raises(ValueError, match=message) as error:
        Autoencoder.load(folder)
    assert str(folder) in str(error.value)


def test_truncated_and_missing_checkpoints(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*a checkpoint is a folder"):
        Autoencoder.load(tmp_path / "nowhere")
    path = model.save(tmp_path / "cut") / WEIGHTS
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Autoencoder.load(tmp_path / "cut")
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="no lincae configuration"):
        Autoencoder.load(tmp_path / "cut")


def test_full_disk_leaves_the_previous_checkpoint_whole(model, tmp_path, monkeypatch):
    model.save(tmp_path)
    before = (tmp_path / WEIGHTS).read_bytes()

    def full_disk(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lincae.data.audio.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        random_model(seed=1).save(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([WEIGHTS, CONFIG, CARD])


def test_hub_round_trip(model, tmp_path, monkeypatch):
    """`push_to_hub` uploads what `load` by repository id reads; the hub is a folder here."""
    import shutil

    import huggingface_hub

    class Hub:
        def create_repo(self, repo_id, private, exist_ok):
            assert (private, exist_ok) == (True, True)
            return f"https://hub/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo_id, revision, allow_patterns: str(tmp_path / repo_id),
    )
    assert model.push_to_hub("me/toy", private=True) == "https://hub/me/toy"
    assert "16x" in (tmp_path / "me" / "toy" / CARD).read_text()
    again = Autoencoder.load("me/toy", device="cpu")
    assert torch.equal(again.encode(noise(1, 500)), model.encode(noise(1, 500)))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("audio", "kind", "message"),
    [
        (torch.zeros(100), ValueError, r"\(B, T\)"),
        (torch.zeros(1, 2, 100), ValueError, r"\(B, T\)"),
        (torch.zeros(1, 100, dtype=torch.int16), TypeError, "int16"),
        (torch.zeros(1, 0), ValueError, "empty"),
        (torch.tensor([[0.0, 1.0], [0.0, float("nan")]]), ValueError, "item 1, sample 1"),
        (torch.tensor([[0.0, float("inf")]]), ValueError, "item 0, sample 1"),
    ],
)
def test_encode_refuses(model, audio, kind, message):
    with pytest.raises(kind, match=message):
        model.encode(audio)


@pytest.mark.parametrize(
    ("latents", "length", "message"),
    [
        (torch.zeros(8, 4), None, r"\(B, 8, L\), got \(8, 4\)"),
        (torch.zeros(1, 9, 4), None, r"\(B, 8, L\), got \(1, 9, 4\)"),
        (torch.zeros(1, 8, 0), None, r"\(1, 8, 0\)"),
        (torch.full((1, 8, 4), float("nan")), None, "item 0, channel 0, frame 0"),
        (torch.zeros(1, 8, 4), 10_000, r"1\.\.\d+, what 4 latent frames hold, got 10000"),
        (torch.zeros(1, 8, 4), 0, "got 0"),
    ],
)
def test_decode_refuses(model, latents, length, message):
    with pytest.raises(ValueError, match=message):
        model.decode(latents, length)


def test_config_refuses():
    with pytest.raises(ValueError, match="positive sample_rate"):
        dataclasses.replace(TEST, sample_rate=0)
    with pytest.raises(ValueError, match="context_frames"):
        dataclasses.replace(TEST, window_frames=8, context_frames=4)
    with pytest.raises(ValueError, match="at least one step"):
        random_model().decode(torch.zeros(1, 8, 4), steps=0)
