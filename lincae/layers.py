"""Layers of the network: residual block, attention over frequency, changes of resolution, noise embedding.

Axis legend: `B` batch; feature maps are `(B, channels, F_level, N_level)`, frequency by frames.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

FREQUENCY, BOTH = "frequency", "both"  # what a resolution change divides: F by 4, or F and N by 2 each


def normalisation_groups(channels: int) -> int:
    return max(1, min(channels // 4, 32))


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(normalisation_groups(channels), channels)


class _NormSiLUConv(torch.autograd.Function):
    """`conv(silu(group_norm(x)))` that keeps x alone for the backward pass, which computes the two maps
    between again: they are as large as x, and cheap beside the convolution."""

    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, weight, bias, groups, eps, padding):
        x = x.contiguous()
        ctx.sizes, ctx.eps, ctx.padding = (x.shape[0], x.shape[1], x[0, 0].numel(), groups), eps, padding
        ctx.save_for_backward(x, norm_weight, norm_bias, weight)
        h = torch.native_group_norm(x, norm_weight, norm_bias, *ctx.sizes, eps)[0]
        return _convolution(F.silu(h, inplace=True), weight, bias, padding)

    @staticmethod
    def backward(ctx, grad):
        x, norm_weight, norm_bias, weight = ctx.saved_tensors
        h, mean, rstd = torch.native_group_norm(x, norm_weight, norm_bias, *ctx.sizes, ctx.eps)
        n = x.dim() - 2
        needed, grad = ctx.needs_input_grad, grad.contiguous()
        options = ([1] * n, ctx.padding, [1] * n, False, [0] * n, 1, [True, *needed[3:5]])
        sizes = [weight.shape[0]]
        grad, *of_conv = torch.ops.aten.convolution_backward(grad, F.silu(h), weight, sizes, *options)
        grad = torch.ops.aten.silu_backward(grad.contiguous(), h)
        norms = (x, mean, rstd, norm_weight, *ctx.sizes, needed[:3])
        return *torch.ops.aten.native_group_norm_backward(grad, *norms), *of_conv, None, None, None


def _convolution(x: Tensor, weight: Tensor, bias: Tensor, padding: list[int]) -> Tensor:
    n = len(padding)
    return torch.ops.aten.convolution(x, weight, bias, [1] * n, padding, [1] * n, False, [0] * n, 1)


def norm_silu_conv(norm: nn.GroupNorm, conv: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """`conv(silu(norm(x)))` of `(B, channels, ...)`; on a CPU with a backward pass that keeps less."""
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return conv(F.silu(norm(x), inplace=not torch.is_grad_enabled()))
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    x, weight, bias = x.to(dtype), conv.weight.to(dtype), conv.bias.to(dtype)
    settings = norm.num_groups, norm.eps, list(conv.padding)
    return _NormSiLUConv.apply(x, norm.weight, norm.bias, weight, bias, *settings)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all parameters zero: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class FrequencyAttention(nn.Module):
    """`x + MHA(GN(x))` over frequency: each frame of each item is a sequence of F_level tokens.

    On a CPU the backward pass computes what lies between again: it is seven times as large as x.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = zeroed(nn.Linear(channels, channels))
        nn.init.xavier_uniform_(self.to_qkv.weight)
        nn.init.zeros_(self.to_qkv.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled():
            return checkpoint(self.attend, x, use_reentrant=False, preserve_rng_state=False)
        return self.attend(x)

    def attend(self, x: Tensor) -> Tensor:
        qkv = pointwise(self.to_qkv, self.norm(x)).unflatten(1, (3, self.heads, -1))
        q, k, v = qkv.permute(1, 0, 5, 2, 4, 3).flatten(1, 2)  # each (B N, heads, F, channels / heads)
        mixed = F.scaled_dot_product_attention(q, k, v).unflatten(0, (len(x), -1))
        return x + pointwise(self.to_out, mixed.permute(0, 3, 1, 2, 4).flatten(-2).movedim(-1, 1))


def pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer over the channels of `(B, channels, F, N)`; as a convolution twice as fast on a CPU."""
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


class ResBlock(nn.Module):
    """Two normalised convolutions beside a shortcut, a shift by the noise embedding between them."""

    def __init__(self, conv: type, c_in: int, c_out: int, noise_channels: int | None = None, heads: int = 0):
        super().__init__()
        self.norm1 = group_norm(c_in)
        self.conv1 = conv(c_in, c_out, 3, padding=1)
        self.noise_shift = None if noise_channels is None else zeroed(nn.Linear(noise_channels, c_out))
        self.norm2 = group_norm(c_out)
        self.conv2 = zeroed(conv(c_out, c_out, 3, padding=1))
        self.shortcut = nn.Identity() if c_in == c_out else conv(c_in, c_out, 1)
        self.attention = FrequencyAttention(c_out, heads) if heads else None

    def forward(self, x: Tensor, noise_embedding: Tensor | None = None) -> Tensor:
        # in place: a convolution does not need its output for the backward pass, and maps are large
        h = norm_silu_conv(self.norm1, self.conv1, x)
        if noise_embedding is not None:
            h.add_(self.noise_shift(noise_embedding)[:, :, None, None])
        h = norm_silu_conv(self.norm2, self.conv2, h).add_(self.shortcut(x))
        return h if self.attention is None else self.attention(h)


class Downsample(nn.Module):
    """Strided convolution; only the encoder normalises before it."""

    def __init__(self, c_in: int, c_out: int, kind: str, normalise: bool):
        super().__init__()
        self.norm = group_norm(c_in) if normalise else nn.Identity()
        if kind == FREQUENCY:
            self.conv = nn.Conv2d(c_in, c_out, (5, 1), stride=(4, 1), padding=(2, 0))
        else:
            self.conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class Upsample(nn.Module):
    """Nearest-neighbour enlargement, then a convolution; on a CPU as one convolution of the small grid.

    The enlarged grid repeats its values, so that most taps of the kernel fall on equal ones: each phase
    (output row and column modulo the factors) is a convolution with two taps per enlarged axis, sums of the
    kernel's. The same numbers for 2.5 (frequency alone) or 2.25 times fewer multiplications.
    """

    def __init__(self, c_in: int, c_out: int, kind: str):
        super().__init__()
        if kind == FREQUENCY:
            self.factor, taps = (4, 1), (5, 1)
        else:
            self.factor, taps = (2, 2), (3, 3)
        self.conv = nn.Conv2d(c_in, c_out, taps, padding=(taps[0] // 2, taps[1] // 2))
        for axis, *sizes in zip(("rows", "columns"), self.factor, taps, strict=True):
            self.register_buffer(axis, phases(*sizes), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, c_in, F, N)` -> `(B, c_out, 4 F, N)` or `(B, c_out, 2 F, 2 N)`."""
        if x.device.type != "cpu":
            return self.conv(F.interpolate(x, scale_factor=self.factor, mode="nearest"))
        (n_rows, n_columns), (n_bins, n_frames), weight = self.factor, x.shape[2:], self.conv.weight
        kernels = torch.einsum("pst,qrj,oitj->pqoisr", self.rows, self.columns, weight).flatten(0, 2)
        bias = self.conv.bias.repeat(n_rows * n_columns)
        padding = self.rows.shape[1] - 1, self.columns.shape[1] - 1
        h = F.conv2d(x, kernels, bias, padding=padding)
        size = n_bins, n_rows, n_frames, n_columns
        if h.is_contiguous(memory_format=torch.channels_last):
            out = h.new_empty(len(x), *size, len(weight)).movedim(-1, 1)
        else:
            out = h.new_empty(len(x), len(weight), *size)
        h = h.unflatten(1, (n_rows, n_columns, -1))
        for p, q in itertools.product(range(n_rows), range(n_columns)):
            # the first half of the phases reaches one value back, the second half one forward
            i, j = p >= n_rows / 2, q >= n_columns / 2
            out[:, :, :, p, :, q] = h[:, p, q, :, i : i + n_bins, j : j + n_frames]
        return out.flatten(4, 5).flatten(2, 3)


def phases(factor: int, taps: int) -> Tensor:
    """`(factor, neighbours, taps)`: which taps of a kernel on the enlarged axis fall on which value of the
    small one: the value before and the phase's own (first half of the phases), or its own and the next."""
    matrix = torch.zeros(factor, min(factor, 2), taps)
    for phase in range(factor):
        for tap in range(taps):
            neighbour = (phase + tap - taps // 2) // factor  # -1, 0 or 1 values away
            matrix[phase, neighbour + (phase < factor // 2), tap] = 1
    return matrix


class NoiseEmbedding(nn.Module):
    """Sinusoids of ln(sigma) / 4: `(B,)` -> `(B, channels)`."""

    def __init__(self, channels: int):
        super().__init__()
        exponents = torch.arange(channels // 2, dtype=torch.float32) / (channels // 2 - 1)
        self.register_buffer("frequencies", (1 / 10000) ** exponents, persistent=False)

    def forward(self, sigma: Tensor) -> Tensor:
        phase = torch.outer(sigma.log() / 4, self.frequencies)
        return torch.cat((phase.sin(), phase.cos()), dim=-1)


def mlp(c_in: int, c_hidden: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(c_in, c_hidden),
        nn.SiLU(),
        nn.Linear(c_hidden, c_hidden),
        nn.SiLU(),
        nn.Linear(c_hidden, c_out),
    )
