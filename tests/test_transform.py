"""T and its inverse at the numbers of the specification."""

import math

import pytest
import torch
from fakes import randn

from lincae.transform import Transform, TransformConfig

T = Transform(TransformConfig())
SMALL = Transform(TransformConfig(hop=16))


def test_lengths_are_those_of_the_tensors():
    for n_samples in (64, 65, 79, 80, 200, 1000):
        spectrogram = SMALL(randn(2, n_samples))
        assert spectrogram.shape == (2, 2, 32, SMALL.n_frames(n_samples))
        assert SMALL.inverse(spectrogram).shape == (2, SMALL.n_samples(spectrogram.shape[-1]))
    assert SMALL.n_frames(63) == 0
    assert SMALL.n_frames(0) == 0


def test_windows_are_the_periodic_hann_whose_squares_sum_to_three_halves():
    n = torch.arange(2048, dtype=torch.float64)
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * n / 2048)
    torch.testing.assert_close(T.analysis_window.double(), hann, rtol=0, atol=1e-6)
    torch.testing.assert_close(T.synthesis_window.double(), hann / 1.5, rtol=0, atol=1e-6)


def low_passed(n_samples: int) -> torch.Tensor:
    """Noise without the Nyquist bin's neighbourhood, which the transform drops."""
    bins = torch.fft.rfft(randn(1, n_samples))
    bins[:, int(0.9 * bins.shape[-1]) :] = 0
    return 0.2 * torch.fft.irfft(bins, n=n_samples)


def test_edges_are_ramped_and_the_interior_comes_back():
    x = low_passed(20 * 512)
    y = T.inverse(T(x))
    assert y.shape == x.shape
    torch.testing.assert_close(y[:, 1536:-1536], x[:, 1536:-1536], rtol=0, atol=2e-5)
    loud = T(5 * x)  # nothing is clamped
    assert loud.abs().max() > 5
    torch.testing.assert_close(T.inverse(loud)[:, 1536:-1536], 5 * x[:, 1536:-1536], rtol=0, atol=1e-4)
    squared = T.analysis_window.square().tolist()
    for n, known in ((0, 0), (100, None), (512, 1 / 6), (1000, None), (1024, 5 / 6), (1535, 1)):
        ramp = sum(squared[n - 512 * k] for k in range(n // 512 + 1)) / 1.5  # windows that cover n
        if known is not None:
            assert ramp == pytest.approx(known, abs=1e-4)
        assert y[0, n].item() == pytest.approx(ramp * x[0, n].item(), abs=2e-5)
        ramp = sum(squared[2047 - n + 512 * k] for k in range(n // 512 + 1)) / 1.5
        assert y[0, -1 - n].item() == pytest.approx(ramp * x[0, -1 - n].item(), abs=2e-5)


@pytest.mark.parametrize(("n_samples", "ceiling_db"), [(34304, 14.2), (88200, 18.7)])
def test_ceiling_of_a_perfect_network(n_samples, ceiling_db):
    """Without padded edges, on white noise."""
    x = randn(1, n_samples)
    y = T.inverse(T(x))
    x = x[:, : y.shape[-1]]
    snr_db = 10 * math.log10((x**2).sum() / ((y - x) ** 2).sum())
    assert snr_db == pytest.approx(ceiling_db, abs=0.4)


def test_warp_is_the_formula():
    """Amp(c) = beta |c|**alpha exp(i angle(c)), DC kept and Nyquist dropped."""
    x = 0.3 * randn(2, 100)
    frames = x.double().unfold(-1, 64, 16) * torch.hann_window(64, dtype=torch.float64)
    bins = torch.fft.rfft(frames).transpose(-1, -2)[:, :32]
    warped = 0.34 * bins.abs() ** 0.65 * torch.exp(1j * bins.angle())
    expected = torch.stack((warped.real, warped.imag), dim=1)
    torch.testing.assert_close(SMALL(x).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gain", [2.0, -0.5, 1e-3, 0.0])
def test_warp_is_positively_homogeneous(gain):
    x = 0.2 * randn(2, 4096)
    expected = math.copysign(abs(gain) ** 0.65, gain) * T(x)
    torch.testing.assert_close(T(gain * x), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("level", [0.0, 1e-30, 1e-9, 1.0])
def test_gradients_are_finite_down_to_silence(level):
    x = level * randn(1, 256)
    x[:, 100:200] = 0
    x.requires_grad_()
    spectrogram = SMALL(x)
    spectrogram.square().sum().backward()
    assert level or not spectrogram.any()
    assert torch.isfinite(x.grad).all()
    spectrogram = (level * randn(1, 2, 32, 12)).requires_grad_()
    audio = SMALL.inverse(spectrogram)
    audio.sum().backward()
    assert level or not audio.any()
    assert torch.isfinite(spectrogram.grad).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"at least one window of 64 samples, got \(1, 63\)"):
        SMALL(torch.zeros(1, 63))
    for changes in ({"hop": 0}, {"alpha": 0.0}, {"alpha": 1.5}, {"beta": 0.0}):
        with pytest.raises(ValueError, match="hop >= 1, 0 < alpha <= 1 and beta > 0"):
            TransformConfig(**changes)
