"""Tables 1 and 2 and Figures 2 and 3: distances, rows, what is decoded, gains and costs."""

import math

import pandas as pd
import pytest
import torch

import lincae
from lincae.interop.references import StftAutoencoder, TanhToy
from lincae.latents.algebra import left_right
from lincae.latents.store import LatentFileError, describe
from lincae.reencoder import evaluation
from lincae.reencoder.module import SIZES, ReEncoder, ReEncoderConfig
from lincae.reencoder.pairs import Source, band_limited, task_input
from tests.fakes import Linear
from tests.notebook_code import defined_in

RATE = 16000


class Counting(Linear):
    """Linear at a finer hop, which remembers the order of what it is asked for."""

    def __init__(self):
        StftAutoencoder.__init__(self, RATE, hop=16)
        self.calls = []

    def encode(self, audio):
        self.calls.append(("encode", len(audio)))
        return StftAutoencoder.encode(self, audio)

    def decode(self, z, length=None, seed=0):
        self.calls.append(("decode", len(z)))
        return StftAutoencoder.decode(self, z, length, seed)


def module_for(model, task="bandwidth", **changes):
    settings = {"hidden": 66, "blocks": 1, "condition": 4, "condition_blocks": 1} | changes
    return ReEncoder(ReEncoderConfig(task, 66, **settings), describe(model)).eval()


