"""The network of Lin-CAE and Music2Latent (paper 3.1, figure 2a): encoder, latent pyramid, denoiser U-Net.

Every part is a list of levels, level 0 being the finest grid. The latent enters the U-Net at every block of
every level, through a pyramid of feature maps made from it once per decode. Axis legend: see
`lincae.interface`; feature maps are `(B, channels, F_level, N_level)`.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lincae.interface import check_fields
from lincae.machine import kernels
from lincae.machine.kernels import KEPT_BYTES, channels_last, enlarge, enlarged_taps, pointwise

FREQUENCY, BOTH = "frequency", "both"  # what a resolution change divides: F by 4, or F and N by 2 each


def normalisation_groups(channels: int) -> int:
    return max(1, min(channels // 4, 32))


@dataclass(frozen=True)
class Neighbourhood:
    """The frames that a frame is normalised with: so many around it as `latent_frames` span on a grid of
    `per_latent` frames each. None: all frames of a map."""

    latent_frames: int | None
    per_latent: int = 1

    def width(self, n_frames: int) -> int | None:
        """Its frames in a map of `n_frames`, None where these are all."""
        n_latents = -(-n_frames // self.per_latent)
        if self.latent_frames is None or n_latents <= self.latent_frames:
            return None
        return self.latent_frames * n_frames // n_latents

    def ordered(self, x: Tensor, training: bool) -> Tensor:
        """The map `(B, channels, F, N)`, channels last where a CPU trains or works on a longer window: in
        that order convolutions round more, and short signals are to equal the released packages to 1e-5."""
        return channels_last(x) if training or self.width(x.shape[-1]) else x


class Norm(nn.GroupNorm):
    """GroupNorm by the statistics of the frames around each frame: as many as in the crops of the training,
    in a signal of any length; near the ends of a map its first or last frames."""

    def __init__(self, channels: int, neighbourhood: Neighbourhood):
        super().__init__(normalisation_groups(channels), channels)
        self.neighbourhood = neighbourhood

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        """`(B, channels, ..., N)` to the same shape. `silu`: SiLU follows."""
        width = self.neighbourhood.width(x.shape[-1])
        if width is None:
            return kernels.group_norm(x, self, silu)
        return kernels.sliding_group_norm(x, self, width, silu)


def norm_silu_conv(norm: Norm, conv: nn.Conv1d | nn.Conv2d, x: Tensor, in_place: bool = False) -> Tensor:
    """`conv(silu(norm(x)))` of `(B, channels, ..., N)`. `in_place`: x may hold the result."""
    width = norm.neighbourhood.width(x.shape[-1])
    if width and kernels.in_tiles(x):
        return kernels.sliding_norm_silu_conv(x, norm, width, conv, in_place)
    if width or not kernels.is_fused(x):
        return conv(norm(x, silu=True))
    x, weight, bias = kernels.autocast_like(x, conv.weight, conv.bias)
    settings = (norm.num_groups, norm.eps, list(conv.padding))
    return kernels.NormSiLUConv.apply(x, norm.weight, norm.bias, weight, bias, *settings)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all parameters zero: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class FrequencyAttention(nn.Module):
    """`x + MHA(GN(x))` over frequency: each frame of each item is a sequence of F_level tokens. What lies
    between is seven times as large: the backward pass computes it again for large maps."""

    def __init__(self, channels: int, heads: int, neighbourhood: Neighbourhood):
        super().__init__()
        self.heads = heads
        self.norm = Norm(channels, neighbourhood)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = zeroed(nn.Linear(channels, channels))
        nn.init.xavier_uniform_(self.to_qkv.weight)
        nn.init.zeros_(self.to_qkv.bias)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.nbytes > KEPT_BYTES:
            return checkpoint(self.attend, x, use_reentrant=False, preserve_rng_state=False)
        return self.attend(x)

    def attend(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        if not kernels.in_tiles(x):
            return x + self.mixed(normed)
        n_frames = max(1, kernels.TILE_BYTES // x[..., 0].nbytes)
        for frames, of_norm in zip(x.split(n_frames, 3), normed.split(n_frames, 3), strict=True):
            frames.add_(self.mixed(channels_last(of_norm)))
        return x

    def mixed(self, normed: Tensor) -> Tensor:
        """The attention itself, frame by frame."""
        n_items, channels, n_bins, _ = normed.shape
        of_heads = self.heads, channels // self.heads
        qkv = pointwise(self.to_qkv, normed).reshape(n_items, 3, *of_heads, n_bins, -1)
        tokens = qkv.permute(1, 0, 5, 2, 4, 3).reshape(3, -1, self.heads, n_bins, of_heads[1])
        mixed = F.scaled_dot_product_attention(*tokens.unbind())  # (B N, heads, F, channels / heads)
        together = mixed.reshape(n_items, -1, self.heads, n_bins, of_heads[1]).permute(0, 3, 1, 2, 4)
        rows = together.reshape(n_items, n_bins, -1, channels)
        return pointwise(self.to_out, rows.permute(0, 3, 1, 2))


class ResBlock(nn.Module):
    """Two normalised convolutions beside a shortcut, a shift by the noise embedding between them."""

    def __init__(
        self,
        conv: type[nn.Conv1d] | type[nn.Conv2d],
        c_in: int,
        c_out: int,
        neighbourhood: Neighbourhood,
        noise_channels: int | None = None,
        heads: int = 0,
    ):
        super().__init__()
        self.norm1 = Norm(c_in, neighbourhood)
        self.conv1 = conv(c_in, c_out, 3, padding=1)
        self.noise_shift = None if noise_channels is None else zeroed(nn.Linear(noise_channels, c_out))
        self.norm2 = Norm(c_out, neighbourhood)
        self.conv2 = zeroed(conv(c_out, c_out, 3, padding=1))
        self.shortcut = nn.Identity() if c_in == c_out else conv(c_in, c_out, 1)
        self.attention = FrequencyAttention(c_out, heads, neighbourhood) if heads else None

    def forward(self, x: Tensor, noise_embedding: Tensor | None = None) -> Tensor:
        # In place: a convolution does not need its output for the backward pass, and maps are large.
        h = norm_silu_conv(self.norm1, self.conv1, x)
        if noise_embedding is not None:
            h.add_(self.noise_shift(noise_embedding)[:, :, None, None])
        h = norm_silu_conv(self.norm2, self.conv2, h, in_place=True).add_(self.shortcut(x))
        return h if self.attention is None else self.attention(h)


class Downsample(nn.Module):
    """Strided convolution; only the encoder normalises before it."""

    def __init__(self, c_in: int, c_out: int, kind: str, neighbourhood: Neighbourhood | None = None):
        super().__init__()
        self.norm = Norm(c_in, neighbourhood) if neighbourhood else nn.Identity()
        if kind == FREQUENCY:
            self.conv = nn.Conv2d(c_in, c_out, (5, 1), stride=(4, 1), padding=(2, 0))
        else:
            self.conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class Upsample(nn.Module):
    """Nearest-neighbour enlargement, then a convolution, both in one."""

    def __init__(self, c_in: int, c_out: int, kind: str):
        super().__init__()
        if kind == FREQUENCY:
            self.factor, taps = (4, 1), (5, 1)
        else:
            self.factor, taps = (2, 2), (3, 3)
        self.conv = nn.Conv2d(c_in, c_out, taps, padding=(taps[0] // 2, taps[1] // 2))
        self.register_buffer("rows", enlarged_taps(self.factor[0], taps[0]), persistent=False)
        self.register_buffer("columns", enlarged_taps(self.factor[1], taps[1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, c_in, F, N)` -> `(B, c_out, 4 F, N)` or `(B, c_out, 2 F, 2 N)`."""
        return enlarge(self.conv, x, self.factor, self.rows, self.columns)


