"""Training a spectral VAE: its loss by hand, linearity unchanged, a discriminator, the common trainer."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from auraloss.freq import MultiResolutionSTFTLoss
from fakes import noise
from jobs import Noise

from lincae.data.crops import StemBank
from lincae.interop.recipes import objective_of, recipe
from lincae.linearity import augment, implicit_conditioning
from lincae.machine import generator
from lincae.training.loop import train
from lincae.training.objective import validate
from lincae.training.runs import states
from lincae.vae.config import VAE_PRESETS, VAE_VARIANTS, VaeLossConfig, VaeTrainingConfig
from lincae.vae.discriminator import BANDS, MultiBandDiscriminator
from lincae.vae.model import kl_divergence, reparameterised
from lincae.vae.objective import ReconstructionLoss, VaeObjective

SMALL = {"loss.discriminator_fft_sizes": (64, 128), "loss.discriminator_channels": 4}
ADVERSARIAL = {"loss.adversarial": 0.5, "loss.feature_matching": 1.0, **SMALL}


def built(variant: str = "lin-vae", **changes) -> VaeObjective:
    torch.manual_seed(0)
    return VaeObjective.build(recipe("test", variant, **changes), "toy")


def run(config, data, folder, **options):
    return train(objective_of(config), data, folder, device="cpu", progress=False, **options)


def rows(path: Path) -> list[dict[str, float]]:
    return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(path.open())]


# ---------------------------------------------------------------- reconstruction


def test_a_user_without_a_home_can_train(tmp_path):
    """numba, which librosa compiles with, wants to write what it compiled into the home folder."""
    code = """
