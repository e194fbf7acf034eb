"""What an accelerator would do, counted on one that is not there (`pretended`): nothing waits for it, its own
generator draws, no number is in double precision, and launches and memory stay within committed bounds."""

import pytest
import torch
from pretended import DEVICE, SEED, Counted, Draw, training_step, window
from test_reencoder import OWNER

import lincae
from lincae.interop.recipes import objective_of, recipe
from lincae.reencoder import training as reencoder_config
from lincae.reencoder.linear import LinearConfig, LinearPair
from lincae.reencoder.linear_training import Arithmetic, LinearObjective, LinearTraining
from lincae.reencoder.module import ReEncoder
from lincae.reencoder.training import ReEncoderObjective


def of_recipe(preset, variant):
    def built():
        objective = objective_of(recipe(preset, variant))
        config = objective.config
        return objective, torch.empty(config.batch_size, config.crop_samples, device=DEVICE)

    return built


def reencoder(task, objective):
    def built():
        config = reencoder_config.recipe(task, "test", objective=objective)
        module = ReEncoder(config.module, OWNER)
        shape = (config.batch_size, config.module.latent_channels, 60)
        target = (shape[0], 2, *shape[1:]) if task == "stereo" else shape
        batch = torch.empty(shape, device=DEVICE), torch.empty(target, device=DEVICE)
        return ReEncoderObjective(module, config), batch

    return built


def linear_pair():
    config = LinearTraining(pair=LinearConfig(latent_channels=8))
    n = config.batch_size
    shapes = ((2 * n, 8, 64), (2 * n, 8, 64), (n,), (2 * n,))
    latents = [torch.empty(shape, device=DEVICE) for shape in shapes]
    batch = Arithmetic(*latents, torch.empty(n, dtype=torch.bool, device=DEVICE))
    return LinearObjective(LinearPair(config.pair, OWNER), config, None), batch


MASKS = ["index", "index"]  # a linear pair is not asked for silence
STEPS = {
    "lin-cae": (of_recipe("test", "lin-cae"), 1080, 38.0, []),
    "m2l": (of_recipe("test", "m2l"), 1070, 43.0, []),
    "sub": (of_recipe("test", "lin-cae-odd-sub"), 1110, 54.0, []),
    "vae": (of_recipe("test", "lin-vae"), 780, 10.0, []),
    "bypass": (of_recipe("test", "lin-bypass"), 1160, 35.0, []),
    "bandwidth": (reencoder("bandwidth", "l1+gan"), 1220, 2.6, []),
    "stereo": (reencoder("stereo", "l1"), 1250, 3.4, []),
    "linear pair": (linear_pair, 2700, 15.0, MASKS),
}
"""What is trained, and of a step in bf16 launches and MiB at most, and what waits for the device."""


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step(name):
    build, launches, peak_mib, waits = STEPS[name]
    counted = training_step(*build())
    assert counted.waits == waits
    assert name == "bypass" or torch.float64 not in counted.dtypes  # its levels are doubles where there are
    assert launches / 2 < counted.launches <= launches
    assert peak_mib / 2 < counted.peak / 2**20 <= peak_mib


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "gib", "gigabytes"), [("paper", 31.5, 1040), ("official", 13.0, 400)])
def test_a_step_of_full_size_fits_a_card(preset, gib, gigabytes):
    """Of 40 GB and of 24 GB."""
    counted = training_step(*of_recipe(preset, "lin-cae")())
    assert counted.peak <= gib * 2**30
    assert counted.moved <= gigabytes * 1e9


@pytest.mark.parametrize(
    ("preset", "precision", "encode", "decode"),
    [("paper", "fp32", 420, 1480), ("paper", "bf16", 430, 1500), ("test", "fp32", 420, 630)],
)
def test_windows(preset, precision, encode, decode):
    """A batch takes the launches of an item, but for some copies."""
    model = lincae.Autoencoder(recipe(preset, "lin-cae").autoencoder)
    model.precision = precision
    for which, most in (("encode", encode), ("decode", decode)):
        one, four = window(model, which), window(model, which, 4)
        assert one.launches <= most
        assert four.launches <= one.launches + 30
        asked = one.waits  # whether what is given is finite, and where not
        assert asked in (["_local_scalar_dense"], 2 * ["_local_scalar_dense"])
        assert not one.dtypes & {torch.float64, torch.complex128}


def test_the_pretended_device_counts_and_finds_what_it_should():
    draw = Draw()
    with Counted() as counted:
        x = torch.zeros(256, device=DEVICE)
        y = torch.randn(256, device=DEVICE, generator=draw.manual_seed(SEED) and draw)
        (x + y)[:1].item()
        x.to(torch.float64)
        torch.ones(3).to(DEVICE)
        with pytest.raises((AssertionError, RuntimeError), match="device"):
            x[:3] + torch.ones(3)
        for generator in (None, torch.Generator()):
            with pytest.raises(AssertionError, match="generator"):
                torch.randn(4, device=DEVICE, generator=generator)
    assert counted.waits == ["_local_scalar_dense", "(3,) from the processor's memory"]
    assert (counted.launches, counted.moved, counted.peak) == (5, 8204, 4096)
