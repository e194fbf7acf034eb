"""Forms of the layers that save time and memory on a CPU; the plain forms stand in `lincae.network`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer over the channels of `(B, channels, F, N)`; as a convolution twice as fast on a CPU."""
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


def phases(factor: int, taps: int) -> Tensor:
    """`(factor, neighbours, taps)`: which taps of a kernel on the enlarged axis fall on which value of the
    small one: the value before and the phase's own (first half of the phases), or its own and the next."""
    matrix = torch.zeros(factor, min(factor, 2), taps)
    for phase in range(factor):
        for tap in range(taps):
            neighbour = (phase + tap - taps // 2) // factor  # -1, 0 or 1 values away
            matrix[phase, neighbour + (phase < factor // 2), tap] = 1
    return matrix
