"""Parity with the packages `linear-cae` 0.1.4 and `music2latent` 0.1.8, on weights without zeros.

Network features are compared to 1e-5 absolute; spectrograms (up to 20 in magnitude) and waveforms (far below
1 from random networks) to a share of their greatest magnitude.
"""

from pathlib import Path

import pytest
import torch
import yaml
from official import arguments, decode, max_error, pair, randn, relative_error, training_step

from lincae.autoencoder import AutoencoderConfig
from lincae.consistency import precondition
from lincae.interop.models import load
from lincae.interop.official import key_map
from lincae.interop.recipes import recipe
from lincae.linearity import VARIANTS, augment
from lincae.network import BOTH, FREQUENCY, NetworkConfig
from lincae.training.objective import Objective
from lincae.transform import TransformConfig

pytestmark = pytest.mark.slow

ODD_1 = AutoencoderConfig(
    sample_rate=16000,
    transform=TransformConfig(hop=128),
    network=NetworkConfig(
        base_channels=16,
        multipliers=(1, 2, 2, 3),
        attention=(False, True, False, True),
        encoder_blocks=(2, 1, 1, 2),
        unet_blocks=(1, 2, 1, 3),
        downsampling=(BOTH, FREQUENCY, BOTH),
        bottleneck_channels=64,
        bottleneck_blocks=2,
        latent_channels=16,
        noise_channels=32,
    ),
)
ODD_2 = AutoencoderConfig(
    transform=TransformConfig(hop=64, alpha=0.5, beta=1.2),
    network=NetworkConfig(
        base_channels=24,
        multipliers=(1, 2, 4),
        attention=(True, True, False),
        encoder_blocks=(2, 2, 1),
        unet_blocks=(1, 1, 2),
        downsampling=(BOTH, BOTH),
        bottleneck_channels=40,
        bottleneck_blocks=1,
        latent_channels=12,
        noise_channels=48,
    ),
)

SIZES = {"paper": (AutoencoderConfig(), 8, 0.02), "odd-1": (ODD_1, 24, 0.05), "odd-2": (ODD_2, 20, 0.05)}


@pytest.fixture(scope="module")
def models(request):
    """Our and the official autoencoder of one size, and the spectrogram frames to try it on."""
    config, n_frames, std = SIZES[request.param]
    return (*pair(config, std), n_frames)


every_size = pytest.mark.parametrize("models", SIZES, indirect=True)


@every_size
def test_parameters(models):
    ours, official, _ = models
    theirs, keys = official.generator.state_dict(), key_map(ours.config.network)
    assert set(keys) == set(ours.network.state_dict())
    assert set(keys.values()) == set(theirs)
    assert len(set(keys.values())) == len(keys)
    for key, value in ours.network.state_dict().items():
        assert torch.equal(value, theirs[keys[key]]), key
    if ours.config == AutoencoderConfig():
        assert len(keys) == 583
        assert sum(p.numel() for p in ours.network.parameters()) == 58_185_026


