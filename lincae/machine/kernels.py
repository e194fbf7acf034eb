"""Forms of layers that save time and memory; the plain forms stand in `lincae.network`.

On a CPU, in training and in long windows, feature maps `(B, channels, F, N)` are channels last in memory.
PyTorch's own GroupNorm is slow and inaccurate in that order: here it is loops over the rows of a map
`(B, F N, channels)`, in fp32 at least. Accelerators keep the usual order. PyTorch turns maps that it
normalises under autocast to fp32, and keeps them; here large ones stay half, with statistics in fp32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CACHED_NUMBERS = 2**18  # a CPU normalises a map in parts of one megabyte in fp32
KEPT_BYTES = 2**23  # the backward pass computes larger maps between layers again, cheaper than their memory
FUSED_BYTES = 2**24  # accelerators leave smaller maps to PyTorch: they take less time than their launches
TILED_BYTES = 2**25  # without gradients, a CPU takes larger maps in tiles of TILE_BYTES
TILE_BYTES = 2**22


def channels_last(x: Tensor) -> Tensor:
    """The map in the order of memory that the convolutions of a CPU are fastest in."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def autocast_like(x: Tensor, *others: Tensor) -> list[Tensor]:
    """The tensors as autocast would hand them to a convolution of `x`."""
    enabled = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if enabled else x.dtype
    return [tensor.to(dtype) for tensor in (x, *others)]


# ---------------------------------------------------------------- normalisation of a whole map


def is_fused(x: Tensor) -> bool:
    """Whether a map is normalised by the functions of this file, or else by PyTorch's."""
    return is_channels_last(x) if x.device.type == "cpu" else x.nbytes > FUSED_BYTES


def group_norm(x: Tensor, norm: nn.GroupNorm, silu: bool = False) -> Tensor:
    """`norm(x)`, or `silu(norm(x))`, of `(B, channels, ...)`, with statistics of the whole map."""
    if is_fused(x):
        return _Norm.apply(*autocast_like(x), norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
    h = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(h, inplace=not torch.is_grad_enabled()) if silu else h


class _Norm(torch.autograd.Function):
    """`group_norm(x)` or `silu(group_norm(x))`; the backward pass computes what lies between again."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, silu):
        mean, rstd = _statistics(x, groups, eps)
        scale, shift = _scale(x, weight, bias, mean, rstd)
        ctx.groups, ctx.silu = groups, silu
        ctx.save_for_backward(x, scale, shift, weight, mean, rstd)
        return _normalised(x, scale, shift, silu)

    @staticmethod
    def backward(ctx, grad):
        return *_norm_backward(grad, ctx.saved_tensors, ctx.groups, ctx.silu), None, None, None


class NormSiLUConv(torch.autograd.Function):
    """`conv(silu(group_norm(x)))`; of large maps the convolution's input is computed again."""

    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, weight, bias, groups, eps, padding):
        mean, rstd = _statistics(x, groups, eps)
        scale, shift = _scale(x, norm_weight, norm_bias, mean, rstd)
        h = _normalised(x, scale, shift, silu=True)
        kept = h if is_channels_last(x) and h.nbytes <= KEPT_BYTES else None
        ones = [1] * len(padding)
        ctx.groups = groups
        ctx.options = ones, padding, ones, False, [0] * len(padding), 1
        ctx.save_for_backward(x, scale, shift, norm_weight, mean, rstd, weight, kept)
        return torch.ops.aten.convolution(h, weight, bias, *ctx.options)

    @staticmethod
    def backward(ctx, grad):
        *of_norm, weight, h = ctx.saved_tensors
        normed = None
        if not is_channels_last(of_norm[0]):
            normed = _multiplied(*of_norm[:3])
            h = F.silu(normed)
        elif h is None:
            h = _normalised(*of_norm[:3], silu=True)
        options = *ctx.options, [True, True, True]
        grad, *of_conv = torch.ops.aten.convolution_backward(grad, h, weight, [len(weight)], *options)
        del h
        return *_norm_backward(grad, of_norm, ctx.groups, True, normed), *of_conv, None, None, None


