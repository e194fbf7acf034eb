"""What each part of our training step saves against its plain form, and what did not pay.

    python benchmarks/training_parts.py  # writes training_parts.csv beside this file

Both forms take turns in one process, forward and backward where they have one, at the sizes of the 58 M
network (4 items of 64 frames, fp32); `ours` and `peer` are the median ms of `--repeats` turns, `low` and
`high` the least and greatest ratio. `kept` says whether the package works that way on this device: rows that
say no were tried and left out. Attention is computed twice on a CPU, to keep less: its ratio is the price in
time of the memory in training_step.csv, where whole steps are.
"""

import argparse
import copy
import csv
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_step import seconds

import lincae
from lincae.consistency import GRID, ConsistencyConfig, NoiseConfig, level_weights, sample_t2
from lincae.machine import generator, resolve_device
from lincae.network import (
    BOTH,
    FREQUENCY,
    FrequencyAttention,
    Neighbourhood,
    ResBlock,
    Upsample,
    norm_silu_conv,
)
from lincae.training.environment import keep_freed_memory
from lincae.training.objective import update_ema

COLUMNS = ("name", "device", "setting", "ours", "peer", "ratio", "unit", "low", "high", "kept")
ITEMS, FRAMES = 4, 64
Forms = tuple[Callable[[], object], Callable[[], object]]


