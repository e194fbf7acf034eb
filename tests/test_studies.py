import pytest
import torch
from fakes import RATE, Linear

from lincae.autoencoder import MODEL_PRESETS, Autoencoder
from lincae.evaluation.studies import Odd, Stepped, many_sources, phase_and_magnitude
from lincae.interop.references import TanhToy
from lincae.machine import generator


def sounds(n: int = 9, seconds: float = 0.5) -> torch.Tensor:
    noise = torch.randn(n, int(seconds * RATE), generator=generator(1))
    return torch.linspace(0.02, 0.3, n)[:, None] * noise


def test_any_number_of_sources_adds_in_the_linear_reference():
    frame = many_sources(Linear(), sounds(), (1, 2, 9), n_draws=3)
    assert frame.groupby("n_sources").size().to_dict() == {1: 3, 2: 3, 9: 3}
    assert frame.rel_l2.max() < 1e-5
    assert frame.snr_db.min() > 60
    assert frame.mss.max() < 1e-3
    assert frame.si_sdr_db[frame.n_sources > 1].min() > 60
    assert frame.si_sdr_db[frame.n_sources == 1].isna().all()
    assert frame.swap_snr_db[frame.n_sources < 9].max() < 3
    repeated = many_sources(Linear(), sounds(), (2,), n_draws=3)
    assert repeated.snr_db.tolist() == frame.snr_db[frame.n_sources == 2].tolist()


def test_odd_is_the_encoder_without_its_even_part():
    class Even(Linear):
        def encode(self, audio):
            return super().encode(audio) + super().encode(audio.square() + 0.5)

    model, x = Odd(Even()), sounds(3)
    assert (Even().encode(x) - Linear().encode(x)).abs().max() > 0.1
    torch.testing.assert_close(model.encode(x), Linear().encode(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.decode(model.encode(x), x.shape[1]), x, atol=1e-5, rtol=0)
    assert (model.sample_rate, model.latent_rate) == (Linear().sample_rate, Linear().latent_rate)
    assert model.name == f"{Linear().name}, odd"


def test_more_sources_are_worse_in_the_toy_and_a_sum_is_as_loud_as_a_sound():
    class Loudness(Linear):
        seen: list[float] = []  # noqa: RUF012

        def encode(self, audio):
            self.seen.append(audio.square().mean().sqrt().item())
            return super().encode(audio)

    model = Loudness()
    many_sources(model, sounds(), (1, 4), n_draws=1)
    one, _, four, parts, _ = model.seen
    assert four == pytest.approx(one, rel=0.05)
    assert parts == pytest.approx(one / 2, rel=1e-3)
    frame = many_sources(TanhToy(RATE), 5 * sounds(), (2, 8), n_draws=4)
    error = frame.groupby("n_sources").rel_l2.mean()
    assert 0.01 < error[2] < error[8]


def test_what_cannot_be_added():
    with pytest.raises(ValueError, match=r"sounds \[1\] are silent"):
        many_sources(Linear(), sounds(2) * torch.tensor([[1.0], [0.0]]), (1,))
    with pytest.raises(ValueError, match=r"counts lie in 1..9, the number of sounds, got \[0, 10\]"):
        many_sources(Linear(), sounds(), (0, 4, 10))


def test_steps():
    model = Autoencoder(MODEL_PRESETS["test"], "mine")
    x = sounds(2, 0.3)
    z = model.encode(x)
    two = Stepped(model, 2)
    assert (two.name, two.sample_rate, two.latent_rate) == ("mine, 2 steps", 16000, model.latent_rate)
    assert torch.equal(two.encode(x), z)
    assert torch.equal(two.decode(z, 100, 3), model.decode(z, 100, 3, steps=2))
    assert torch.equal(Stepped(model, 1).decode(z), model.decode(z))


def test_phase_and_magnitude_tell_apart_what_is_wrong():
    """Two tones; the decode has the lower one in quadrature, the higher one at half its level."""
    t = torch.arange(RATE) / RATE
    low, high = (torch.sin(2 * torch.pi * f * t) for f in (500.0, 3000.0))
    truth = (low + high)[None]
    decoded = (torch.cos(2 * torch.pi * 500 * t) + 0.5 * high)[None]
    frame = phase_and_magnitude(decoded, truth, RATE, (0, 1500, 8000))
    snr_db = frame.set_index(["kind", "low_hz"]).snr_db
    assert snr_db["decode", 0] == pytest.approx(-3.0, abs=0.1)  # |cos - sin|^2 = 2 |sin|^2
    assert snr_db["decode", 1500] == pytest.approx(6.0, abs=0.1)
    assert snr_db["true phase", 0] > 20
    assert snr_db["true phase", 1500] == pytest.approx(6.0, abs=0.2)
    assert snr_db["true magnitude", 0] == pytest.approx(-3.0, abs=0.1)
    assert snr_db["true magnitude", 1500] > 20