from lincae.vae.config import VaeLossConfig
from lincae.vae.objective import ReconstructionLoss
print(ReconstructionLoss(VaeLossConfig(), 16000).training)
"""
    environment = {**os.environ, "HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none"}
    environment["NUMBA_CACHE_LOCATOR_CLASSES"] = "UserProvidedCacheLocator,UserWideCacheLocator"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "True\n", done.stderr


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

    impulse = torch.zeros(1, 4000)
    impulse[0, 2000] = 1e-3  # every bin of a frame has this magnitude at most
    floored = ReconstructionLoss(replace(config, floor=1e-2), 16000)
    assert floored(impulse, torch.zeros(1, 4000))["stft"] == 0


def test_equal_sounds_lose_nothing_and_silence_is_finite():
    loss = ReconstructionLoss(VaeLossConfig(), 16000)
    audio = noise(2, 8000)
    assert all(term == 0 for term in loss(audio, audio).values())
    silence = torch.zeros(2, 8000)
    assert all(torch.isfinite(term) for term in loss(audio, silence).values())
    silence.requires_grad_()
    sum(loss(silence, audio).values()).backward()
    assert torch.isfinite(silence.grad).all()


# ---------------------------------------------------------------- the step


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
    own = built(**ADVERSARIAL)
    torch.nn.init.normal_(own.model.network.encoder.log_variance.weight, std=0.02)  # zero at first
    batch = own.prepare(noise(4, own.config.crop_samples), 0, generator(0))
    own(batch, 0, generator(1))["loss"].backward()
    idle = [name for name, p in own.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []
    assert all(torch.isfinite(p.grad).all() for p in own.parameters())


@pytest.mark.parametrize("changes", [{"variant": "lin-cae"}, {"variant": "vae", **ADVERSARIAL}])
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


# ---------------------------------------------------------------- discriminator


def test_discriminator_sees_every_band_at_every_resolution():
    discriminator = MultiBandDiscriminator((64, 128), 4)
    maps = discriminator(noise(3, 2000))
    assert len(maps) == 2 * (len(BANDS) - 1)
    for index, band in enumerate(maps):
        size = (64, 128)[index // 5]
        edges = [round(share * (size // 2 + 1)) for share in BANDS]
        frames = 1 + 2000 // (size // 4)
        assert band[0].shape == (3, 4, frames, edges[index % 5 + 1] - edges[index % 5])
        assert band[-1].shape[:3] == (3, 1, frames)
        assert len(band) == 6


def test_adversarial_terms_by_hand(monkeypatch):
    """With maps that are known: least squares of Mao et al., L1 of features, means over both."""
    discriminator = MultiBandDiscriminator((64,), 1)
    monkeypatch.setattr(
        discriminator,
        "forward",
        lambda audio: [[2 * audio, audio], [4 * audio, audio + 1]],  # features, scores
    )
    audio, target = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
    terms = discriminator.terms(audio, target)
    assert terms["adversarial"].item() == pytest.approx((0.25 + 0.25) / 2)
    assert terms["feature_matching"].item() == pytest.approx((1.0 + 2.0) / 2)
    # first: mean(0.5^2) + mean(0, 1) = 0.25 + 0.5; second: mean(1.5^2) + mean(1, 0) = 2.25 + 0.5
    assert terms["discriminator"].item() == pytest.approx((0.75 + 2.75) / 2)


def test_each_side_has_its_own_gradient():
    discriminator, audio = MultiBandDiscriminator((64,), 4), noise(2, 1000).requires_grad_()
    terms, weights = discriminator.terms(audio, noise(2, 1000, seed=1)), list(discriminator.parameters())
    for term in (terms["adversarial"], terms["feature_matching"]):
        of_weights = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        assert not any(gradient is not None for gradient in of_weights)
        (gradient,) = torch.autograd.grad(term, [audio], retain_graph=True)
        assert gradient.abs().sum() > 0
    (nothing,) = torch.autograd.grad(terms["discriminator"], [audio], retain_graph=True, allow_unused=True)
    assert nothing is None
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(terms["discriminator"], weights))
    same = discriminator.terms(audio, audio.detach())
    assert same["feature_matching"] == 0


# ---------------------------------------------------------------- the common trainer


@pytest.fixture(scope="module")
def bank():
    return StemBank.from_synth(6, 4.0, 16000, split="train")


@pytest.mark.slow
@pytest.mark.parametrize("variant", VAE_VARIANTS)
def test_training_lowers_the_held_out_loss(variant, bank, tmp_path):
    config = recipe("test", variant)
    held_out = StemBank.from_synth(4, 4.0, 16000, split="test").crops(range(16), config.crop_samples, 0)
    torch.manual_seed(config.seed)
    own = VaeObjective.build(config, "before")
    own.begin("before")
    before = own.validate(held_out)
    model = run(config, bank, tmp_path, validation=held_out)
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


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    stored = torch.load(states(folder)[0], weights_only=True)
    parts = {"model", "ema", "discriminator"} & set(stored)
    tensors = {f"{part}.{key}": value for part in parts for key, value in stored[part].items()}
    for part in {"optimizer", "muon"} & set(stored):
        for index, values in stored[part]["state"].items():
            tensors |= {f"{part}.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, ADVERSARIAL, {"optimiser": "radam"}], ids=["plain", "gan", "radam"])
def test_resume_is_exact(changes, tmp_path):
    config = recipe("test", "lin-vae", steps=8, log_every=2, **changes)
    whole = run(config, Noise(), tmp_path / "whole")
    run(config, Noise(), tmp_path / "parts", stop_at=3)
    parts = run(config, Noise(), tmp_path / "parts")
    expected, got = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert whole.config == parts.config
    losses = [[r["loss"] for r in rows(tmp_path / folder / "log.csv")] for folder in ("whole", "parts")]
    assert losses[0] == losses[1]

    # A discriminator trains, and does not ship.
    discriminator = objective_of(config).discriminator
    first = {} if discriminator is None else discriminator.state_dict()
    assert bool(first) == ("loss.adversarial" in changes)
    assert all(not torch.equal(expected[f"discriminator.{key}"], value) for key, value in first.items())
    assert not any("discriminator" in key for key in whole.state_dict())


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: recipe("small", "vae"), "'small'; choose from full, desk, test"),
        (lambda: recipe("full", "lin-cae"), "'full'; choose from paper, official, small"),
        (lambda: recipe("desk", "lin_vae"), "'lin_vae'; choose from .*lin-vae, vae"),
        (lambda: recipe("test", "vae", **{"loss.l1": 1}), "VaeLossConfig has no 'l1'"),
        (lambda: MultiBandDiscriminator((32,)), "32"),
        (lambda: VaeLossConfig(kl=-1), "kl=-1"),
        (lambda: VaeLossConfig(stft=0, mel=0, waveform=0), "reconstructed"),
        (lambda: VaeLossConfig(fft_sizes=()), r"fft_sizes=\(\)"),
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
