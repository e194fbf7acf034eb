"""Training a spectral VAE: its loss by hand, linearity unchanged, the common trainer."""

from dataclasses import replace

import pytest
import torch
from auraloss.freq import MultiResolutionSTFTLoss
from fakes import noise
from jobs import Noise, rows, state_of, trained

from lincae.data.crops import StemBank
from lincae.interop.recipes import objective_of, recipe
from lincae.linearity import augment, implicit_conditioning
from lincae.machine import generator
from lincae.training.objective import validate
from lincae.vae.config import VAE_PRESETS, VAE_VARIANTS, VaeLossConfig, VaeTrainingConfig
from lincae.vae.model import kl_divergence, reparameterised
from lincae.vae.objective import ReconstructionLoss, VaeObjective


def built(variant: str = "lin-vae", **changes) -> VaeObjective:
    torch.manual_seed(0)
    return VaeObjective.build(recipe("test", variant, **changes), "toy")


def test_terms_are_those_of_auraloss_with_their_weights():
    config = VaeLossConfig(2.0, 3.0, 5.0, fft_sizes=(256, 512), mel_fft_sizes=(512,), mel_bins=40)
    audio, target = noise(3, 4000), noise(3, 4000, seed=1)
    terms = ReconstructionLoss(config, 16000)(audio, target)
    common = {"eps": config.floor**2}
    stft = MultiResolutionSTFTLoss((256, 512), (64, 128), (256, 512), **common)
    mel = MultiResolutionSTFTLoss((512,), (128,), (512,), scale="mel", n_bins=40, sample_rate=16000, **common)
    for name, loss, weight in (("stft", stft, 2), ("mel", mel, 3)):
        torch.testing.assert_close(terms[name], weight * loss(audio[:, None], target[:, None]))
    by_hand = 5 * (audio - target).abs().sum() / target.abs().sum()
    torch.testing.assert_close(terms["waveform"], by_hand)


def test_stft_term_by_hand():
    """Spectral convergence 1/2, log distance ln 2 wherever both lie above the floor; nothing below it."""
    config = VaeLossConfig(stft=1, mel=0, waveform=0, fft_sizes=(256,), floor=1e-9)
    target = noise(2, 4000)
    terms = ReconstructionLoss(config, 16000)(0.5 * target, target)
    assert set(terms) == {"stft"}
    assert terms["stft"].item() == pytest.approx(0.5 + torch.tensor(2.0).log().item(), rel=1e-4)

    silence = torch.zeros(2, 4000, requires_grad=True)
    ReconstructionLoss(VaeLossConfig(), 16000)(silence, target)["stft"].backward()
    assert torch.isfinite(silence.grad).all()

    impulse = torch.zeros(1, 4000)
    impulse[0, 2000] = 1e-3  # every bin of a frame has this magnitude at most
    floored = ReconstructionLoss(replace(config, floor=1e-2), 16000)
    assert floored(impulse, torch.zeros(1, 4000))["stft"] == 0


@pytest.mark.parametrize("variant", VAE_VARIANTS)
def test_a_step_is_the_three_lines_of_linearity(variant):
    """Same draws, same arithmetic as `lincae.linearity` prescribes, written out."""
    own = built(variant)
    config, network = own.config, own.model.network
    audio = noise(4, config.crop_samples)
    batch = own.prepare(audio, 7, generator(1))
    expected = augment(audio, 7 / config.steps, config.linearity, generator(1))
    assert torch.equal(batch.target(), expected.target())
    loss = own(batch, 7, generator(2))["loss"]

    generate, posteriors = generator(2), []

    def encode(x):
        posteriors.append(network.encoder(own.model.transform(x)))
        mean, log_variance = posteriors[-1]
        return reparameterised(mean, log_variance, torch.randn(mean.shape, generator=generate))

    z = implicit_conditioning(encode, expected, config.linearity)
    decoded = own.model.transform.inverse(network.decoder(z))
    edge = 3 * config.autoencoder.hop
    terms = own.reconstruction(decoded[:, edge:-edge], expected.target()[:, edge:-edge])
    by_hand = sum(terms.values()) + config.loss.kl * kl_divergence(*posteriors[0]).mean()
    torch.testing.assert_close(loss, by_hand)
    assert len(posteriors) == 1
    assert len(posteriors[0][0]) == (4 if variant == "lin-vae" else 8)  # originals alone, or all


