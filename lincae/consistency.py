"""Consistency training and sampling (paper sections 2.2, 3.1 and 3.3) as functions over a denoiser.

A denoiser is any callable `F(c_in * x, sigma, condition)`; `precondition` turns it into the consistency
function `f(x, sigma, condition)` of equation 3. Noise levels are addressed by `t` in [0, 1], from sigma_min
(the clean signal) to sigma_max. `x` is any `(B, ...)` tensor; `sigma` and `t` are `(B,)`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lincae.interface import check_fields

Function = Callable[[Tensor, Tensor, Any], Tensor]
"""A denoiser F or a consistency function f: `(x, sigma, condition)` to a tensor like x."""
GRID = 9999  # levels of the grid that noise levels are drawn on (Music2Latent's discretisation)


@dataclass(frozen=True)
class NoiseConfig:
    """Noise levels and preconditioning (EDM, arXiv 2206.00364; values of Music2Latent and the paper).

    sigma**(1/rho) is linear in t; a negative rho puts most levels near sigma_min, where quiet high
    frequencies emerge from the noise.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5

    def __post_init__(self):
        check_fields(self)
        if not 0 < self.sigma_min < self.sigma_max or self.rho == 0 or self.sigma_data <= 0:
            raise ValueError(f"need 0 < sigma_min < sigma_max, rho != 0 and sigma_data > 0, got {self}")


@dataclass(frozen=True)
class ConsistencyConfig:
    """What the consistency loss compares and how it weighs it. The defaults are the paper's (section 3.3).

    `step_start`, `step_end`: Delta t at the first and the last training step, geometric in between; 0.1 and
    0.01 are the paper's Delta t_0 = 0.1, e_K = 2. `step_hold`: this share of the training stays at
    `step_start`. With step_start = 1 that is regression (the teacher is the clean signal), and what follows
    is Easy Consistency Tuning (arXiv 2406.14548).
    `log_sigma_mean`, `log_sigma_std`: levels on the grid have the normal weight of ln(sigma), whatever the
    grid's spacing, as in the released code.
    `sigma_max_share`: with this probability an item is drawn at exactly t_2 = 1, where decoding starts.
    `weight_exponent`: p in the loss weight 1 / (sigma_2 - sigma_1)**p; 1 is the paper's lambda, 0 is uniform.
    `huber_c`: c of the Pseudo-Huber loss; for an item of D numbers it is c sqrt(D), as in the released code.
    """

    step_start: float = 0.1
    step_end: float = 0.01
    step_hold: float = 0.0
    log_sigma_mean: float = -1.1
    log_sigma_std: float = 2.0
    sigma_max_share: float = 0.0
    weight_exponent: float = 1.0
    huber_c: float = 0.00054

    def __post_init__(self):
        check_fields(self)
        if not 0 < self.step_end <= self.step_start <= 1:
            raise ValueError(f"need 0 < step_end <= step_start <= 1, got {self.step_end}, {self.step_start}")
        if not 0 <= self.step_hold < 1 or not 0 <= self.sigma_max_share <= 1:
            raise ValueError(f"need 0 <= step_hold < 1 and 0 <= sigma_max_share <= 1, got {self}")
        if self.log_sigma_std <= 0 or self.huber_c <= 0:
            raise ValueError(f"need log_sigma_std > 0 and huber_c > 0, got {self}")


# ---------------------------------------------------------------- noise levels and equation 3


def sigma_of(t: Tensor, noise: NoiseConfig) -> Tensor:
    """Noise level at `t` in [0, 1] (Karras spacing for a positive rho)."""
    low = noise.sigma_min ** (1 / noise.rho)
    high = noise.sigma_max ** (1 / noise.rho)
    return (low + t * (high - low)) ** noise.rho


def coefficients(sigma: Tensor, noise: NoiseConfig) -> tuple[Tensor, Tensor, Tensor]:
    """`(c_skip, c_out, c_in)`, each `(B,)`. At sigma_min c_skip = 1 and c_out = 0: f(x, sigma_min) = x."""
    above = sigma - noise.sigma_min
    deviation = (sigma.square() + noise.sigma_data**2).sqrt()
    c_skip = noise.sigma_data**2 / (above.square() + noise.sigma_data**2)
    c_out = noise.sigma_data * above / deviation
    return c_skip, c_out, 1 / deviation


