"""Protocols on models whose errors are known: exactly linear, with a gain error, and useless ones."""

import math

import pytest
import torch
from fakes import RATE, STEMS, FakeTrack, Linear, LouderWhenLoud, NoisyDecoder, Reworked, two_tracks
from hypothesis import given
from hypothesis import strategies as st

from lincae import metrics
from lincae.evaluation.evaluate import evaluate
from lincae.evaluation.protocols import (
    MIXTURE,
    PROTOCOLS,
    Chunk,
    EvaluationConfig,
    error_parts,
    overlap_add,
    sums,
    window_starts,
)
from lincae.interop.references import TanhToy
from lincae.machine import generator

PARTS = ["level_rel_l2", "constant_rel_l2", "shape_rel_l2"]
CONFIG = EvaluationConfig(window_s=0.5, overlap_s=0.125, chunk_s=2.0, gains=(-3, -1, 0.5, 2.0))


def run(model, tracks=None, protocols=tuple(PROTOCOLS), config=CONFIG):
    return evaluate(model, tracks or two_tracks(), protocols, config, progress=False)


def chunk_of(model, track=None, config=CONFIG, n_samples=None):
    track = track or FakeTrack()
    return Chunk(model, track, 0, n_samples or round(track.seconds * RATE), config)


@given(st.integers(1, 60), st.floats(0, 0.5), st.integers(0, 340))
def test_windows_fade_into_each_other_and_join_to_the_signal(window, share, more):
    overlap = int(share * window)
    signal = torch.randn(window + more, generator=generator(window, overlap, more))
    starts = window_starts(len(signal), window, overlap)
    windows = [signal[start : start + window] for start in starts]
    assert all(len(part) == window for part in windows)
    torch.testing.assert_close(overlap_add(windows, starts, overlap), signal)
    joined = overlap_add([torch.zeros(6), torch.ones(6)], [0, 4], 2)
    assert joined.tolist() == [0, 0, 0, 0, 0.25, 0.75, 1, 1, 1, 1]


def test_the_linear_reference_is_linear_in_every_protocol():
    rows = run(Linear()).query("comparison == 'linearity'")
    encoder, decoder = rows[rows.snr_db.isna()], rows[rows.snr_db.notna()]
    assert set(encoder.protocol) == {"encoder_homogeneity", "encoder_additivity"}
    sums = {"decoder_additivity", "decoder_superposition"}
    assert set(decoder.protocol) == {"decoder_homogeneity", "separation"} | sums
    assert (rows[["rel_l2", *PARTS]].fillna(0) < 1e-4).all(axis=None)
    assert (decoder[["snr_db", "si_sdr_db"]] > 60).all(axis=None)
    assert (decoder.mss < 1e-3).all()


def test_the_toy_is_linear_in_none():
    toy = TanhToy(RATE, drive=3.0)
    rows = run(toy).query("comparison == 'linearity' and gain != -1")  # tanh is odd: its polarity is exact
    assert (rows.rel_l2 > 1e-2).all()
    assert (rows.snr_db.dropna() < 30).all()


@pytest.mark.parametrize("gain", [-3, 0.5, 2.0])
def test_the_toys_errors_are_those_computed_by_hand(gain):
    toy, track = TanhToy(RATE, drive=2.0), FakeTrack()
    x = track.stems(RATE, 0, 2.0).double().sum(0)
    # encoder: windows overlap, so samples count as often as windows hold them
    windows = torch.stack([x[s : s + 8000] for s in chunk_of(toy).starts])
    error = torch.tanh(2 * gain * windows) - gain * torch.tanh(2 * windows)
    expected = error.norm() / (gain * torch.tanh(2 * windows)).norm()
    rows = run(toy, [track], ["homogeneity"]).query(f"comparison == 'linearity' and gain == {gain}")
    measured = rows.set_index("protocol").rel_l2
    assert measured["encoder_homogeneity"] == pytest.approx(expected.item(), rel=1e-4)
    z = torch.tanh(2 * x)
    error = torch.tanh(2 * gain * z) - gain * torch.tanh(2 * z)
    expected = error.norm() / (gain * torch.tanh(2 * z)).norm()
    assert measured["decoder_homogeneity"] == pytest.approx(expected.item(), rel=1e-4)