def test_gradients_reach_every_weight():
    own = built()
    torch.nn.init.normal_(own.model.network.encoder.log_variance.weight, std=0.02)  # zero at first
    batch = own.prepare(noise(4, own.config.crop_samples), 0, generator(0))
    own(batch, 0, generator(1))["loss"].backward()
    idle = [name for name, p in own.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []
    assert all(torch.isfinite(p.grad).all() for p in own.parameters())


@pytest.mark.parametrize("changes", [{"variant": "lin-cae"}, {"variant": "vae"}])
def test_a_step_is_taken_in_float32_whatever_the_default_is(changes):
    torch.set_default_dtype(torch.float64)
    try:
        own = objective_of(recipe("test", **changes))
        batch = own.prepare(noise(4, own.config.crop_samples), 0, generator(0))
        loss = own(batch, 0, generator(1))["loss"]
        loss.backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert loss.dtype == torch.float32
    assert {p.dtype for p in own.parameters()} == {torch.float32}


@pytest.fixture(scope="module")
def bank():
    return StemBank.from_synth(6, 4.0, 16000, split="train")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lin-vae"])
def test_training_lowers_the_held_out_loss(variant, bank, tmp_path):
    config = recipe("test", variant)
    held_out = StemBank.from_synth(4, 4.0, 16000, split="test").crops(range(16), config.crop_samples, 0)
    torch.manual_seed(config.seed)
    own = VaeObjective.build(config, "before")
    own.begin("before")
    before = own.validate(held_out)
    model = trained(config, bank, tmp_path, validation=held_out)
    own.ema = model
    after = own.validate(held_out)
    assert after["stft"] < before["stft"] - 0.2
    assert after["mel"] < before["mel"] - 0.2
    assert after["rec_rel_l2"] < before["rec_rel_l2"] - 0.01
    assert after["swap_rel_l2"] > after["rec_rel_l2"] + 0.01  # it listens to its latent
    assert after.keys() == {*validate(model, held_out), "stft", "mel", "waveform", "kl"}
    last = rows(tmp_path / "validation.csv")[-1]
    assert last == pytest.approx({"step": 100, **after}, rel=1e-3, abs=1e-4)
    log = rows(tmp_path / "log.csv")
    assert list(log[0]) == ["step", "loss", "lr", "gain_min", "gain_max", "grad_norm", "items_per_s"]
    assert log[-1]["loss"] < log[0]["loss"]
    crops = bank.crops(range(64), config.crop_samples, 99)
    assert 0.8 < model.encode(crops).std() < 1.25  # public latents have unit deviation
    assert model.metadata["training"]["loss"]["kl"] == config.loss.kl


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"optimiser": "radam"}], ids=["muon", "radam"])
def test_resume_is_exact(changes, tmp_path):
    config = recipe("test", "lin-vae", steps=8, log_every=2, **changes)
    whole = trained(config, Noise(), tmp_path / "whole")
    trained(config, Noise(), tmp_path / "parts", stop_at=3)
    parts = trained(config, Noise(), tmp_path / "parts")
    expected, got = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert whole.config == parts.config
    losses = [[r["loss"] for r in rows(tmp_path / folder / "log.csv")] for folder in ("whole", "parts")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: recipe("small", "vae"), "'small'; choose from full, desk, test"),
        (lambda: recipe("desk", "lin_vae"), "'lin_vae'; choose from .*lin-vae, vae"),
        (lambda: recipe("test", "vae", **{"loss.l1": 1}), "VaeLossConfig has no 'l1'"),
        (lambda: VaeLossConfig(kl=-1), "kl=-1"),
        (lambda: VaeLossConfig(stft=0, mel=0, waveform=0), "reconstructed"),
        (lambda: VaeLossConfig(floor=0), "floor=0"),
        (lambda: recipe("desk", "vae", batch_size=1), "batch_size 1 cannot be shared"),
    ],
)
def test_recipes_refuse(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_variants_differ_in_the_conditioning_alone():
    for preset in VAE_PRESETS:
        plain, linear = (recipe(preset, variant) for variant in ("vae", "lin-vae"))
        assert isinstance(plain, VaeTrainingConfig)
        assert replace(plain, linearity=linear.linearity) == linear
        differing = {"homogeneity": True, "additivity": True}
        assert replace(plain.linearity, **differing) == linear.linearity