def precondition(denoiser: Function, noise: NoiseConfig) -> Function:
    """The consistency function of equation 3: f = c_skip x + c_out F(c_in x, sigma, condition)."""

    def f(x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        c_skip, c_out, c_in = coefficients(sigma, noise)
        answer = denoiser(per_item(c_in, x) * x, sigma, condition)
        return per_item(c_skip, x) * x + per_item(c_out, x) * answer

    return f


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """`values` `(B,)`, shaped to multiply the items of `like` `(B, ...)`."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


# ---------------------------------------------------------------- training


def step_size(progress: float, config: ConsistencyConfig) -> float:
    """Delta t at `progress` = step / steps of the training, in [0, 1]."""
    moved = max(0.0, progress - config.step_hold) / (1 - config.step_hold)
    return config.step_start * (config.step_end / config.step_start) ** moved


@cache
def level_weights(
    noise: NoiseConfig, log_sigma_mean: float, log_sigma_std: float, device: str | torch.device = "cpu"
) -> Tensor:
    """How likely each of the levels t = j / GRID is to be drawn, up to a factor: `(GRID,)`."""
    sigma = sigma_of(torch.arange(GRID, dtype=torch.float64) / GRID, noise)
    return torch.exp(-0.5 * ((sigma.log() - log_sigma_mean) / log_sigma_std) ** 2).float().to(device)


def sample_t2(n: int, noise: NoiseConfig, config: ConsistencyConfig, generator: torch.Generator) -> Tensor:
    """The student's noise levels `(n,)`: each is drawn from the grid, then moved within its cell."""
    device = generator.device
    weights = level_weights(noise, config.log_sigma_mean, config.log_sigma_std, device)
    level = torch.multinomial(weights, n, replacement=True, generator=generator)
    t2 = (level + torch.rand(n, generator=generator, device=device)) / GRID
    if config.sigma_max_share > 0:
        at_top = torch.rand(n, generator=generator, device=device) < config.sigma_max_share
        t2 = torch.where(at_top, 1.0, t2)
    return t2


def pseudo_huber(a: Tensor, b: Tensor, huber_c: float) -> Tensor:
    """`sqrt(|a - b|^2 + c^2 D) - c sqrt(D)` per item `(B,)`, the norm over all D numbers of an item."""
    squared = (a - b).flatten(1).square().sum(-1)
    c = huber_c * math.sqrt(a[0].numel())
    # The same number, squared / (sqrt(squared + c^2) + c), does not cancel at small distances.
    return squared / ((squared + c * c).sqrt() + c)


def consistency_loss(
    f: Function,
    target: Tensor,
    condition: Any,
    step: float,
    noise: NoiseConfig,
    config: ConsistencyConfig,
    generator: torch.Generator,
) -> Tensor:
    """Equation 4: the mean over items of lambda d(f(x + sigma_2 eps), stopgrad f(x + sigma_1 eps)).

    `target` `(B, ...)` is the clean signal, `condition` what the denoiser sees of the latent, `step` Delta t.
    Student and teacher share weights, noise and condition. No gradient flows through the teacher.
    """
    t2 = sample_t2(target.shape[0], noise, config, generator).to(target)
    t1 = (t2 - step).clamp_min(0)
    sigma2 = sigma_of(t2, noise)
    sigma1 = sigma_of(t1, noise)
    eps = torch.randn(target.shape, generator=generator, device=target.device, dtype=target.dtype)

    with torch.no_grad():
        x1 = target + per_item(sigma1, target) * eps
        # At sigma_min f is the identity, whatever the network: with Delta t = 1 there is no teacher to run.
        taught = x1 if step >= 1 else f(x1, sigma1, condition)
        # Autocast caches half-precision copies of the weights; copies made without a graph would cut the
        # student's weights off from their gradients (https://github.com/pytorch/pytorch/issues/112583).
        torch.clear_autocast_cache()

    x2 = target + per_item(sigma2, target) * eps
    student = f(x2, sigma2, condition)
    distance = pseudo_huber(student.to(eps.dtype), taught.to(eps.dtype), config.huber_c)
    return (distance / (sigma2 - sigma1) ** config.weight_exponent).mean()


# ---------------------------------------------------------------- decoding


def sample(f: Function, condition: Any, noises: Iterable[Tensor], steps: int, noise: NoiseConfig) -> Tensor:
    """Decode in `steps` >= 1 calls of `f`. One is the paper's decoding, more refine it (multistep sampling).

    `noises` yields a standard normal tensor for every step: the start, then what is added to the estimate
    before each refinement.
    """
    noises = iter(noises)
    eps = next(noises)
    x = noise.sigma_max * eps
    for k in range(steps):
        t = torch.full((eps.shape[0],), 1 - k / steps, device=eps.device, dtype=eps.dtype)
        sigma = sigma_of(t, noise)
        if k > 0:
            # An estimate holds the noise of sigma_min already.
            added = (sigma.square() - noise.sigma_min**2).sqrt()
            x = x + per_item(added, x) * next(noises)
        x = f(x, sigma, condition)
    return x