def test_superposition_of_the_toy_is_that_computed_by_hand():
    """Property 2, and not what Dec(Enc(sum)) says: the toy's error of both is known sample by sample."""
    toy, track = TanhToy(RATE, drive=2.0), FakeTrack()
    z = torch.tanh(2 * track.stems(RATE, 0, 2.0).double())
    separately = torch.tanh(2 * z).sum(0)
    expected = (torch.tanh(2 * z.sum(0)) - separately).norm() / separately.norm()
    rows = run(toy, [track], ["superposition"]).query("comparison == 'linearity' and condition == 'all'")
    assert rows.rel_l2.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_linear_encoder_is_additive_and_its_decoder_is_not():
    squashing = Reworked(lambda audio: torch.tanh(4 * audio))
    rows = run(squashing, [FakeTrack()], ["additivity", "superposition"])
    rows = rows.query("comparison == 'linearity' and condition == 'all'").set_index("protocol")
    assert rows.snr_db["decoder_additivity"] > 60
    assert rows.snr_db["decoder_superposition"] < 15


def test_parts_of_an_error_by_hand():
    """The error (1, 0.5, 0.2) of a reference (2, 0, 0): what turns with it, what stays, and the rest."""
    pair = torch.tensor([3.0, 0.5, 0.2]), torch.tensor([2.0, 0.0, 0.0])
    turned = torch.tensor([-3.0, 0.5, -0.2]), torch.tensor([-2.0, 0.0, 0.0])
    assert list(error_parts(pair, turned).values()) == pytest.approx([0.5, 0.25, 0.1])


OFFSET = Reworked(lambda audio: audio + 0.1 * torch.cos(torch.arange(audio.shape[1]) / 50))
RECTIFIED = Reworked(lambda audio: audio + 0.5 * audio.abs())  # all of its error is even


@pytest.mark.parametrize(
    ("model", "only", "gains"),
    [
        (LouderWhenLoud(decoder_error=0.25), "level_rel_l2", [0.5]),
        (OFFSET, "constant_rel_l2", [-3, -1, 0.5, 2.0]),
        (RECTIFIED, "constant_rel_l2", [-3, -1]),
    ],
    ids=["level", "constant", "even"],
)
def test_an_error_of_one_kind_has_one_part(model, only, gains):
    rows = run(model, [FakeTrack()], ["homogeneity"]).query("comparison == 'linearity'")
    rows = rows[(rows.protocol == "decoder_homogeneity") & rows.gain.isin(gains)]
    assert (rows[only] > 0.05).all()
    assert (rows[only] > 0.95 * rows.rel_l2).all()
    others = [part for part in PARTS if part != only]
    assert (rows[others].max(axis=1) < 0.05 * rows[only]).all()


def test_the_parts_of_the_toy_add_up_and_none_is_constant():
    rows = run(TanhToy(RATE, drive=3.0)).query("comparison == 'linearity' and gain != -1")
    rows = rows[rows[PARTS].notna().all(axis=1)]
    assert set(rows.protocol.str.split("_").str[-1]) == {*PROTOCOLS} - {"reconstruction", "latents"}
    assert (rows[PARTS] ** 2).sum(axis=1).to_numpy() == pytest.approx((rows.rel_l2**2).to_numpy(), rel=1e-4)
    assert (rows.constant_rel_l2 < 1e-5).all()  # tanh is odd
    assert (rows[["level_rel_l2", "shape_rel_l2"]].mean() > 0.05).all()


# Stems have an RMS of 0.1, three of them 0.17, the mixture 0.2; what is above 0.15 comes out louder by 1 + e.

E = 0.25


def db(ratio):
    return 20 * math.log10(ratio)


