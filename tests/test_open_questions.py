"""What notebook 11 measures, on sounds and models whose errors are known."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from fakes import RATE, Linear
from notebook_code import defined_in

from lincae import metrics
from lincae.interop.references import TanhToy
from lincae.machine import generator

NAMES = {"torch": torch, "pd": pd, "metrics": metrics, "generator": generator, "seed": 0}
NAMES |= {"SimpleNamespace": SimpleNamespace}


@pytest.fixture(scope="module")
def many_sources():
    names = defined_in("11_open_questions", "sum_errors", dict(NAMES))
    return defined_in("11_open_questions", "many_sources", names)["many_sources"]


def sounds(n=9, seconds=0.5):
    noise = torch.randn(n, int(seconds * RATE), generator=generator(1))
    return torch.linspace(0.02, 0.3, n)[:, None] * noise


def test_any_number_of_sources_adds_in_the_linear_reference(many_sources):
    frame = many_sources(Linear(), sounds(), (1, 2, 9))
    assert frame.groupby("n_sources").size().to_dict() == {1: 3, 2: 3, 9: 3}
    assert frame.rel_l2.max() < 1e-5
    assert frame[["snr_db", "codec_snr_db"]].min(axis=None) > 60
    assert frame.mss.max() < 1e-3
    assert frame.si_sdr_db[frame.n_sources > 1].min() > 60
    assert frame.si_sdr_db[frame.n_sources == 1].isna().all()
    assert frame.swap_snr_db[frame.n_sources < 9].max() < 3


def test_more_sources_are_worse_in_the_toy(many_sources):
    error = many_sources(TanhToy(RATE), 5 * sounds(), (2, 8)).groupby("n_sources").rel_l2.mean()
    assert 0.01 < error[2] < error[8]


def test_odd_is_the_encoder_without_its_even_part():
    class Even(Linear):
        def encode(self, audio):
            return super().encode(audio) + super().encode(audio.square() + 0.5)

    cell = defined_in("11_open_questions", "odd", dict(NAMES))
    model, x = cell["odd"](Even()), sounds(3)
    assert (Even().encode(x) - Linear().encode(x)).abs().max() > 0.1
    torch.testing.assert_close(model.encode(x), Linear().encode(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.decode(model.encode(x), x.shape[1]), x, atol=1e-5, rtol=0)


def test_phase_and_magnitude_tell_apart_what_is_wrong():
    """Two tones; the decode has the lower one in quadrature, the higher one at half its level."""
    t = torch.arange(RATE) / RATE
    low, high = (torch.sin(2 * torch.pi * f * t) for f in (500.0, 3000.0))
    decoded = (torch.cos(2 * torch.pi * 500 * t) + 0.5 * high)[None]
    cell = defined_in("11_open_questions", "phase_and_magnitude", dict(NAMES))
    frame = cell["phase_and_magnitude"](decoded, (low + high)[None], RATE, (0, 1500, 8000))
    snr_db = frame.set_index(["kind", "low_hz"]).snr_db
    assert snr_db["decode", 0] == pytest.approx(-3.0, abs=0.1)  # |cos - sin|^2 = 2 |sin|^2
    assert snr_db["decode", 1500] == pytest.approx(6.0, abs=0.1)
    assert snr_db["true phase", 0] > 20
    assert snr_db["true phase", 1500] == pytest.approx(6.0, abs=0.2)
    assert snr_db["true magnitude", 0] == pytest.approx(-3.0, abs=0.1)
    assert snr_db["true magnitude", 1500] > 20