@every_size
@torch.no_grad()
def test_network(models):
    ours, official, n_frames = models
    config, unet = ours.config, official.generator
    spectrogram = randn(4, 2, config.transform.n_bins, n_frames, seed=1)
    assert max_error(ours.network.encoder(spectrogram), unet.encoder(spectrogram)) < 1e-5

    z = 0.5 * randn(4, config.network.latent_channels, n_frames // config.network.time_factor, seed=2)
    pyramid = unet.decoder(z)
    for mine, theirs in zip(ours.network.pyramid(z), pyramid, strict=True):
        assert max_error(mine, theirs) < 1e-5

    sigma = torch.tensor([0.002, 0.1, 3.0, 80.0])  # one level for each item
    x = spectrogram + sigma[:, None, None, None] * randn(*spectrogram.shape, seed=3)
    f = precondition(ours.network.denoiser, config.noise)
    assert (
        max_error(f(x, sigma, ours.network.pyramid(z)), unet.forward_generator(z, x, sigma, pyramid)) < 1e-5
    )


@every_size
@torch.no_grad()
def test_transform(models):
    ours, official, n_frames = models
    audio = 0.1 * randn(3, ours.transform.n_samples(n_frames) + 7, seed=4)
    audio[1] *= 1e-3
    audio[2] *= 10
    spectrogram = official.frontend.to_representation(audio)
    for mine, theirs in zip(ours.transform(audio), spectrogram, strict=True):
        assert max_error(mine, theirs) < 1e-6 * max(1, theirs.abs().max())
    for frames in (spectrogram, randn(*spectrogram.shape, seed=5)):  # the second is no signal's spectrogram
        theirs = official.frontend.to_waveform(frames)
        assert max_error(ours.transform.inverse(frames), theirs) < 1e-6 * max(1, theirs.abs().max())


@pytest.mark.parametrize(
    ("models", "steps"),
    [("paper", 1), ("paper", 2), *((size, k) for size in ("odd-1", "odd-2") for k in (1, 2, 3, 4))],
    indirect=["models"],
)
def test_decode(models, steps):
    ours, official, n_frames = models
    z = 0.5 * randn(
        1, ours.config.network.latent_channels, n_frames // ours.config.network.time_factor, seed=6
    )
    noises = [randn(1, 2, ours.config.transform.n_bins, n_frames, seed=10 + k) for k in range(steps)]
    theirs = decode(official, z, noises)
    with torch.no_grad():
        mine = ours.transform.inverse(ours.denoise(z, noises, steps))
    assert relative_error(mine, theirs) < 1e-5


@every_size
@torch.no_grad()
def test_checkpoint_of_the_official_class(models, tmp_path: Path, monkeypatch):
    """Its state dict and arguments, loaded here, give the latents and audio that it gives itself."""
    ours, official, n_frames = models
    torch.save(official.state_dict(), tmp_path / "autoencoder_inference_model_last.pth")
    for kind, values in arguments(ours.config).items():
        (tmp_path / f"{kind}_kwargs_last.yaml").write_text(yaml.safe_dump(values))
    model = load(tmp_path, device="cpu", latent_scale=33.0)
    assert model.config.network == ours.config.network
    assert model.config.transform == ours.config.transform

    monkeypatch.setattr(official, "scale_factor", 33.0)
    # Frames that do not fill the last latent frame, and samples that do not fill the last frame.
    n_samples = model.transform.n_samples(n_frames - 1) + 5
    audio = 0.2 * randn(2, n_samples, seed=7)
    theirs = official.encode(audio)
    z = model.encode(audio)
    assert relative_error(z, theirs) < 1e-5

    steps = 1 if ours.config == AutoencoderConfig() else 3
    decoded = model.decode(z, n_samples, seed=3, steps=steps)
    noises = [model.noise(0, z.shape[-1], 3, k) for k in range(steps)]
    assert relative_error(decoded, decode(official, z, noises, n_samples)) < 1e-5


@pytest.mark.parametrize("models", ["paper"], indirect=True)
@torch.no_grad()
def test_music2latent(models, tmp_path: Path):
    """The file of Music2Latent (bare keys, beside other things), against its own modules."""
    pytest.importorskip("music2latent", reason="needs pip install --no-deps music2latent==0.1.8")
    from music2latent.audio import to_representation, to_waveform
    from music2latent.hparams_inference import sigma_rescale
    from music2latent.models import UNet

    _, official, n_frames = models
    unet = UNet().eval()
    unet.load_state_dict(official.generator.state_dict())
    content = {"gen_state_dict": unet.state_dict(), "it": 800_000, "loss": torch.tensor(0.1).numpy()[()]}
    torch.save(content, tmp_path / "music2latent.pt")
    model = load(tmp_path / "music2latent.pt", device="cpu")
    assert model.sample_rate == 44100

    audio = 0.1 * randn(1, model.transform.n_samples(n_frames), seed=8)
    spectrogram = to_representation(audio)
    assert max_error(model.transform(audio), spectrogram) < 1e-6 * max(1, spectrogram.abs().max())
    theirs = unet.encoder(spectrogram) / sigma_rescale
    z = model.encode(audio)
    assert relative_error(z, theirs) < 1e-5
    noise = model.noise(0, z.shape[-1], 1, 0)
    frames = unet(z * sigma_rescale, 80 * noise, 80.0)
    assert max_error(model.denoise(z * sigma_rescale, [noise]), frames) < 1e-5
    assert relative_error(model.decode(z, seed=1), to_waveform(frames)) < 1e-5  # below 1: not clamped there


# The paper's five levels at a width where float64 is cheap.
NARROW = AutoencoderConfig(
    transform=TransformConfig(hop=32),
    network=NetworkConfig(
        base_channels=8, bottleneck_channels=32, bottleneck_blocks=2, latent_channels=8, noise_channels=16
    ),
)
RELEASED = {  # what the released trainer does in each variant
    "lin-cae": {"scales_latents": True, "mixes_latents": True},
    "lin-cae-2": {"scales_latents": True, "mixes_latents": True, "anneals": False},
    "no-additivity": {"scales_latents": True, "mixes_latents": False},
    "no-homogeneity": {"scales_latents": False, "mixes_latents": True},
    "m2l": {"scales_latents": False, "mixes_latents": False, "premixes": True},
}


def assert_same_step(config, iteration: int, seed: int, **released) -> float:
    """Loss and every gradient of one training step agree to 1e-10 in float64; returns the loss."""
    ours, official = (model.double() for model in pair(config.autoencoder, std=0.1))
    audio = 0.1 * randn(3, config.crop_samples, seed=seed).double()
    audio[1] *= 10  # above full scale: its gain is capped even where it is 1

    generator = torch.Generator().manual_seed(seed)
    batch = augment(audio, iteration / config.steps, config.linearity, generator)
    loss = Objective(ours.train(), config)(batch, iteration, generator)["loss"]
    loss.backward()
    generator = torch.Generator().manual_seed(seed)
    theirs = training_step(official, audio, iteration, config.steps, generator, **released)
    theirs.backward()

    assert loss.dtype == torch.float64
    assert abs(loss.item() - theirs.item()) < 1e-10
    keys = key_map(config.autoencoder.network)
    gradients = {key: parameter.grad for key, parameter in official.generator.named_parameters()}
    for key, parameter in ours.network.named_parameters():
        expected = gradients.pop(keys[key])
        if expected is None:  # the projections that nothing uses
            assert parameter.grad is None
            assert "pyramid.bottleneck" in key
            assert "noise_shift" in key
        else:
            assert expected.abs().max() > 1e-7, f"{key} has too small a gradient to tell anything"
            assert max_error(parameter.grad, expected) < 1e-10, key
    assert not gradients
    return loss.item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_step_of_the_released_code(variant):
    """Random mixture weights; gains are not used without homogeneity; m2l mixes twice."""
    config = recipe("official", variant, autoencoder=NARROW, crop_frames=16)
    assert_same_step(config, 440_000, seed=1, **RELEASED[variant])


@pytest.mark.parametrize("variant", ["lin-cae", "lin-cae-2", "no-additivity", "m2l"])
def test_training_step_of_the_paper(variant):
    """Equal mixture weights; m2l has gains as plain augmentation, and no first mixing."""
    paper = {"random_weights": False, "scales_audio": variant == "m2l", "premixes": False}
    config = recipe("paper", variant, autoencoder=ODD_2, crop_frames=12)
    assert_same_step(config, 300_000, seed=2, **RELEASED[variant] | paper)