def test_gain_error_of_an_encoder_by_hand():
    rows = run(LouderWhenLoud(encoder_error=E)).query("comparison == 'linearity'")
    enc = rows[rows.protocol == "encoder_homogeneity"].groupby("gain").rel_l2.mean()
    assert enc[0.5] == pytest.approx(E / (1 + E), rel=1e-4)  # half the mixture is quiet
    assert enc[[-3.0, -1.0, 2.0]].max() < 1e-5
    add = rows[rows.protocol == "encoder_additivity"].groupby("n_sources").rel_l2.mean()
    assert add[4] == pytest.approx(E / (1 + E), rel=1e-4)  # four quiet ones against a loud one
    assert add[3] == pytest.approx(E / (1 + E), rel=1e-4)
    assert add[2] == pytest.approx(E / (1 + E) / 2, rel=0.05)  # the error is that of one stem of four
    dec = rows[(rows.protocol == "decoder_additivity") & (rows.n_sources == 4)]
    assert dec.snr_db.mean() == pytest.approx(db((1 + E) / E), abs=1e-2)
    assert dec.mss_log.mean() == pytest.approx(math.log(1 + E), rel=1e-3)
    # mixture minus accompaniment, both too loud by 1 + e
    stems = rows[rows.protocol == "separation"]
    assert stems.snr_db.mean() == pytest.approx(db(1 / E), abs=0.05)
    assert stems.rel_l2.mean() == pytest.approx(E, abs=2e-3)
    assert stems.si_sdr_db.min() > 45
    assert stems.mss.mean() == pytest.approx(E + math.log(1 + E), rel=0.01)


def test_gain_error_of_a_decoder_by_hand():
    rows = run(LouderWhenLoud(decoder_error=E))
    linear = rows.query("comparison == 'linearity'")
    dec = linear[linear.protocol == "decoder_homogeneity"].groupby("gain").snr_db.mean()
    assert dec[0.5] == pytest.approx(db((1 + E) / E), abs=1e-2)
    assert dec[[-3.0, -1.0, 2.0]].min() > 60
    assert linear[linear.protocol.str.startswith("encoder")].rel_l2.max() < 1e-5
    # both sides are too loud alike
    assert linear[linear.protocol == "decoder_additivity"].snr_db.min() > 60
    codec = rows[(rows.protocol == "reconstruction") & (rows.comparison == "codec")]
    assert codec.snr_db.mean() == pytest.approx(db(1 / E), abs=1e-2)
    truth = rows[(rows.protocol == "decoder_additivity") & (rows.comparison == "truth")]
    assert truth.snr_db.mean() == pytest.approx(db(1 / E), abs=1e-2)


def test_swap_is_the_decode_of_the_next_track():
    model, (one, two) = Linear(), two_tracks()
    rows = run(model, [one, two], ["reconstruction", "separation"]).query("comparison == 'swap'")
    x, y = one.stems(RATE, 0, 2.0), two.stems(RATE, 0, 2.0)
    mine = rows[rows.track == "one"].set_index("stem").snr_db
    expected = metrics.snr_db(y.sum(0)[None], x.sum(0)[None]).item()
    assert mine[MIXTURE] == pytest.approx(expected, abs=1e-3)
    # the reference is the other track's stem, the estimate this one's
    assert mine["bass"] == pytest.approx(metrics.snr_db(x[1:2], y[1:2]).item(), abs=1e-3)
    last = rows[(rows.track == "two") & (rows.stem == MIXTURE)].snr_db.item()
    assert last == pytest.approx(metrics.snr_db(x.sum(0)[None], y.sum(0)[None]).item(), abs=1e-3)


def test_a_track_alone_is_swapped_with_itself_at_another_time():
    track = FakeTrack()
    swap = run(Linear(), [track], ["reconstruction"]).query("comparison == 'swap'").snr_db.item()
    assert -4 < swap < -2  # unrelated noise of equal level
    short = FakeTrack(seconds=0.4)  # one window: its latent frames are rolled
    swap = run(Linear(), [short], ["reconstruction"]).query("comparison == 'swap'").snr_db.item()
    assert swap < 0


