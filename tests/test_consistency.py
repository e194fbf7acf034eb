"""Noise levels, preconditioning, loss and sampler at the specification's numbers, without any network."""

import math
from dataclasses import replace

import pytest
import torch
from fakes import randn

from lincae.consistency import (
    ConsistencyConfig,
    NoiseConfig,
    coefficients,
    consistency_loss,
    precondition,
    pseudo_huber,
    sample,
    sample_t2,
    sigma_of,
    step_size,
)

NOISE, CONFIG = NoiseConfig(), ConsistencyConfig()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_anchors_of_levels_and_coefficients():
    t = torch.tensor([0, 0.1, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
    anchors = [0.002, 0.016721, 0.169753, 2.515219, 17.527832, 80]
    assert sigma_of(t, NOISE).tolist() == pytest.approx(anchors, rel=3e-5)
    c_skip, c_out, c_in = coefficients(torch.tensor([0.002, 80.0], dtype=torch.float64), NOISE)
    assert c_skip.tolist() == pytest.approx([1, 3.9063e-5], rel=1e-4)
    assert c_out.tolist() == pytest.approx([0, 0.499978], rel=1e-4)
    assert c_in.tolist() == pytest.approx([1.99998, 0.0124998], rel=1e-5)


def test_f_is_the_identity_at_sigma_min():
    x = 3 * randn(4, 2, 5, 6)
    for denoiser in (
        lambda x, sigma, condition: torch.full_like(x, 1e3),
        lambda x, sigma, condition: x.sin() * condition,
        lambda x, sigma, condition: x.new_ones(x.shape) / (sigma.reshape(-1, 1, 1, 1) + 1e-3),
    ):
        f = precondition(denoiser, NOISE)
        assert torch.equal(f(x, torch.full((4,), 0.002), 7.0), x)
        assert not torch.equal(f(x, torch.full((4,), 0.01), 7.0), x)


def test_precondition_is_equation_3_with_a_level_per_item():
    x, sigma = randn(2, 3, 4), torch.tensor([0.5, 20.0])
    seen = []

    def denoiser(x, sigma, condition):
        seen.append((x, sigma, condition))
        return 2 * x + condition

    out = precondition(denoiser, NOISE)(x, sigma, 0.25)
    assert seen[0][1] is sigma
    for i, s in enumerate(sigma.tolist()):
        scaled = x[i] / math.sqrt(s**2 + 0.25)
        torch.testing.assert_close(seen[0][0][i], scaled)
        skip = 0.25 / ((s - 0.002) ** 2 + 0.25)
        out_scale = 0.5 * (s - 0.002) / math.sqrt(s**2 + 0.25)
        torch.testing.assert_close(out[i], skip * x[i] + out_scale * (2 * scaled + 0.25))


def test_distribution_of_t():
    """As measured on the released code: a normal about -1.1 + 4/7, truncated (no bin width divided out)."""
    t = sample_t2(400_000, NOISE, CONFIG, generator()).double()
    assert t.min() >= 0
    assert t.max() < 1
    sigma = sigma_of(t, NOISE)
    assert sigma.log().mean().item() == pytest.approx(-0.554, abs=0.015)
    assert sigma.log().std().item() == pytest.approx(1.930, abs=0.01)
    assert sigma.median().item() == pytest.approx(0.58, abs=0.015)
    assert t.mean().item() == pytest.approx(0.376, abs=0.002)
    assert (t < 0.1).double().mean().item() == pytest.approx(0.036, abs=0.002)
    assert (sigma > 20).double().mean().item() == pytest.approx(0.032, abs=0.002)


def test_t_is_jittered_within_its_cell_or_at_sigma_max():
    cell = sample_t2(50_000, NOISE, CONFIG, generator()).double() * 9999 % 1
    assert cell.mean().item() == pytest.approx(0.5, abs=0.01)
    assert cell.var().item() == pytest.approx(1 / 12, abs=0.003)
    t = sample_t2(20_000, NOISE, replace(CONFIG, sigma_max_share=0.25), generator())
    assert (t == 1).float().mean().item() == pytest.approx(0.25, abs=0.015)


def test_pseudo_huber_anchor():
    """c = 0.00054 sqrt(131072) = 0.195501 for an item of 2 x 1024 x 64."""
    a = torch.zeros(3, 2, 1024, 64, dtype=torch.float64)
    b = a.clone()
    b[1, 0, 0, 0] = 0.195501
    b[2] += 1
    c = 0.195501
    expected = [0, (math.sqrt(2) - 1) * c, math.sqrt(131072 + c**2) - c]
    assert pseudo_huber(a, b, 0.00054).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_pseudo_huber_at_small_distances():
    """In single precision sqrt(d^2 + c^2) - c would be zero here; its gradient at zero is."""
    a, b = torch.zeros(1, 131072, requires_grad=True), torch.zeros(1, 131072)
    pseudo_huber(a, b, 0.00054).backward()
    assert not a.grad.any()
    b[0, 0] = 1e-5
    assert pseudo_huber(a, b, 0.00054).item() == pytest.approx(1e-10 / (2 * 0.195501), rel=1e-3)


def recording(denoiser):
    """A consistency function that notes levels, and whether a graph is built."""
    calls = []

    def f(x, sigma, condition):
        calls.append((x.detach(), sigma.detach(), torch.is_grad_enabled()))
        return denoiser(x, sigma, condition)

    return f, calls


def test_loss_is_equation_4_by_hand():
    target = randn(3, 2, 4, 5, seed=1).double()
    slope = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    f, calls = recording(lambda x, sigma, condition: slope * x + condition)
    loss = consistency_loss(f, target, 0.1, 0.05, NOISE, CONFIG, generator(4))
    loss.backward()

    again = generator(4)
    t2 = sample_t2(3, NOISE, CONFIG, again).double()
    eps = torch.randn(target.shape, generator=again, dtype=torch.float64)
    sigma2, sigma1 = sigma_of(t2, NOISE), sigma_of((t2 - 0.05).clamp_min(0), NOISE)
    total, by_slope = 0.0, 0.0
    for i in range(3):
        x2, x1 = (target[i] + s[i] * eps[i] for s in (sigma2, sigma1))
        difference = 0.7 * (x2 - x1)
        c = 0.00054 * math.sqrt(40)
        root = math.sqrt((difference**2).sum() + c**2)
        weight = 1 / (sigma2[i] - sigma1[i]).item() / 3
        total += weight * (root - c)
        by_slope += weight * ((difference * x2).sum() / root).item()  # the teacher gives no gradient
    assert loss.item() == pytest.approx(total, rel=1e-9)
    assert slope.grad.item() == pytest.approx(by_slope, rel=1e-9)
    assert [graph for *_, graph in calls] == [False, True]
    torch.testing.assert_close(calls[0][1], sigma1)
    torch.testing.assert_close(calls[1][1], sigma2)


def test_full_step_is_regression_on_the_clean_signal_without_a_teacher():
    target = randn(4, 2, 3, 3)
    f, calls = recording(lambda x, sigma, condition: torch.zeros_like(x))
    config = replace(CONFIG, weight_exponent=0.0)
    loss = consistency_loss(f, target, None, 1.0, NOISE, config, generator(1))
    assert len(calls) == 1
    # The teacher's answer is its own input at sigma_min, the target with 0.002 of noise.
    expected = pseudo_huber(torch.zeros_like(target), target, config.huber_c).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_weight_exponent(exponent):
    target = randn(1, 2, 3, 3)
    f = precondition(lambda x, sigma, condition: x.tanh(), NOISE)
    plain, weighted = (
        consistency_loss(f, target, None, 0.1, NOISE, replace(CONFIG, weight_exponent=p), generator(1)).item()
        for p in (0.0, exponent)
    )
    t2 = sample_t2(1, NOISE, CONFIG, generator(1))
    gap = (sigma_of(t2, NOISE) - sigma_of((t2 - 0.1).clamp_min(0), NOISE)).item()
    assert weighted == pytest.approx(plain / gap**exponent, rel=1e-5)


def test_step_anchors():
    """0.1 ** (1 + k / K), and a curriculum."""
    assert [step_size(p, CONFIG) for p in (0, 0.5, 1)] == pytest.approx([0.1, 10**-1.5, 0.01])
    config = ConsistencyConfig(step_start=1.0, step_end=0.01, step_hold=0.5)
    assert [step_size(p, config) for p in (0, 0.5, 0.75, 1)] == pytest.approx([1, 1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("steps", "levels"),
    [(1, [80]), (2, [80, 2.51522]), (3, [80, 9.72320, 0.46998]), (4, [80, 17.52783, 2.51522, 0.16975])],
)
def test_sampler_levels(steps, levels):
    f, calls = recording(lambda x, sigma, condition: x)
    noises = iter([randn(2, 3, seed=k) for k in range(5)])
    sample(f, None, noises, steps, NOISE)
    assert len(list(noises)) == 5 - steps  # no more is drawn than it needs
    assert [sigma[0].item() for _, sigma, _ in calls] == pytest.approx(levels, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 4])
def test_perfect_denoiser_decodes_its_condition(steps):
    """f of the optimal denoiser of a point mass is that point at every level, in any number of steps."""

    def denoiser(x, sigma, condition):
        c_skip, c_out, c_in = (c[:, None] for c in coefficients(sigma, NOISE))
        return (condition - c_skip * x / c_in) / c_out

    point = 3 * randn(4, 6).double()
    noises = (randn(4, 6, seed=k).double() for k in range(steps))
    decoded = sample(precondition(denoiser, NOISE), point, noises, steps, NOISE)
    torch.testing.assert_close(decoded, point)


def test_sampler_by_hand():
    """f(x, sigma) = condition + x / (1 + sigma), two steps, at a sigma_min that matters in the re-noising."""
    f = lambda x, sigma, condition: condition + x / (1 + sigma[:, None])  # noqa: E731
    noise = NoiseConfig(sigma_min=1.0)
    first, second = randn(2, 3, seed=1).double(), randn(2, 3, seed=2).double()
    sigma = (0.5 + 0.5 * 80 ** (1 / 7)) ** 7
    x = 5.0 + 80 * first / 81
    x = 5.0 + (x + math.sqrt(sigma**2 - 1) * second) / (1 + sigma)
    torch.testing.assert_close(sample(f, 5.0, [first, second], 2, noise), x)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (NOISE, {"sigma_min": 0.0}, "sigma_min < sigma_max"),
        (NOISE, {"rho": 0.0}, "rho != 0"),
        (NOISE, {"sigma_data": -1.0}, "sigma_data > 0"),
        (CONFIG, {"step_end": 0.0}, "step_end <= step_start"),
        (CONFIG, {"step_hold": 1.0}, "step_hold < 1"),
        (CONFIG, {"sigma_max_share": -0.1}, "sigma_max_share <= 1"),
        (CONFIG, {"log_sigma_std": 0.0}, "log_sigma_std > 0"),
        (CONFIG, {"huber_c": 0.0}, "huber_c > 0"),
    ],
)
def test_configurations_refuse(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)
