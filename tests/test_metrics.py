"""Metrics against values derived by hand, their limits, and the libraries that the papers used."""

import math

import auraloss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio, signal_noise_ratio

from lincae.evaluation.clap import kad
from lincae.machine import generator
from lincae.metrics import (
    SILENCE_DBFS,
    band_snr_db,
    is_silent,
    mss,
    mss_terms,
    relative_l2,
    si_sdr_db,
    snr_db,
)

RATE = 44100


def mss_at_rate(prediction, reference):
    return mss(prediction, reference, RATE)


every_metric = pytest.mark.parametrize("metric", [snr_db, si_sdr_db, relative_l2, mss_at_rate])


def noise(*shape, seed=0, rms=0.1):
    return rms * torch.randn(shape, generator=generator(seed))


def test_values_by_hand():
    # |r|^2 = 25, |p - r|^2 = 0.25: a ratio of 100. Predicting nothing: 1
    values = snr_db(torch.tensor([[3.0, 4.5], [0.0, 0.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    assert values.tolist() == pytest.approx([20, 0], abs=1e-5)
    # the part along r is ten times the other: 20 dB at any gain; orthogonal: 10 log10(1e-8) = -80 dB
    prediction = torch.tensor([[1.0, 0.1], [7.0, 0.7], [0.0, 1.0]])
    values = si_sdr_db(prediction, torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]]))
    assert values.tolist() == pytest.approx([20, 20, -80], abs=1e-4)
    reference = torch.tensor([[[3.0], [4.0]], [[1.0], [0.0]]])
    values = relative_l2(torch.tensor([[[3.0], [3.0]], [[-1.0], [0.0]]]), reference)
    assert values.tolist() == pytest.approx([0.2, 2])


@given(st.floats(0.01, 100), st.integers(0, 99))
def test_a_gain_has_a_known_error(gain, seed):
    reference = noise(2, 500, seed=seed)
    expected = torch.full((2,), abs(gain - 1), dtype=torch.float64)
    torch.testing.assert_close(relative_l2(gain * reference, reference), expected, rtol=1e-4, atol=1e-6)
    # all that remains is the epsilon of 1e-8 beside the energy gain^2 * 500 * 0.1^2
    assert si_sdr_db(gain * reference, reference).min() > 45
    if abs(gain - 1) > 0.01:
        torch.testing.assert_close(
            snr_db(gain * reference, reference), -20 * expected.log10(), rtol=0, atol=1e-2
        )


@settings(deadline=None, max_examples=10)
@given(st.floats(0.1, 10), st.sampled_from([8000, 16000, 22050, 24000, 32000, 44100, 48000]))
def test_mss_of_a_gain_is_its_logarithm_and_its_distance(gain, rate):
    """At every rate: a mel filter without a bin would make it NaN."""
    reference = noise(2, 5000)
    convergence, log_mel = mss_terms(gain * reference, reference, rate)
    torch.testing.assert_close(convergence, torch.full((2,), abs(gain - 1)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(log_mel, torch.full((2,), abs(math.log(gain))), rtol=1e-3, atol=1e-4)


def test_band_snr_by_hand():
    t = torch.arange(8000) / 8000
    low, high = (torch.sin(2 * torch.pi * hz * t)[None] for hz in (100, 1000))
    prediction = 1.1 * low + 0.5 * high
    bands = band_snr_db(prediction, low + high, 8000, [50, 500, 2000, 4000])
    # errors of a tenth and a half; nothing above 2 kHz
    torch.testing.assert_close(bands[:, :2], torch.tensor([[20.0, 6.0206]]).double(), rtol=0, atol=1e-3)
    assert bands[0, 2].isnan()


def test_identical_inputs_score_the_limit():
    x = noise(3, 5000)
    limit = 10 * (x.double().square().sum(1) / 1e-8).log10()
    torch.testing.assert_close(snr_db(x, x), limit)
    assert (si_sdr_db(x, x) > 90).all()
    assert relative_l2(x, x).tolist() == mss(x, x, RATE).tolist() == [0, 0, 0]


@every_metric
def test_items_are_independent_and_silent_references_nan(metric):
    prediction, reference = noise(3, 5000, seed=1), noise(3, 5000, seed=2, rms=0.3)
    reference[1] = 0
    values = metric(prediction, reference)
    assert values.isnan().tolist() == [False, True, False]
    for i in (0, 2):
        torch.testing.assert_close(metric(prediction[i : i + 1], reference[i : i + 1])[0], values[i])
    if metric is not si_sdr_db:  # whose arguments may be swapped
        assert (metric(reference, prediction) - values)[[0, 2]].abs().min() > 0.5


def test_silence_is_a_level_of_rms():
    dbfs = torch.tensor([SILENCE_DBFS - 0.1, SILENCE_DBFS + 0.1, 0.0])
    square_wave = torch.ones(3, 100)
    square_wave[:, ::2] = -1
    assert is_silent(10 ** (dbfs[:, None] / 20) * square_wave).tolist() == [True, False, False]


def test_a_quiet_item_is_measured_as_a_loud_one():
    error = noise(1, RATE, seed=1, rms=1e-5)
    reference = noise(1, RATE, seed=2, rms=1.1e-4)
    expected = snr_db(1000 * (reference + error), 1000 * reference)
    torch.testing.assert_close(snr_db(reference + error, reference), expected, rtol=0, atol=0.02)


def test_kad_is_a_double_loop():
    x, y = noise(40, 5, seed=1).double(), noise(31, 5, seed=2, rms=0.2).double() + 0.1
    scale = 2 * torch.pdist(x).median() ** 2 + 1e-8

    def mean_kernel(p, q):
        values = [(-(a - b).square().sum() / scale).exp() for a in p for b in q if a is not b]
        return sum(values) / len(values)

    x_rows, y_rows = list(x), list(y)
    expected = mean_kernel(x_rows, x_rows) + mean_kernel(y_rows, y_rows) - 2 * mean_kernel(x_rows, y_rows)
    assert kad(x, y) == pytest.approx(100 * expected.item(), rel=1e-9)
    assert kad(x.flip(0), y) == pytest.approx(kad(x, y), rel=1e-9)
    assert kad(torch.ones(3, 2), torch.zeros(4, 2)) == pytest.approx(200, abs=1e-6)


def test_kad_is_unbiased():
    values = torch.tensor([kad(*noise(2, 60, 4, seed=seed)) for seed in range(200)])
    assert (values < 0).float().mean() > 0.3
    assert abs(values.mean()) < 3 * values.std() / 200**0.5
    assert kad(noise(60, 4, seed=1), noise(60, 4, seed=2) + 0.1) > 5 * values.std()


def test_snr_and_si_sdr_agree_with_torchmetrics():
    reference = noise(4, 20000, seed=3) + 0.05
    prediction = reference + noise(4, 20000, seed=4) * torch.tensor([[0.01], [0.1], [1.0], [3.0]])
    p, r = prediction.double(), reference.double()
    expected = signal_noise_ratio(p, r, zero_mean=False)
    torch.testing.assert_close(snr_db(prediction, reference), expected, rtol=0, atol=1e-4)
    expected = scale_invariant_signal_distortion_ratio(p, r, zero_mean=False)
    torch.testing.assert_close(si_sdr_db(prediction, reference), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("rate", "windows"),
    [(16000, {160: 256, 400: 512, 800: 1024}), (44100, {441: 512, 1102: 2048, 2205: 4096})],
)
def test_mss_agrees_with_auraloss_item_by_item(rate, windows):
    """Windows of 10, 25 and 50 ms, half of each a hop, FFTs of the next power of two."""
    sizes = (list(windows.values()), [samples // 2 for samples in windows], list(windows))
    peer = auraloss.freq.MultiResolutionSTFTLoss(*sizes, scale="mel", n_bins=80, sample_rate=rate)
    reference = noise(4, 30000, seed=5)
    prediction = reference + noise(4, 30000, seed=6)
    prediction[1] = 0
    reference[2] *= 0.1
    prediction[3] = reference[3].roll(1)
    each = zip(prediction, reference, strict=True)
    expected = torch.stack([peer(p[None, None], r[None, None]) for p, r in each])
    ours = mss(prediction, reference, rate)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@every_metric
@pytest.mark.parametrize("shapes", [((2, 5000), (2, 4999)), ((5000,), (5000,)), ((0, 9), (0, 9))])
def test_shapes_must_be_equal_batches(metric, shapes):
    with pytest.raises(ValueError, match="equal shape"):
        metric(*map(torch.ones, shapes))
    with pytest.raises(TypeError, match=r"prediction .* ndarray"):
        metric(torch.ones(2, 5000).numpy(), torch.ones(2, 5000))


def test_mss_needs_audio_longer_than_half_an_fft():
    assert mss(noise(1, 2049), noise(1, 2049, seed=1), RATE).isfinite().all()
    with pytest.raises(ValueError, match=r"2049 samples or more .*got \(1, 2048\)"):
        mss(noise(1, 2048), noise(1, 2048), RATE)
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        mss(noise(1, 2, 5000), noise(1, 2, 5000), RATE)


def test_kad_refuses():
    two = torch.ones(2, 4)
    for reference, evaluated, match in (
        (two[:1], two, r"reference .*got \(1, 4\)"),
        (two, two[:0], r"evaluated .*got \(0, 4\)"),
        (two, torch.ones(2, 5), r"evaluated .*got \(2, 5\)"),
        (two[:, :1], torch.tensor([[0.0], [math.nan]]), "evaluated .* item 1, dimension 0"),
    ):
        with pytest.raises(ValueError, match=match):
            kad(reference, evaluated)