@pytest.mark.parametrize("noise", ["common", "independent"])
def test_the_floor_is_the_noise_of_decoding_and_the_noise_can_be_shared_or_not(noise):
    config = EvaluationConfig(**vars(CONFIG) | {"noise": noise})
    rows = run(NoisyDecoder(), protocols=["reconstruction", "additivity"], config=config)
    expected = pytest.approx(db(0.2 / (NoisyDecoder.level * math.sqrt(2))), abs=0.5)
    assert rows.query("comparison == 'floor' and protocol == 'reconstruction'").snr_db.mean() == expected
    four = rows.query("comparison == 'linearity' and protocol == 'decoder_additivity' and n_sources == 4")
    if noise == "common":
        assert four.snr_db.min() > 60
    else:
        assert four.snr_db.mean() == expected


@pytest.mark.parametrize("names", [STEMS[:n] for n in (1, 2, 3, 4)] + [(*STEMS, "piano", "guitar")])
def test_sums_add_up(names):
    track = FakeTrack(stem_names=names, levels=(0.1,) * 6)
    chunk, found = chunk_of(Linear(), track), sums(names)
    assert {n for n, *_ in found} == set(range(2, len(names) + 1))
    for n, _, parts, whole in found:
        assert len(parts) == n
        torch.testing.assert_close(sum(chunk.signal(part) for part in parts), chunk.signal(whole))
    assert len({condition for _, condition, *_ in found}) == len(found)


@pytest.mark.parametrize("n_samples", [100, 8000, 8001, 31999])
def test_windows_join_to_the_whole_chunk(n_samples):
    assert len(chunk_of(Linear(), FakeTrack(seconds=10), EvaluationConfig()).starts) == 7  # as in the paper
    chunk = chunk_of(Linear(), n_samples=n_samples)
    torch.testing.assert_close(chunk.decoded(MIXTURE), chunk.signal(MIXTURE), rtol=0, atol=1e-5)
    assert chunk.encode(MIXTURE).shape[0] == len(chunk.starts)


def test_batch_size_changes_nothing():
    mss = []
    for size in (1, 3, 100):
        config = EvaluationConfig(**vars(CONFIG) | {"batch_size": size})
        mss.append(run(Linear(), protocols=["separation"], config=config).mss.to_numpy())
    assert mss[1] == pytest.approx(mss[0], rel=1e-3, abs=1e-4, nan_ok=True)
    assert mss[2] == pytest.approx(mss[0], rel=1e-3, abs=1e-4, nan_ok=True)


def test_random_gain_is_one_a_track_within_its_range():
    config = EvaluationConfig(**vars(CONFIG) | {"gain_range": (-2.0, -1.0), "chunk_s": 1.0})
    rows = run(Linear(), two_tracks(), ["homogeneity"], config).query("condition == 'random'")
    gains = rows.groupby("track").gain.unique()
    assert all(len(values) == 1 and -2 < values[0] < -1 for values in gains)
    assert gains["one"] != gains["two"]
    assert rows.chunk.nunique() == 2


def test_latent_statistics():
    rows = run(Linear(), [FakeTrack()], ["latents"]).set_index("condition").value
    z = chunk_of(Linear()).encode(MIXTURE)
    assert rows["std"] == pytest.approx(z.std().item(), rel=1e-5)
    assert rows["max_abs"] == pytest.approx(z.abs().max().item(), rel=1e-5)
    assert rows["silence"] == 0
    # a normal distribution with the windows' ramps at the ends of the signal
    assert 3 < rows["kurtosis"] < 5


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"overlap_s": 1.5}, "overlap_s <= window_s / 2"),
        ({"gains": [0.0]}, "finite gains other than 0"),
        ({"gain_range": (3.0, 1.0)}, "low < high"),
        ({"noise": "none"}, r"noise in \('common', 'independent'\)"),
        ({"seconds": 0}, "seconds > 0, or None"),
    ],
)
def test_configuration_out_of_range(change, allowed):
    with pytest.raises(ValueError, match=allowed):
        EvaluationConfig(**change)