def _rows(x: Tensor) -> Tensor:
    """A map channels last as `(B, F N, channels)`."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _map_like(rows: Tensor, x: Tensor) -> Tensor:
    return rows.view(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)


def _group_means(sums: Tensor, x: Tensor, groups: int) -> Tensor:
    """Sums `(B, 1, channels)` over rows to the means of groups, as `(B, 1, channels)` again."""
    of_groups = sums.unflatten(2, (groups, -1)).sum(3, keepdim=True) * (groups / x[0].numel())
    return of_groups.expand(-1, -1, -1, x.shape[1] // groups).flatten(2)


def _statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of each group, `(B, groups)`; of maps channels last of each channel's group,
    `(B, 1, channels)`."""
    if not is_channels_last(x):
        values = x.unflatten(1, (groups, -1)).flatten(2)
        if torch.finfo(x.dtype).bits > 16:
            variance, mean = torch.var_mean(values, 2, correction=0)
        else:
            mean, power = (_sums(values) / values.shape[2]).unbind()
            variance = torch.addcmul(power, mean, mean, value=-1).clamp_min(0)
        return mean, (variance + eps).rsqrt()
    sums, squares = _moments(_rows(x))
    mean = _group_means(sums.double(), x, groups)
    power = _group_means(squares.double(), x, groups)
    rstd = ((power - mean.square()).clamp_min(0) + eps).rsqrt()
    return mean.to(sums.dtype), rstd.to(sums.dtype)


def _sums(values: Tensor) -> Tensor:
    """Sums of numbers, and of their squares, over dimension 2, `(2, B, groups, ...)` in fp32 at least."""
    options = {"dim": 2, "dtype": torch.promote_types(values.dtype, torch.float32)}
    if torch.is_grad_enabled():
        norm = torch.linalg.vector_norm(values, **options)
        return torch.stack((values.sum(**options), norm.square()))
    sums = values.new_empty((2, *values.shape[:2], *values.shape[3:]), dtype=options["dtype"])
    torch.sum(values, **options, out=sums[0])
    torch.linalg.vector_norm(values, **options, out=sums[1])
    sums[1].square_()
    return sums


