"""The contribution on toy encoders: what each variant conditions on, and how gains and mixtures are drawn."""

from dataclasses import replace

import pytest
import torch

from lincae.linearity import (
    LIN_CAE,
    VARIANTS,
    AugmentedBatch,
    LinearityConfig,
    augment,
    cap_gains,
    gain_range,
    implicit_conditioning,
    mix,
    premix,
    sample_gains,
    sample_mixture_weights,
    scale,
)

B, T = 5, 12
RANDOM = replace(LIN_CAE, mixture_weights="random")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def audio(n: int = B, peak: float = 0.9) -> torch.Tensor:
    x = torch.rand(n, T, generator=generator(7)) * 2 - 1
    return peak * x / x.abs().amax(-1, keepdim=True)


class Linear:
    """x -> M x as `(n, 3, 2)`; counts what it sees."""

    def __init__(self):
        self.matrix = torch.randn(T, 6, generator=generator(1))
        self.seen = 0

    def __call__(self, x):
        self.seen += len(x)
        return (x @ self.matrix).unflatten(-1, (3, 2))


class Curved(Linear):
    """Neither homogeneous nor additive."""

    def __call__(self, x):
        return torch.tanh(super().__call__(x)) + 0.3


@pytest.mark.parametrize("encoder", [Linear, Curved])
@pytest.mark.parametrize("variant", [*VARIANTS, "no-homogeneity as released", "m2l as released"])
def test_conditioning_is_the_formula(variant, encoder):
    name, _, released = variant.partition(" as ")
    config = replace(VARIANTS[name], mixture_weights="random", plain_gains=not released)
    batch = augment(audio(), 0.0, config, generator(3))
    encode = encoder()
    z = implicit_conditioning(encode, batch, config)
    seen = encode.seen

    x, w, a = batch.audio, batch.weights.tolist(), batch.gains.tolist()
    expected = []
    for v in range(2 * B):
        i, j = v % B, (v - 1) % B  # a mixture's parts
        one = lambda items: encode(items[None])[0]  # noqa: E731
        if v < B:
            latent = a[v] * one(x[v]) if config.homogeneity else one(a[v] * x[v])
        elif config.homogeneity and config.additivity:
            latent = a[v] * (w[i] * one(x[i]) + (1 - w[i]) * one(x[j]))
        elif config.homogeneity:
            latent = a[v] * one(w[i] * x[i] + (1 - w[i]) * x[j])
        elif config.additivity:
            latent = w[i] * one(a[v] * x[i]) + (1 - w[i]) * one(a[v] * x[j])
        else:
            latent = one(a[v] * (w[i] * x[i] + (1 - w[i]) * x[j]))
        expected.append(latent)
    torch.testing.assert_close(z, torch.stack(expected))
    originals_alone = config.additivity and (config.homogeneity or released)
    three_times = config.additivity and not originals_alone
    assert seen == (B if originals_alone else 3 * B if three_times else 2 * B)


def test_gradients_flow_into_both_parts():
    config = replace(LIN_CAE, gain_probability=0.0)
    batch = augment(audio(), 0.0, config, generator(3))
    x = batch.audio[:B].clone().requires_grad_()
    batch = AugmentedBatch(torch.cat((x, batch.audio[B:])), batch.weights, batch.gains)
    implicit_conditioning(Curved(), batch, config)[B + 2].sum().backward()  # the mixture of items 2 and 1
    assert [bool(g.any()) for g in x.grad] == [False, True, True, False, False]


@pytest.mark.parametrize(("preset", "progress"), [(LIN_CAE, 0.0), (RANDOM, 0.5)])
def test_every_variant_sees_the_same_waveforms(preset, progress):
    """At a common schedule; lin-cae-2 differs from lin-cae by its schedule alone."""
    batches = {}
    for name, variant in VARIANTS.items():
        config = replace(preset, homogeneity=variant.homogeneity, additivity=variant.additivity)
        batches[name] = augment(audio(), progress, config, generator(5))
    reference = batches["lin-cae"]
    for batch in batches.values():
        assert torch.equal(batch.audio, reference.audio)
        assert torch.equal(batch.weights, reference.weights)
        assert torch.equal(batch.gains, reference.gains)
        assert torch.equal(batch.target(), reference.target())
    assert replace(VARIANTS["lin-cae-2"], anneal=True) == VARIANTS["lin-cae"]
    before = augment(audio(), 0.1, VARIANTS["lin-cae-2"], generator(5))
    assert torch.equal(before.gains, augment(audio(), 0.1, VARIANTS["lin-cae"], generator(5)).gains)