class NoiseEmbedding(nn.Module):
    """Sinusoids of ln(sigma) / 4: `(B,)` -> `(B, channels)`."""

    def __init__(self, channels: int):
        super().__init__()
        exponents = torch.arange(channels // 2, dtype=torch.float32) / (channels // 2 - 1)
        self.register_buffer("frequencies", (1 / 10000) ** exponents, persistent=False)

    def forward(self, sigma: Tensor) -> Tensor:
        phase = torch.outer(sigma.log() / 4, self.frequencies)
        return torch.cat((phase.sin(), phase.cos()), dim=-1)


def mlp(width: int, *out: int) -> nn.Sequential:
    """Two layers with SiLU, and a linear one to the channels `out`, if given."""
    hidden = [nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
    return nn.Sequential(*hidden, *(nn.Linear(width, channels) for channels in out))


QUIET_NOISE = 0.03  # share of the noise that the denoiser hears at the start (`Network.keep_variance`)


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network; the defaults are the paper's (58,185,026 parameters at 1024 bins).

    One entry per level, finest first: `multipliers` (channels = base_channels * multiplier), `attention`
    (over frequency), `encoder_blocks` (residual blocks in encoder and pyramid), `unet_blocks` (in each
    direction). `downsampling` names the change after each level but the last: "frequency" (by 4) or "both"
    (frequency and time, by 2 each).

    `unused_projections`: noise projections of the pyramid's bottleneck, which the released checkpoints carry
    and never use; they are not trained. `unit_variance_init`: see `Network.keep_variance`. `centred`: the
    encoder's answer to silence, a constant that all latents would share, is subtracted before the tanh.
    `odd`: instead, half the difference of the answers to a sound and its negative, so that Enc(-x) =
    -Enc(x). That also removes what GroupNorm gives every sound but silence, and takes twice as long.
    """

    base_channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    attention: tuple[bool, ...] = (False, False, True, True, True)
    encoder_blocks: tuple[int, ...] = (1, 1, 1, 1, 1)
    unet_blocks: tuple[int, ...] = (2, 2, 2, 2, 2)
    downsampling: tuple[str, ...] = (FREQUENCY, BOTH, BOTH, BOTH)
    bottleneck_channels: int = 512
    bottleneck_blocks: int = 4
    latent_channels: int = 64
    noise_channels: int = 256
    heads: int = 4
    unused_projections: bool = True
    unit_variance_init: bool = False
    centred: bool = False
    odd: bool = False

    def __post_init__(self):
        check_fields(self)
        levels = len(self.multipliers)
        per_level = (self.attention, self.encoder_blocks, self.unet_blocks)
        if {levels} != set(map(len, per_level)) or len(self.downsampling) != levels - 1:
            raise ValueError(f"need {levels} entries per level and {levels - 1} for downsampling, got {self}")
        if unknown := set(self.downsampling) - {FREQUENCY, BOTH}:
            raise ValueError(f"downsampling is {FREQUENCY!r} or {BOTH!r}, got {sorted(unknown)}")
        if self.centred and self.odd:
            raise ValueError("an odd encoder is centred as it is: choose one of centred and odd")
        for channels in {*self.channels, self.bottleneck_channels}:
            if channels % normalisation_groups(channels):
                groups = normalisation_groups(channels)
                raise ValueError(f"{channels} channels do not split into {groups} groups of one size")
        for level, channels in enumerate(self.channels):
            if self.attention[level] and channels % self.heads:
                raise ValueError(f"{channels} channels at level {level} do not split into {self.heads} heads")

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.base_channels * m for m in self.multipliers)

    @property
    def time_factor(self) -> int:
        """Spectrogram frames per latent frame."""
        return 2 ** self.downsampling.count(BOTH)

    def neighbourhood(self, level: int, norm_frames: int | None) -> Neighbourhood:
        """On the grid of a level, where the network normalises over `norm_frames` latent frames."""
        return Neighbourhood(norm_frames, 2 ** self.downsampling[level:].count(BOTH))

    @property
    def frequency_factor(self) -> int:
        return 4 ** self.downsampling.count(FREQUENCY) * self.time_factor


def blocks_of(
    config: NetworkConfig,
    level: int,
    norm_frames: int | None,
    count: int,
    c_in: int | None = None,
    noise_channels: int | None = None,
) -> nn.Sequential:
    """The residual blocks of a level, the first from `c_in` channels (by default those of the level)."""
    channels = config.channels[level]
    neighbourhood = config.neighbourhood(level, norm_frames)
    heads = config.heads if config.attention[level] else 0
    blocks = nn.Sequential()
    for _ in range(count):
        blocks.append(ResBlock(nn.Conv2d, c_in or channels, channels, neighbourhood, noise_channels, heads))
        c_in = channels
    return blocks


def encoder_level(config: NetworkConfig, level: int, norm_frames: int | None) -> nn.Sequential:
    """Residual blocks, the first one from the channels of the level before, then the change of resolution."""
    channels = config.channels[level]
    c_in = config.channels[max(level - 1, 0)]
    parts = {"blocks": blocks_of(config, level, norm_frames, config.encoder_blocks[level], c_in)}
    if level < len(config.channels) - 1:
        neighbourhood = config.neighbourhood(level, norm_frames)
        parts["downsample"] = Downsample(channels, channels, config.downsampling[level], neighbourhood)
    return nn.Sequential(OrderedDict(parts))


class Encoder(nn.Module):
    """`T(x)` `(B, 2, F, N)` -> `(B, C, L)` with L = ceil(N / time_factor), each number within (-1, 1)."""

    def __init__(self, config: NetworkConfig, n_bins: int, norm_frames: int | None):
        super().__init__()
        self.centred = config.centred
        self.odd = config.odd
        self.neighbourhood = config.neighbourhood(0, norm_frames)
        coarsest, wide = config.channels[-1], config.bottleneck_channels
        latent_grid = Neighbourhood(norm_frames)
        self.conv_in = nn.Conv2d(2, config.channels[0], 3, padding=1)
        self.frequency_gain = nn.Parameter(torch.ones(1, 1, n_bins, 1))
        levels = range(len(config.channels))
        self.levels = nn.Sequential(*(encoder_level(config, level, norm_frames) for level in levels))
        self.norm_features = Norm(coarsest, latent_grid)
        self.conv_features = nn.Conv1d(coarsest * n_bins // config.frequency_factor, wide, 1)
        blocks = (ResBlock(nn.Conv1d, wide, wide, latent_grid) for _ in range(config.bottleneck_blocks))
        self.bottleneck = nn.Sequential(*blocks)
        self.norm_out = Norm(wide, latent_grid)
        self.conv_out = nn.Conv1d(wide, config.latent_channels, 1)

    def forward(self, spectrogram: Tensor) -> Tensor:
        if self.odd:
            positive, negative = self.raw(torch.cat((spectrogram, -spectrogram))).chunk(2)
            return torch.tanh((positive - negative) / 2)
        if not self.centred:
            return torch.tanh(self.raw(spectrogram))
        silence = torch.zeros_like(spectrogram[:1])
        h = self.raw(torch.cat((spectrogram, silence)))
        return torch.tanh(h[:-1] - h[-1:])

    def raw(self, spectrogram: Tensor) -> Tensor:
        h = self.conv_in(self.neighbourhood.ordered(spectrogram, self.training))
        gain = self.frequency_gain
        # The type is that of h under autocast, too, or maps of two types would be added, which is slow.
        h = (h.to(gain.dtype) * gain).to(h.dtype)
        h = self.levels(h)
        # Channel-major: index = channel * F_last + frequency.
        h = self.norm_features(h)
        h = h.reshape(h.shape[0], h.shape[1] * h.shape[2], -1)
        h = self.bottleneck(self.conv_features(h))
        return self.conv_out(self.norm_out(h, silu=True))


def pyramid_level(config: NetworkConfig, level: int, norm_frames: int | None) -> nn.ModuleDict:
    """Residual blocks, and behind them the change of resolution to the next finer level."""
    parts = {"blocks": blocks_of(config, level, norm_frames, config.encoder_blocks[level])}
    if level > 0:
        kind = config.downsampling[level - 1]
        parts["upsample"] = Upsample(config.channels[level], config.channels[level - 1], kind)
    return nn.ModuleDict(parts)


class LatentPyramid(nn.Module):
    """`z` `(B, C, L)` -> one feature map per level, finest first. It never sees the noise level."""

    def __init__(self, config: NetworkConfig, n_bins: int, norm_frames: int | None):
        super().__init__()
        wide = config.bottleneck_channels
        self.coarsest_shape = (n_bins // config.frequency_factor, config.channels[-1])
        self.neighbourhood = Neighbourhood(norm_frames)
        self.conv_in = nn.Conv1d(config.latent_channels, wide, 1)
        noise_channels = config.noise_channels if config.unused_projections else None
        self.bottleneck = nn.Sequential()
        for _ in range(config.bottleneck_blocks):
            self.bottleneck.append(ResBlock(nn.Conv1d, wide, wide, self.neighbourhood, noise_channels))
        if config.unused_projections:
            for block in self.bottleneck:
                block.noise_shift.requires_grad_(False)
        self.conv_features = nn.Conv1d(wide, math.prod(self.coarsest_shape), 1)
        levels = range(len(config.channels))
        self.levels = nn.ModuleList(pyramid_level(config, level, norm_frames) for level in levels)

    def forward(self, latents: Tensor) -> list[Tensor]:
        h = self.bottleneck(self.conv_in(latents))
        # Frequency-major, the opposite of the encoder's order: index = frequency * channels + channel.
        h = self.conv_features(h)
        h = h.reshape(h.shape[0], *self.coarsest_shape, -1).transpose(1, 2)
        h = self.neighbourhood.ordered(h, self.training)
        maps = []
        for level in reversed(self.levels):
            h = level.blocks(h)
            maps.append(h)
            if "upsample" in level:
                h = level.upsample(h)
        return maps[::-1]


def unet_level(
    config: NetworkConfig, level: int, norm_frames: int | None, resample: nn.Module | None
) -> nn.ModuleDict:
    """Residual blocks, each with its private 1x1 projection of the pyramid, then the change of resolution."""
    channels = config.channels[level]
    count = config.unet_blocks[level]
    projections = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(count))
    blocks = blocks_of(config, level, norm_frames, count, noise_channels=config.noise_channels)
    parts = {"projections": projections, "blocks": blocks}
    return nn.ModuleDict(parts if resample is None else parts | {"resample": resample})


def block_input(h: Tensor, project: nn.Conv2d, latent_map: Tensor, skip: Tensor | None = None) -> Tensor:
    """The sum, with the variance of one part, of h, the projected map of the latent and, on the way up, what
    skips the coarser levels; there, without gradients, in the place of h."""
    if torch.is_grad_enabled():
        projected = project(latent_map)
        total = torch.add(h, projected) if skip is None else torch.add(h, skip).add_(projected)
    else:
        total = h.clone() if skip is None else h.add_(skip)
        n_rows = kernels.tile_rows(total)
        for rows, of_map in zip(total.split(n_rows, 2), latent_map.split(n_rows, 2), strict=True):
            rows.add_(project(of_map))
    return total.mul_(0.5**0.5 if skip is None else 3**-0.5)


class Denoiser(nn.Module):
    """F_theta of equation 3: scaled noisy spectrogram, sigma and pyramid -> `(B, 2, F, N)`."""

    def __init__(self, config: NetworkConfig, n_bins: int, norm_frames: int | None):
        super().__init__()
        channels, noise = config.channels, config.noise_channels
        self.neighbourhood = config.neighbourhood(0, norm_frames)
        self.noise_embedding = NoiseEmbedding(noise)
        self.noise_mlp = mlp(noise)
        self.gain_in = mlp(noise, n_bins)
        self.gain_out = mlp(noise, n_bins)
        zeroed(self.gain_in[-1])
        zeroed(self.gain_out[-1])
        self.conv_in = nn.Conv2d(2, channels[0], 3, padding=1)
        self.down_levels = nn.ModuleList()
        self.up_levels = nn.ModuleList()
        for level in range(len(channels)):
            down = None
            if level < len(channels) - 1:
                down = Downsample(channels[level], channels[level + 1], config.downsampling[level])
            up = None
            if level > 0:
                up = Upsample(channels[level], channels[level - 1], config.downsampling[level - 1])
            self.down_levels.append(unet_level(config, level, norm_frames, down))
            self.up_levels.append(unet_level(config, level, norm_frames, up))
        self.project_out = nn.Conv2d(channels[0], channels[0], 1)
        self.norm_out = Norm(channels[0], self.neighbourhood)
        self.conv_out = zeroed(nn.Conv2d(channels[0], 2, 3, padding=1))

    def forward(self, x: Tensor, sigma: Tensor, pyramid: list[Tensor]) -> Tensor:
        """`x` `(B, 2, F, N)` already times c_in, N a multiple of the time factor; `sigma` `(B,)`."""
        raw_embedding = self.noise_embedding(sigma)
        embedding = self.noise_mlp(raw_embedding)
        gain_in = (1 + self.gain_in(raw_embedding))[:, None, :, None]
        gain_out = (1 + self.gain_out(raw_embedding))[:, None, :, None]
        h = self.conv_in(self.neighbourhood.ordered(x, self.training)) * gain_in
        skips = []
        for level, latent_map in zip(self.down_levels, pyramid, strict=True):
            for block, project in zip(level.blocks, level.projections, strict=True):
                h = block(block_input(h, project, latent_map), embedding)
                skips.append(h)
            if "resample" in level:
                h = level.resample(h)
        for level, latent_map in zip(reversed(self.up_levels), reversed(pyramid), strict=True):
            for block, project in zip(level.blocks, level.projections, strict=True):
                h = block(block_input(h, project, latent_map, skips.pop()), embedding)
            if "resample" in level:
                h = level.resample(h)
        h = self.norm_out(torch.add(h, self.project_out(pyramid[0])).mul_(0.5**0.5), silu=True)
        return self.conv_out(h * gain_out)


class Network(nn.Module):
    """Encoder, pyramid and denoiser of one autoencoder over `n_bins` frequency bins.

    `norm_frames`: longer maps are normalised frame by frame, over so many latent frames (`Norm`).
    """

    def __init__(self, config: NetworkConfig, n_bins: int, norm_frames: int | None = None):
        super().__init__()
        if n_bins % config.frequency_factor:
            factor = f"{config.frequency_factor}, the network's frequency factor"
            raise ValueError(f"{n_bins} bins do not divide by {factor}")
        self.config = config
        self.encoder = Encoder(config, n_bins, norm_frames)
        self.pyramid = LatentPyramid(config, n_bins, norm_frames)
        self.denoiser = Denoiser(config, n_bins, norm_frames)
        if config.unit_variance_init:
            self.keep_variance()

    def keep_variance(self) -> None:
        """Start with signals that keep their variance from spectrogram to latent to the denoiser's blocks,
        and with quiet noise. PyTorch's default weights divide the power by three at each layer without
        normalisation: a small budget is spent on finding the latent (benchmarks/desk_trials.csv)."""
        encoder, pyramid, denoiser = self.encoder, self.pyramid, self.denoiser
        path = [encoder.conv_in, encoder.conv_features, encoder.conv_out]
        path += [pyramid.conv_in, pyramid.conv_features]
        path += [level.downsample.conv for level in encoder.levels[:-1]]
        path += [level.upsample.conv for level in pyramid.levels[1:]]
        path += [block.shortcut for level in encoder.levels for block in level.blocks]
        for level in (*denoiser.down_levels, *denoiser.up_levels):
            path += level.projections
            path += [level.resample.conv] if "resample" in level else []
        for layer in (*path, denoiser.project_out):
            if not isinstance(layer, nn.Identity):
                nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            denoiser.conv_in.weight.mul_(QUIET_NOISE)