def noise(channels, seed, seconds=0.5):
    return 0.1 * torch.randn(channels, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def sources(channels, count=2):
    return [Source(f"track {i}", lambda rate, i=i: noise(channels, i)) for i in range(count)]


def test_distances_are_those_of_auraloss():
    from auraloss.freq import MelSTFTLoss, MultiResolutionSTFTLoss

    x, y = noise(1, 0)[0], noise(1, 1)[0]
    found = evaluation.distances(x, y, RATE)
    pair = x[None, None], y[None, None]
    assert found["stft_d"] == pytest.approx(MultiResolutionSTFTLoss()(*pair).item(), rel=1e-4)
    assert found["mel_d"] == pytest.approx(MelSTFTLoss(RATE)(*pair).item(), rel=1e-4)


def test_distances_of_equal_halved_and_silent_signals():
    """Of x / 2 against x both terms are known: the spectral convergence 1/2, the log distance ln 2."""
    x = noise(1, 0)[0]
    assert evaluation.distances(x, x, RATE) == {"stft_d": 0, "mel_d": 0}
    half = evaluation.distances(x / 2, x, RATE)
    assert half["stft_d"] == pytest.approx(0.5 + math.log(2), rel=1e-3)
    assert half["mel_d"] == pytest.approx(0.5 + math.log(2), rel=1e-3)
    silent = evaluation.distances(x, torch.zeros_like(x), RATE)
    assert all(math.isnan(value) for value in silent.values())
    with pytest.raises(ValueError, match="audio \\(T,\\) of one length"):
        evaluation.distances(x, x[:-1], RATE)


def test_bands_add_up():
    x = noise(2, 0)
    low, high = evaluation.band(x, RATE, 0, 1000), evaluation.band(x, RATE, 1000)
    torch.testing.assert_close(low + high, x)
    tone = torch.sin(2 * torch.pi * 500 * torch.arange(RATE) / RATE)
    torch.testing.assert_close(evaluation.band(tone, RATE, 400, 600), tone, atol=1e-3, rtol=0)
    assert evaluation.band(tone, RATE, 600).abs().max() < 1e-3


def bandwidth_rows(model, modules, source, factor=2):
    names = {"evaluation": evaluation, "task_input": task_input, "torch": torch, "factor": factor, "seed": 0}
    names = defined_in("09_bandwidth_extension", "latents_of", names)
    names = defined_in("09_bandwidth_extension", "bandwidth_rows", names)
    return pd.DataFrame(names["bandwidth_rows"](model, modules, [source]))


def stereo_rows(model, modules, source, number=0, lambdas=(0.0, 1.0)):
    names = {"evaluation": evaluation, "task_input": task_input, "torch": torch, "left_right": left_right}
    names |= {"lambdas": lambdas, "seed": 0, "seconds": 60.0, "CHANNELS": ("left", "right", "mid", "side")}
    names = defined_in("10_mono_to_stereo", "stereo_latents", names)
    names = defined_in("10_mono_to_stereo", "stereo_rows", names)
    return tuple(map(pd.DataFrame, names["stereo_rows"](model, modules, source, number)))


def test_bandwidth_rows_of_a_lossless_autoencoder():
    """It leaves nothing to the autoencoder, and an untrained module leaves the input as it is."""
    model = Counting()
    rows = bandwidth_rows(model, {"new": module_for(model)}, sources(1)[1], factor=4)
    assert len(rows) == 5 * 3
    table = rows.pivot_table(index="system", columns="band", values="stft_d")
    assert table.loc["autoencoder"].max() < 1e-3
    assert 2 * table.loc["input", "low"] < 1 < table.loc["input", "high"]
    for system in ("autoencoder(input)", "new"):
        assert table.loc[system].tolist() == pytest.approx(table.loc["input"].tolist(), rel=0.02, abs=0.02)


def test_bands_end_an_octave_above_the_cut_that_modules_learned_from():
    model = Counting()
    module = module_for(model)
    module.metadata["factor"] = 4
    rows = bandwidth_rows(model, {"new": module}, sources(1, 1)[0], factor=8)
    band = evaluation.band(band_limited(noise(1, 0), RATE, 4)[0], RATE, 2000, 4000)
    expected = evaluation.distances(band, evaluation.band(noise(1, 0)[0], RATE, 2000, 4000), RATE)
    row = rows[(rows.system == "input") & (rows.band == "high")].iloc[0]
    assert row.stft_d == pytest.approx(expected["stft_d"])


def test_no_waveform_between_encode_and_decode():
    """Each output is decoded once; the modules' latents come from the one encoding of the input."""
    model = Counting()
    modules = {name: module_for(model) for name in ("a", "b")}
    bandwidth_rows(model, modules, sources(1, 1)[0])
    # input and target; then the autoencoder, its input, that and a constant, and the two modules
    assert model.calls == [("encode", 1)] * 2 + [("decode", 1)] * 5
    model.calls.clear()
    stereo_rows(model, {"up": module_for(model, "stereo")}, sources(2, 1)[0], lambdas=(0, 0.5, 1))
    # mono, left and right, mid and side; the mono input, the autoencoder, latent mid + side, three lambdas
    assert model.calls == [("encode", 1), ("encode", 2), ("encode", 2), ("decode", 1)] + [("decode", 2)] * 5
    model.calls.clear()
    z = StftAutoencoder.encode(model, noise(1, 0))
    modules["a"].process(z)
    up = module_for(model, "stereo")
    up.process(z, up.oracle(torch.stack([z, z], 1)))
    assert model.calls == []


def test_stereo_rows_of_a_lossless_linear_autoencoder():
    """Mid/side arithmetic on its latents is exact; a new upmixer is mono in both channels."""
    model = Counting()
    rows, balances = stereo_rows(model, {"up": module_for(model, "stereo")}, sources(2)[1], 1)
    assert len(rows) == 6 * 4
    table = rows.pivot_table(index="system", columns="channel", values="stft_d")
    assert table.loc[["autoencoder", "latent mid + side"]].max(axis=None) < 1e-3
    assert table.loc["input", "mid"] == pytest.approx(0, abs=1e-6)
    assert table.loc["input", "left"] > 0.5
    for system in ("autoencoder(input)", "up, lambda = 0", "up, lambda = 1"):
        assert (table.loc[system] - table.loc["input"]).abs().max() < 0.02
    assert balances["lambda"].tolist() == [0, 1]
    assert balances.balance_db.abs().max() < 0.01
    truth = noise(2, 1)
    expected = 10 * (truth[0].square().sum() / truth[1].square().sum()).log10().item()
    assert balances.balance_true_db.iloc[-1] == pytest.approx(expected, rel=1e-4)


def test_paired_differences():
    rows = [
        {"model": "m", "track": i, "system": system, "band": "high", "stft_d": value}
        for i, pair in enumerate([(1.0, 2.0), (1.0, 3.0), (2.0, 5.0)])
        for system, value in zip(("ours", "input"), pair, strict=True)
    ]
    mean, low, high = evaluation.paired(pd.DataFrame(rows), "ours", "input", "stft_d", band="high")
    assert mean == pytest.approx(2)
    assert 1 <= low < 2 < high <= 3
    with pytest.raises(ValueError, match="no rows of theirs"):
        evaluation.paired(pd.DataFrame(rows), "theirs", "input", "stft_d", band="high")


@pytest.mark.parametrize(("size", "published"), [("s", 0.4), ("m", 1.6)])
def test_gflops_of_the_paper(size, published):
    """Table 1, at 43 Hz: 0.4 and 1.6; by hand two per weight and frame, but for the norms."""
    owner = {"name": "vocos", "fingerprint": "0", "sample_rate": 44100, "latent_rate": 44100 / 1024}
    with torch.device("meta"):
        module = ReEncoder(ReEncoderConfig(**SIZES[size]), owner)
        z = torch.empty(1, 64, 100)
    counted = evaluation.gflops(lambda: module(z), 100 / owner["latent_rate"])
    assert round(counted, 1) == published
    products = sum(p.numel() for name, p in module.named_parameters() if p.ndim > 1)
    assert counted == pytest.approx(2 * products * owner["latent_rate"] / 1e9, rel=0.01)


def test_attention_is_counted():
    """The counter misses it in the CPU's fused kernels. Two products of T x T x D, two for each number."""
    q = torch.randn(1, 1, 50, 8)
    counted = evaluation.gflops(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert counted * 1e9 == pytest.approx(2 * 2 * 50 * 50 * 8)


def test_costs_of_an_autoencoder_and_its_modules():
    model = lincae.Autoencoder(lincae.recipe("test").autoencoder, "untrained").eval()
    config = ReEncoderConfig(latent_channels=model.config.network.latent_channels, hidden=64, blocks=1)
    module = ReEncoder(config, describe(model))
    table = evaluation.costs(model, {"small": module}, 0.5)
    assert list(table.index) == ["encode", "decode", "small"]
    assert (table > 0).all(axis=None)
    assert table.gflops["small"] < table.gflops["encode"] + table.gflops["decode"]


def test_what_cannot_be_evaluated():
    model = Counting()
    foreign = {"up": module_for(TanhToy(RATE, hop=66))}
    with pytest.raises(LatentFileError, match="another model"):
        bandwidth_rows(model, foreign, sources(1)[0])
    with pytest.raises(ValueError, match=r"left and right, got \(1, 8000\)"):
        stereo_rows(model, {}, sources(1)[0])