def trained(form: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    """One forward and backward pass."""
    return lambda: form(*inputs).sum().backward()


def maps(channels: int, n_bins: int, n_frames: int = FRAMES) -> Tensor:
    return torch.randn(ITEMS, channels, n_bins, n_frames, requires_grad=True)


def last(x: Tensor) -> Tensor:
    """A copy of the map in the order of memory of training on a CPU."""
    return x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()


def norm_silu_convolution(channels: int, n_bins: int) -> Forms:
    block, x = ResBlock(nn.Conv2d, channels, channels, Neighbourhood(None)), maps(channels, n_bins)
    return (
        trained(lambda x: norm_silu_conv(block.norm1, block.conv1, x), last(x)),
        trained(lambda x: block.conv1(F.silu(block.norm1(x))), x),
    )


def enlargement(kind: str, c_in: int, c_out: int, n_bins: int, n_frames: int = FRAMES) -> Forms:
    layer, x = Upsample(c_in, c_out, kind), maps(c_in, n_bins, n_frames)
    return trained(layer, last(x)), trained(
        lambda x: layer.conv(F.interpolate(x, scale_factor=layer.factor, mode="nearest")), x
    )


def attention(channels: int, n_bins: int) -> Forms:
    ours, x = FrequencyAttention(channels, 4, Neighbourhood(None)), maps(channels, n_bins)
    plain = nn.MultiheadAttention(channels, 4, batch_first=True)

    def official(x: Tensor) -> Tensor:
        tokens = ours.norm(x).permute(0, 3, 2, 1).reshape(-1, n_bins, channels)
        mixed = plain(tokens, tokens, tokens)[0]
        return x + mixed.reshape(ITEMS, FRAMES, n_bins, channels).permute(0, 3, 2, 1)

    return trained(ours, x), trained(official, x)


def pointwise_as_product(channels: int, n_bins: int) -> Forms:
    conv, x = nn.Conv2d(channels, channels, 1), maps(channels, n_bins)

    def product(x: Tensor) -> Tensor:
        weight = conv.weight.flatten(1).expand(len(x), -1, -1)
        return torch.baddbmm(conv.bias[None, :, None], weight, x.flatten(2)).unflatten(2, x.shape[2:])

    return trained(product, x), trained(conv, x)


def channels_last(channels: int, n_bins: int) -> Forms:
    conv, x = nn.Conv2d(channels, channels, 3, padding=1), maps(channels, n_bins)
    return trained(conv, last(x)), trained(conv, x)


def teacher_without_graph(model: lincae.Autoencoder) -> Forms:
    network, x = model.network, torch.randn(1, 2, model.config.transform.n_bins, FRAMES)
    sigma = torch.ones(1)
    latents = torch.randn(1, model.config.network.latent_channels, FRAMES // 8)
    return (
        torch.no_grad()(lambda: network.denoiser(x, sigma, network.pyramid(latents))),
        lambda: network.denoiser(x, sigma, network.pyramid(latents)).detach(),
    )


def noise_levels(noise: NoiseConfig, config: ConsistencyConfig) -> Forms:
    def anew() -> Tensor:
        level_weights.cache_clear()
        return sample_t2(ITEMS, noise, config, generator(0))

    return lambda: sample_t2(ITEMS, noise, config, generator(0)), anew


def moving_average(model: lincae.Autoencoder) -> Forms:
    ema = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def one_by_one() -> None:
        for shadow, p in zip(ema.parameters(), model.parameters(), strict=True):
            shadow.lerp_(p, 0.1)

    return lambda: update_ema(ema, model, 10, 0.9), one_by_one


def warp(model: lincae.Autoencoder) -> Forms:
    config = model.config.transform
    n_bins = config.n_bins
    bins = torch.randn(ITEMS, n_bins, FRAMES, dtype=torch.complex64)
    return (
        lambda: bins * (config.beta * bins.abs() ** (config.alpha - 1)),
        lambda: config.beta * bins.abs() ** config.alpha * torch.exp(1j * torch.angle(bins)),
    )


def parts(device: torch.device) -> list[tuple[str, str, bool, Callable[[], Forms]]]:
    """(name, setting, kept, how to make both forms)."""
    model = lincae.Autoencoder(lincae.recipe("official").autoencoder)
    on_cpu = device.type == "cpu"
    levels = [(64, 1024), (128, 256), (256, 64)]
    config = lincae.recipe("official")
    table = [
        ("GroupNorm, SiLU, convolution", f"{c} x {n}", on_cpu, lambda c=c, n=n: norm_silu_convolution(c, n))
        for c, n in levels
    ]
    table += [
        ("transposed enlargement", "4 x 1, 128 x 256", on_cpu, lambda: enlargement(FREQUENCY, 128, 64, 256)),
        ("transposed enlargement", "4 x 1, 256 x 64", on_cpu, lambda: enlargement(FREQUENCY, 256, 128, 64)),
        ("transposed enlargement", "2 x 2, 256 x 32", on_cpu, lambda: enlargement(BOTH, 256, 256, 32, 32)),
        ("attention, one product for q, k, v", "256 x 64", True, lambda: attention(256, 64)),
        ("teacher without graph", "1 item", True, lambda: teacher_without_graph(model)),
        ("weights of the noise levels, cached", f"{GRID}", True,
         lambda: noise_levels(config.autoencoder.noise, config.consistency)),
        ("EMA of all tensors at once", "58 M", True, lambda: moving_average(model)),
        ("warp without angles", "1024 x 64", True, lambda: warp(model)),
    ]  # fmt: skip
    table += [
        ("channels last convolution", f"{c} x {n}", on_cpu, lambda c=c, n=n: channels_last(c, n))
        for c, n in levels
    ]
    table += [
        ("1x1 convolution as product", f"{c} x {n}", False, lambda c=c, n=n: pointwise_as_product(c, n))
        for c, n in levels
    ]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--label", help="device name in the CSV (default: cpu or cuda)")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    device = resolve_device(options.device)
    torch.set_default_device(device)
    torch.manual_seed(0)
    rows = []
    for name, setting, kept, make in parts(device):
        if device.type == "cpu":
            keep_freed_memory()
        forms = make()
        for form in forms:
            form()
        times = [tuple(1e3 * seconds(form, device) for form in forms) for _ in range(options.repeats)]
        ours, peer = (statistics.median(column) for column in zip(*times, strict=True))
        ratios = [b / a for a, b in times]
        numbers = ours, peer, peer / ours, min(ratios), max(ratios)
        mine, theirs, ratio, low, high = (f"{value:.4g}" for value in numbers)
        label = options.label or device.type
        rows.append((name, label, setting, mine, theirs, ratio, "ms", low, high, "yes" if kept else "no"))
        print(*rows[-1], flush=True)
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