@pytest.mark.parametrize("name", ["no-homogeneity", "m2l"])
def test_released_code_computes_gains_and_does_not_use_them(name):
    config = replace(VARIANTS[name], plain_gains=False)
    batch = augment(2 * audio(), 0.0, config, generator(5))
    assert torch.equal(batch.gains, torch.ones(2 * B))
    assert torch.equal(batch.target(), batch.audio)


def test_batch_holds_originals_then_mixtures_then_scales():
    x = audio()
    batch = augment(x, 0.0, RANDOM, generator(2))
    assert torch.equal(batch.audio[:B], x)
    for i in range(B):
        w = batch.weights[i]
        torch.testing.assert_close(batch.audio[B + i], w * x[i] + (1 - w) * x[i - 1])
    torch.testing.assert_close(batch.target(), batch.gains[:, None] * batch.audio)
    assert len(set(batch.gains.tolist())) > 2


def test_equal_seeds_equal_batches_other_seeds_others_in_the_dtype_of_the_audio():
    x = audio().double()
    first, again, other = (augment(x, 0.3, RANDOM, generator(seed)) for seed in (1, 1, 2))
    for name in ("gains", "weights"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
        assert getattr(first, name).dtype == torch.float64


def test_mixture_weights():
    assert torch.equal(sample_mixture_weights(3, "equal", generator()), torch.full((3,), 0.5))
    w = sample_mixture_weights(10_000, "random", generator())
    assert 0.5 <= w.min() < 0.501
    assert 0.999 < w.max() <= 1
    assert w.mean().item() == pytest.approx(0.75, abs=0.006)  # four standard errors


def test_input_gains_lower_originals_before_they_are_mixed():
    config = replace(LIN_CAE, input_gain_min=0.1)
    batch = augment(audio(50), 0.0, config, generator(3))
    gains = batch.audio[:50].abs().amax(-1) / 0.9
    assert 0.1 <= gains.min() < 0.15
    assert 0.8 < gains.max() <= 1
    assert gains.log10().mean() == pytest.approx(-0.5, abs=0.15)
    assert torch.equal(batch.audio[50:], mix(batch.audio[:50], batch.weights))
    plain = augment(audio(50), 0.0, LIN_CAE, generator(3))
    assert torch.allclose(batch.audio[:50], gains[:, None] * plain.audio[:50], atol=1e-6)


@pytest.mark.parametrize("weights", ["equal", "random"])
def test_subtraction_leaves_the_other_part_with_the_latent_of_a_difference(weights):
    config = replace(LIN_CAE, subtraction_probability=0.5, mixture_weights=weights)
    x = audio(50)
    batch, plain = (
        augment(x, 0.0, c, generator(3)) for c in (config, replace(LIN_CAE, mixture_weights=weights))
    )
    assert torch.equal(batch.gains, cap_gains(batch.gains, batch.audio, 1.0))
    assert torch.equal(batch.weights, plain.weights)
    assert 15 < batch.subtracted.sum() < 35
    encode = Curved()
    z = implicit_conditioning(encode, batch, config)
    assert encode.seen == 100
    for i in range(50):
        w, gain = batch.weights[i], batch.gains[50 + i]
        mixture = w * x[i] + (1 - w) * x[i - 1]
        if batch.subtracted[i]:
            expected_audio = (1 - w) * x[i - 1]
            latent = encode(mixture[None])[0] - w * encode(x[i][None])[0]
        else:
            expected_audio = mixture
            latent = w * encode(x[i][None])[0] + (1 - w) * encode(x[i - 1][None])[0]
        torch.testing.assert_close(batch.audio[50 + i], expected_audio)
        torch.testing.assert_close(z[50 + i], gain * latent)
    linear = Linear()
    torch.testing.assert_close(implicit_conditioning(linear, batch, config), linear(batch.target()))


def test_premix_averages_the_chosen_share():
    n = 4000
    x = torch.randn(n, 3, generator=generator(1))
    mixed = premix(x, 0.5, generator(2))
    changed = (mixed != x).any(-1)
    assert changed.float().mean().item() == pytest.approx(0.5, abs=0.035)
    partner = 2 * mixed[changed] - x[changed]  # m = (x + p) / 2, and p is another original
    assert torch.cdist(partner, x, compute_mode="donot_use_mm_for_euclid_dist").amin(-1).max() < 1e-3
    assert torch.equal(premix(x, 0.0, generator(2)), x)
    batch = augment(audio(), 0.0, replace(LIN_CAE, premix_probability=1.0), generator(2))
    assert not torch.equal(batch.audio[:B], audio())


def test_gains_are_uniform_with_their_probability_else_one():
    n = 40_000
    gains = sample_gains(n, 0.0, 3.0, replace(LIN_CAE, zero_below=0.0), generator())
    one = gains == 1
    assert one.float().mean().item() == pytest.approx(0.2, abs=0.008)
    drawn = gains[~one]
    assert 0 <= drawn.min() < 0.001
    assert 2.999 < drawn.max() < 3
    histogram = torch.histc(drawn, 10, 0, 3) / len(drawn)
    torch.testing.assert_close(histogram, torch.full((10,), 0.1), atol=0.007, rtol=0)


def test_small_gains_are_exact_zeros():
    """0.8 * 0.05 / 3 = 1.3 % of all, as spec and paper have it."""
    gains = sample_gains(100_000, 0.0, 3.0, LIN_CAE, generator())
    assert (gains == 0).float().mean().item() == pytest.approx(0.8 * 0.05 / 3, abs=0.0015)
    assert gains[gains > 0].min() >= 0.05
    signed = sample_gains(100_000, -1.0, 1.0, LIN_CAE, generator())
    assert signed[signed != 0].abs().min() >= 0.05
    assert signed.min() < -0.99


def test_gains_are_capped_at_the_peak_and_keep_their_sign():
    x = torch.tensor([[0.5, -0.2], [0.1, 0.4], [-2.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
    capped = cap_gains(torch.tensor([3.0, 2.0, 1.0, -3.0, 2.0]), x, 1.0)
    torch.testing.assert_close(capped, torch.tensor([2.0, 2.0, 0.5, -2.0, 2.0]), rtol=0, atol=1e-5)
    assert scale(x, capped).abs().max() <= 1
    assert cap_gains(torch.tensor([9.0]), x[:1], 2.0).item() == pytest.approx(4.0, abs=1e-5)
    for seed in range(20):
        assert augment(audio(peak=1.5), 0.0, LIN_CAE, generator(seed)).target().abs().max() <= 1


@pytest.mark.parametrize(
    ("step", "low", "high"),
    [(0, 0, 3), (160_000, 0, 3), (300_000, 0.146, 2.707), (440_000, 0.5, 2), (720_000, 1, 1)],
)
def test_gain_range_anchors(step, low, high):
    assert gain_range(step / 800_000, LIN_CAE) == pytest.approx((low, high), abs=6e-4)
    assert gain_range(step / 800_000, VARIANTS["lin-cae-2"]) == (0, 3)
    signed = replace(LIN_CAE, gain_min=-2.0, gain_max=2.0, anneal_from=0.0, anneal_to=1.0)
    assert gain_range(0.5, signed) == pytest.approx((-0.5, 1.5))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"gain_min": 2.0, "gain_max": 1.0}, "gain_min 2.0 is above gain_max 1.0"),
        ({"gain_probability": 1.5}, "gain_probability .* 1.5"),
        ({"subtraction_probability": 0.5, "additivity": False}, "subtraction_probability .* additivity"),
        ({"input_gain_min": 0.0}, "input_gain_min .* 0.0"),
        ({"anneal_from": 0.9, "anneal_to": 0.9}, "anneal_from < anneal_to"),
        ({"peak": 0.0}, "peak > 0"),
        ({"zero_below": -1.0}, "zero_below >= 0"),
        ({"mixture_weights": "even"}, "'equal' or 'random', got 'even'"),
    ],
)
def test_bad_configuration_and_audio(changes, match):
    with pytest.raises(ValueError, match=match):
        LinearityConfig(**changes)
    for bad in (torch.zeros(T), torch.zeros(1, T), torch.ones(2, T, dtype=torch.int16)):
        with pytest.raises(ValueError, match=rf"floating-point audio .* got \({bad.shape[0]},.*{bad.dtype}"):
            augment(bad, 0.0, LIN_CAE, generator())
