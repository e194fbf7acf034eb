"""Linear references: linear to the rounding, and of the rate that their names say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lincae
from lincae.interface import AutoencoderLike
from lincae.interop import linear
from lincae.interop.linear import EXAMPLES, Pca, Resampler, load_linear_reference, mdct_basis
from lincae.machine import generator

LINEAR = ("resample-32x", "pca-32x", "pca-4x")


def noise(*shape, seed=0):
    return 0.1 * torch.randn(shape, generator=generator(seed))


def relative(error, reference):
    return (error.double().norm() / reference.double().norm()).item()


@pytest.mark.parametrize("name", [*EXAMPLES, "resample-2x", "resample+noise-8x", "pca-8x", "pca-512x"])
def test_contract_and_rate(name):
    model = lincae.load(name, "cpu")
    assert isinstance(model, AutoencoderLike)
    assert (model.name, model.sample_rate) == (name, 16000)

    z = model.encode(noise(2, 16000))
    numbers_per_s = z.shape[1] * model.latent_rate
    assert numbers_per_s == 16000 / float(name.split("-")[1].removesuffix("x"))
    assert (z.dtype, z.shape[0]) == (torch.float32, 2)

    decoded = model.decode(z, 16000, seed=3)
    assert torch.equal(decoded, model.decode(z, seed=3)[:, :16000])
    assert len(model.fingerprint()) == 64


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([*EXAMPLES, "pca-128x"]), st.integers(1, 3000))
def test_every_length_comes_back(name, length):
    model = load_linear_reference(name)
    assert model.decode(model.encode(noise(1, length)), length).shape == (1, length)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(LINEAR), st.floats(-10, 10), st.integers(100, 5000))
def test_encoder_and_decoder_are_linear(name, gain, length):
    model = load_linear_reference(name)
    u, v = noise(1, length, seed=1), noise(1, length, seed=2)
    z_u, z_v = model.encode(u), model.encode(v)
    assert relative(model.encode(u + gain * v) - (z_u + gain * z_v), z_u) < 1e-4

    def decode(z):
        return model.decode(z, length)

    assert relative(decode(z_u + gain * z_v) - (decode(z_u) + gain * decode(z_v)), z_u) < 1e-4


def test_noise_is_one_fixed_sound_above_the_cut():
    model, plain = lincae.load("resample+noise-32x", "cpu"), lincae.load("resample-32x", "cpu")
    z = model.encode(noise(1, 8000))
    haze = model.decode(z, 8000, seed=1) - plain.decode(z, 8000)
    assert torch.allclose(haze, model.decode(0 * z, 8000, seed=1), atol=1e-6)
    assert not torch.allclose(haze, model.decode(0 * z, 8000, seed=2), atol=1e-3)

    power = torch.fft.rfft(haze[0]).abs().square()
    below_cut = power[: 200 * 8000 // 16000].sum() / power.sum()
    assert below_cut < 0.01
    assert 1e-3 < haze.square().mean().sqrt() < 0.1


def test_mdct_is_orthonormal_and_whole_blocks_come_back():
    assert torch.allclose(mdct_basis() @ mdct_basis().T, torch.eye(256), atol=1e-5)
    basis = linear.fitted()["basis"]
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=2e-3)


def test_pca_keeps_the_low_end_of_music():
    time_s = torch.arange(16000) / 16000
    tone = 0.1 * torch.sin(2 * torch.pi * 110 * time_s)[None]
    model = Pca(32)
    assert relative(model.decode(model.encode(tone), 16000) - tone, tone) < 0.3


REFUSED = [
    (lambda: load_linear_reference("pca-2.5x"), "pca", "2.5x"),
    (lambda: load_linear_reference("pca-3x"), "512 / n", "3x"),
    (lambda: lincae.load("pca-1x", "cpu"), "512 / n", "1x"),
    (lambda: load_linear_reference("resample-2.5x"), "divides 16000", "2.5x"),
    (lambda: Resampler(0), "divides 16000", "0x"),
    (lambda: load_linear_reference("resampled-32x"), "unknown linear reference", "resampled-32x"),
    (lambda: lincae.load("resample-32x", "abacus"), "unknown device", "abacus"),
    (lambda: Pca(32).encode(torch.zeros(9)), r"shape \(B, T\)", "9"),
    (lambda: Pca(32).decode(torch.zeros(1, 8, 4)), r"\(B, 16, L\)", "8"),
    (lambda: Resampler(32).decode(torch.zeros(1, 1, 4), 129), r"1\.\.128", "129"),
]


@pytest.mark.parametrize(("call", "allowed", "given"), REFUSED)
def test_refusals_name_what_is_wrong_and_what_is_allowed(call, allowed, given):
    with pytest.raises(ValueError, match=f"(?i){allowed}") as caught:
        call()
    assert given in str(caught.value)


def test_missing_fit_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(linear, "FITTED", tmp_path / "gone.safetensors")
    linear.fitted.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors is missing"):
        Pca(32)
    linear.fitted.cache_clear()