def _scale(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """What the norm multiplies each channel by, and adds, in shapes that suit the map, or its rows."""
    if is_channels_last(x):
        scale = rstd * weight
        return scale, bias - mean * scale
    groups = mean.shape[1]
    scale = rstd[..., None] * weight.view(groups, -1)
    shift = torch.addcmul(bias.view(groups, -1), mean[..., None], scale, value=-1)
    per_channel = (len(x), -1, *[1] * (x.dim() - 2))
    return scale.view(per_channel), shift.view(per_channel)


def _normalised(x: Tensor, scale: Tensor, shift: Tensor, silu: bool) -> Tensor:
    if not is_channels_last(x):
        h = _multiplied(x, scale, shift)
        return F.silu(h, inplace=True) if silu else h
    scaled = _scaled_silu if silu else _scaled
    return _map_like(scaled(_rows(x), scale, shift), x)


def _multiplied(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`scale x + shift` of a map in the usual order in one pass in fp32, in the map's own type."""
    return torch.addcmul(shift, x, scale, out=torch.empty_like(x))


def _norm_backward(
    grad: Tensor, of_norm: Sequence[Tensor], groups: int, silu: bool, normed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, weight and bias. `normed`: the map before SiLU, where it is at hand."""
    x, scale, shift, weight, mean, rstd = of_norm
    if not is_channels_last(x):
        if silu:
            normed = _multiplied(x, scale, shift) if normed is None else normed
            grad = torch.ops.aten.silu_backward(grad, normed)
        statistics = (tensor.to(x.dtype) for tensor in (mean, rstd, weight))
        sizes = (*x.shape[:2], x[0, 0].numel(), groups)
        backward = torch.ops.aten.native_group_norm_backward
        return backward(grad.contiguous(), x.contiguous(), *statistics, *sizes, [True] * 3)
    rows, grad = _rows(x), _rows(grad.contiguous(memory_format=torch.channels_last))
    if silu:
        grad = _silu_backward(grad, rows, scale, shift)
    sums, products = _moments_with(grad, rows)
    to_weight = (products - sums * mean) * rstd
    slope = -rstd.square() * _group_means(to_weight * weight, x, groups)
    constant = -rstd * _group_means(sums * weight, x, groups) - slope * mean
    to_x = _combined(grad, rows, scale, slope, constant)
    return _map_like(to_x, x), to_weight.sum((0, 1)), sums.sum((0, 1))


# ---------------------------------------------------------------- loops over rows


class Loop:
    """A function of tensors with items first, for as many items at a time as the cache holds; once compiled,
    for all at once."""

    def __init__(self, function: Callable[..., Tensor | tuple[Tensor, ...]]):
        self.function = function
        self.compiled: Callable | None = None

    def __call__(self, *tensors: Tensor) -> Any:
        if self.compiled is not None:
            return self.compiled(*tensors)
        n_items = max(1, CACHED_NUMBERS // tensors[0][0].numel())
        if n_items >= len(tensors[0]):
            return self.function(*tensors)
        parts = zip(*(tensor.split(n_items) for tensor in tensors), strict=True)
        results = [self.function(*part) for part in parts]
        if isinstance(results[0], Tensor):
            return torch.cat(results)
        return tuple(map(torch.cat, zip(*results, strict=True)))


def compile_loops(options: dict[str, str] | None) -> None:
    """Let torch.compile take the loops, with these options, for the whole process; None: no longer."""
    for loop in (_moments, _moments_with, _scaled, _scaled_silu, _silu_backward, _combined):
        loop.compiled = options and torch.compile(loop.function, **options, dynamic=True)


def _wide(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


@Loop
def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    values = _wide(rows)
    return values.sum(1, keepdim=True), values.square().sum(1, keepdim=True)


@Loop
def _moments_with(grad: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    values = _wide(grad)
    return values.sum(1, keepdim=True), (values * _wide(rows)).sum(1, keepdim=True)


@Loop
def _scaled(rows: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, _wide(rows), scale).to(rows.dtype)


@Loop
def _scaled_silu(rows: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    h = torch.addcmul(shift, _wide(rows), scale)
    return F.silu(h, inplace=True).to(rows.dtype)


@Loop
def _silu_backward(grad: Tensor, rows: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    h = torch.addcmul(shift, _wide(rows), scale)
    return torch.ops.aten.silu_backward(_wide(grad), h).to(rows.dtype)


@Loop
def _combined(grad: Tensor, rows: Tensor, scale: Tensor, slope: Tensor, constant: Tensor) -> Tensor:
    return torch.addcmul(constant, _wide(rows), slope).addcmul(_wide(grad), scale).to(rows.dtype)


# ---------------------------------------------------------------- normalisation of each frame


def sliding_group_norm(x: Tensor, norm: nn.GroupNorm, width: int, silu: bool = False) -> Tensor:
    """`norm(x)`, or `silu(norm(x))`, of `(B, channels, ..., N)`, each frame by the statistics of the `width`
    frames around it (at the ends, the first or last ones); `width` <= N."""
    scale, shift = _sliding_scale(x, norm, width)
    if is_channels_last(x):
        h = _map_like(torch.addcmul(shift, _frequencies(x), scale), x)
    elif x.device.type == "cpu" or torch.is_grad_enabled():
        h = torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))
    else:
        h = _multiplied(x, scale, shift)
    return F.silu(h, inplace=not torch.is_grad_enabled()) if silu else h


def _frequencies(x: Tensor) -> Tensor:
    """A map channels last as `(B, F, N channels)`."""
    return x.permute(0, 2, 3, 1).flatten(2)


def _sliding_scale(x: Tensor, norm: nn.GroupNorm, width: int) -> tuple[Tensor, Tensor]:
    """What the norm multiplies each frame by, and adds: `(B, 1, N channels)` each for a map channels last,
    in its type, else in fp32 as x with ones between channels and frames."""
    groups = norm.num_groups
    if x.device.type == "cpu":
        n_values = width * x[0, :, ..., 0].numel() // groups
        means = sums_around(_frame_moments(x, groups), width) / n_values
    else:
        means = pooled_means(x, groups, width)
    mean, power = means[..., None, :].unbind()
    variance = torch.addcmul(power, mean, mean, value=-1).clamp_min(0)
    rstd = (variance + norm.eps).rsqrt().float()
    scale = rstd * norm.weight.view(groups, -1, 1)  # (B, groups, channels of a group, N)
    bias = norm.bias.view(groups, -1, 1)
    if x.device.type == "cpu":
        shift = bias - mean.float() * scale
    else:
        shift = torch.addcmul(bias, mean, scale, value=-1)
    scale, shift = scale.flatten(1, 2), shift.flatten(1, 2)
    if is_channels_last(x):
        return tuple(s.transpose(1, 2).flatten(1)[:, None].to(x.dtype) for s in (scale, shift))
    between = (1,) * (x.dim() - 3)
    return tuple(s.view(*s.shape[:2], *between, -1) for s in (scale, shift))


def in_tiles(x: Tensor) -> bool:
    """Whether a map is so large that layers without gradients take it by a few rows at a time."""
    eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    return eager and x.device.type == "cpu" and x.nbytes > TILED_BYTES and is_channels_last(x)


def tile_rows(x: Tensor) -> int:
    """Frequencies of a map that are taken at a time, at least two."""
    return max(2, TILE_BYTES // x[:, :, 0].nbytes) if in_tiles(x) else x.shape[2]


def sliding_norm_silu_conv(
    x: Tensor, norm: nn.GroupNorm, width: int, conv: nn.Conv2d, in_place: bool
) -> Tensor:
    """`conv(silu(sliding_group_norm(x)))` of a map channels last, for a 3 x 3 convolution, by tiles: bit for
    bit what the whole gives. `in_place`: x may hold the result."""
    scale, shift = _sliding_scale(x, norm, width)
    parts = _frequencies(x).split(tile_rows(x), dim=1)
    border = torch.zeros_like(parts[0][:, :1])
    rows = border
    out = x
    n_done = 0
    for part in parts:
        h = F.silu(torch.addcmul(shift, part, scale), inplace=True)
        after = [border] if part is parts[-1] else []
        # The last two rows of a tile are kept for the next one: x may be overwritten up to the last but one.
        rows = torch.cat([rows[:, -2:], h, *after], dim=1)
        tile = rows.unflatten(2, (x.shape[3], -1)).permute(0, 3, 1, 2)
        made = F.conv2d(tile, conv.weight, conv.bias, padding=(0, 1))
        if n_done == 0 and not (in_place and made.dtype == x.dtype):
            shape = (len(x), *x.shape[2:], made.shape[1])
            out = made.new_empty(shape).permute(0, 3, 1, 2)
        out[:, :, n_done : n_done + made.shape[2]] = made
        n_done += made.shape[2]
    return out


def means_nearby(values: Tensor, width: int) -> Tensor:
    """Means of numbers `(..., N)` over the windows of `sums_around`."""
    running, first, last = _windows(values, width)
    return (running[..., last] - running[..., first]) / (last - first)


def pooled_means(x: Tensor, groups: int, width: int) -> Tensor:
    """Means of the numbers, and of their squares, of each group in the `width` frames around each frame,
    `(2, B, groups, N)` in fp32: in few launches, each taken afresh, since accelerators may lack float64."""
    values = x.unflatten(1, (groups, -1)).flatten(2, -2)
    if torch.finfo(x.dtype).bits > 16:
        variance, mean = torch.var_mean(values, 2, correction=0)
        of_frames = torch.stack((mean, torch.addcmul(variance, mean, mean)))
        n_values = width
    else:
        of_frames = _sums(values)
        n_values = width * values.shape[2]
    of_windows = F.avg_pool2d(of_frames.flatten(0, 1), (1, width), stride=1, divisor_override=n_values)
    edges = width // 2, (width - 1) // 2
    return F.pad(of_windows, edges, mode="replicate").unflatten(0, (2, -1))


def sums_around(values: Tensor, width: int) -> Tensor:
    """Sums `(..., N)` over the `width` frames around each, near the ends over the first or last ones, and
    over all where there are fewer: differences of running sums."""
    running, first, last = _windows(values, width)
    return running[..., last] - running[..., first]


def _windows(values: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Running sums `(..., N + 1)`, and where the window of each frame begins and ends `(N,)`. In double
    precision, which Metal and ONNX on GPUs lack: a quiet passage may follow a loud one."""
    single = values.device.type == "mps" or torch.onnx.is_in_onnx_export()
    running = F.pad(values.to(torch.float32 if single else torch.float64).cumsum(-1), (1, 0))
    position = torch.arange(values.shape[-1], device=values.device)
    end = position[-1] + 1
    first = torch.minimum(position - width // 2, end - width).clamp_min(0)
    return running, first, torch.minimum(first + width, end)


def _frame_moments(x: Tensor, groups: int) -> Tensor:
    """Sums, and sums of squares, over the numbers of a group in a frame: `(2, B, groups, N)` in fp32."""
    if not is_channels_last(x):
        grouped = x.unflatten(1, (groups, -1)).flatten(2, -2)
        squares = torch.linalg.vector_norm(grouped, dim=2, dtype=torch.float32).square()
        return torch.stack((grouped.sum(2, dtype=torch.float32), squares))
    rows = _frequencies(x)
    parts = []
    for part in rows.split(max(1, CACHED_NUMBERS // rows.shape[1]), dim=2):
        values = part.float()
        parts.append(torch.stack((values.sum(1), values.square().sum(1))))
    moments = torch.cat(parts, dim=2)
    return moments.view(2, len(x), x.shape[3], groups, -1).sum(4).transpose(2, 3)


# ---------------------------------------------------------------- other layers


def pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer over the channels of `(B, channels, F, N)`; as a convolution twice as fast on a CPU."""
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


def enlarge(conv: nn.Conv2d, x: Tensor, factor: tuple[int, int], rows: Tensor, columns: Tensor) -> Tensor:
    """`conv` of the map enlarged by `factor` (nearest neighbour), as one transposed convolution, whose kernel
    holds sums of the taps that fall on equal values: 2.5 (4 rows, 5 taps) or 2.25 times (2 x 2, 3 x 3 taps)
    fewer multiplications. `rows` and `columns` are the `enlarged_taps` of the two axes."""
    kernel = torch.einsum("ds,er,oisr->iode", rows.to(conv.weight), columns.to(conv.weight), conv.weight)
    return _Transposed.apply(*autocast_like(x, kernel, conv.bias), factor, conv.padding)


def enlarged_taps(factor: int, taps: int) -> Tensor:
    """`(factor + taps - 1, taps)`: which taps of a kernel on the enlarged axis a value of the small one meets
    for each of the outputs that it reaches."""
    first = torch.arange(factor + taps - 1)[:, None] - taps + 1 + torch.arange(taps)
    return ((first >= 0) & (first < factor)).float()


class _Transposed(torch.autograd.Function):
    """A transposed convolution; PyTorch's takes ten times as long for the gradient to the bias alone."""

    @staticmethod
    def forward(ctx, x, kernel, bias, stride, padding):
        ctx.save_for_backward(x, kernel)
        ctx.options = list(stride), list(padding), [1, 1], True, [0, 0], 1
        return torch.ops.aten.convolution(x, kernel, bias, *ctx.options)

    @staticmethod
    def backward(ctx, grad):
        x, kernel = ctx.saved_tensors
        wanted = [True, True, False]
        to_x, to_kernel, _ = torch.ops.aten.convolution_backward(grad, x, kernel, None, *ctx.options, wanted)
        return to_x, to_kernel, grad.sum((0, 2, 3)), None, None
