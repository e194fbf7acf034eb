"""Time shifts and the best linear map: exact where the model is, computed where it is tanh."""

import numpy as np
import pytest
import torch
from fakes import RATE, DeafDecoder, FakeTrack, Linear, Reworked, two_tracks

from lincae.evaluation.evaluate import evaluate
from lincae.evaluation.protocols import SHIFTS, EvaluationConfig
from lincae.interop.references import TanhToy

CONFIG = EvaluationConfig(window_s=1.0, overlap_s=0.25, chunk_s=4.0)
STEM = 0.3  # RMS of each of four stems of noise


def run(model, tracks=None, protocols=("equivariance", "fit"), config=CONFIG):
    return evaluate(model, tracks or two_tracks(seconds=4.0), protocols, config, progress=False)


def rel_l2(frame, protocol, condition, comparison="linearity"):
    rows = frame[(frame.protocol == protocol) & (frame.condition == condition)]
    return rows[rows.comparison == comparison].rel_l2


def tanh_toy_by_bussgang(sigma: float) -> float:
    """Share of tanh(tanh(u)), u normal with deviation sigma, that the best c u explains, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    u, weights = sigma * nodes, weights / weights.sum()
    g = np.tanh(np.tanh(u))
    return (weights * u * g).sum() ** 2 / ((weights * u * u).sum() * (weights * g * g).sum())


def test_a_linear_map_explains_all_of_the_linear_reference():
    rows = run(Linear(), protocols=["fit"])
    assert set(rows.condition) == {"any map", "one filter"}
    assert (rows.value > 1 - 1e-10).all()
    assert (rows.rel_l2 < 1e-5).all()


def test_one_filter_explains_of_tanh_what_bussgang_says():
    """The toy maps samples one by one, and noise is normal: the best linear map is one factor, known."""
    tracks = two_tracks(seconds=12.0, levels=(STEM,) * 4)
    config = EvaluationConfig(window_s=1.0, overlap_s=0.25, chunk_s=12.0)
    frame = run(TanhToy(RATE), tracks, ["fit"], config)
    expected = tanh_toy_by_bussgang(2 * STEM)
    assert expected < 0.97
    shares = frame[frame.condition == "one filter"].value
    # with a factor for each of the 513 frequencies instead of one, fitted on 6 s of noise: a little less
    assert ((1 - shares) / (1 - expected)).between(1, 1.25).all()


def test_any_map_explains_of_tanh_what_is_computed():
    """Sample by sample the toy is a function of the weights; the best linear one is computed from many more
    weights than the report draws. Fitting K weights to 2 K orthogonal mixtures adds half of what is left."""
    tracks = [FakeTrack(str(i), 2.0, levels=(STEM,) * 4, seed=i) for i in range(24)]
    frame = run(TanhToy(RATE), tracks, ["fit"])
    shares = frame[frame.condition == "any map"].value
    rng = np.random.default_rng(0)
    weights = np.concatenate([np.linalg.qr(rng.normal(size=(8, 4)))[0] for _ in range(2000)]) * 8**0.5
    stems = STEM * rng.normal(size=(4, 2000))
    output = np.tanh(np.tanh(weights @ stems))
    left = output - weights @ np.linalg.lstsq(weights, output)[0]
    unexplained = (left**2).sum() / (output**2).sum()
    assert 0.02 < unexplained < 0.05
    assert 1 - shares.mean() == pytest.approx(1.5 * unexplained, rel=0.07)


def test_any_map_sees_maps_that_change_over_time_and_nothing_in_a_deaf_decoder():
    """A gain that swings within a window is linear, and no filter."""
    swinging = Reworked(lambda x: x * (1 + 0.9 * torch.sin(torch.arange(x.shape[1]) / 500)))
    shares = run(swinging, protocols=["fit"]).groupby("condition").value.mean()
    assert shares["any map"] > 1 - 1e-10
    assert shares["one filter"] < 0.9
    assert run(DeafDecoder(), protocols=["fit"]).groupby("condition").value.mean()["any map"] < 0.1


def test_without_stems_windows_are_mixed():
    track = FakeTrack(seconds=4.0, stem_names=("mixture",))
    assert (run(Linear(), [track], ["fit"]).value > 1 - 1e-10).all()
    short = FakeTrack(seconds=0.5, stem_names=("mixture",))
    rows = run(Linear(), [short], ["fit"])
    assert rows.condition.tolist() == ["any map"]  # half a second cannot be fitted and tested
    assert rows.value.iloc[0] > 1 - 1e-10


def test_the_linear_reference_shifts_by_frames():
    frame = run(Linear(), protocols=["equivariance"])
    for shift in SHIFTS:
        assert (rel_l2(frame, "decoder_equivariance", f"{shift:g} frames") < 1e-5).all()
    for shift in ("1 frames", "4 frames"):
        assert (rel_l2(frame, "encoder_equivariance", shift) < 1e-5).all()
    encoder = frame[frame.protocol == "encoder_equivariance"]
    assert set(encoder.condition) == {"1 frames", "4 frames"}
    assert rel_l2(frame, "decoder_equivariance", "4 frames", "swap").between(1.2, 1.6).all()  # sqrt(2)
    assert (rel_l2(frame, "decoder_equivariance", "0 frames", "floor") == 0).all()


def test_a_model_that_counts_samples_does_not_shift():
    """A gain of 1 and 0.5 in turns of a frame: whole pairs of frames pass, one frame and halves do not."""

    hop = Linear().hop
    striped = Reworked(lambda audio: audio * (1 - 0.5 * ((torch.arange(audio.shape[1]) // hop) % 2)))
    frame = run(striped, protocols=["equivariance"])
    assert (rel_l2(frame, "decoder_equivariance", "4 frames") < 1e-5).all()
    # one of both sides is halved everywhere: noise of power 1/4 against (1 + 1/4) / 2
    assert rel_l2(frame, "decoder_equivariance", "1 frames").to_numpy() == pytest.approx(0.4**0.5, rel=0.03)
    # at a quarter of a frame that holds for a quarter of the samples
    assert rel_l2(frame, "decoder_equivariance", "0.25 frames").to_numpy() == pytest.approx(0.1**0.5, rel=0.1)
