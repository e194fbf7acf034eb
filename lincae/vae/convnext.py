"""ConvNeXt-V2 blocks over time (Woo et al., CVPR 2023), shared by the spectral VAE and the Re-Encoder.

Maps are `(B, C, L)`: batch, channels, frames; a condition is `(B, K)`, one vector for all frames.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lincae.machine.kernels import sums_around


class GlobalResponseNorm(nn.Module):
    """GRN of ConvNeXt-V2 over `(B, L, C)`: channels compete by their L2 norms over all frames, or over so
    many as `frames` around each one. Starts as identity."""

    def __init__(self, channels: int, frames: int | None = None):
        super().__init__()
        self.frames = frames
        self.gain = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def norm(self, x: Tensor) -> Tensor:
        """L2 norms `(B, 1 or L, C)` over time."""
        x = x.float()
        n_frames = x.shape[1]
        width = self.frames or n_frames
        if n_frames <= width:
            return x.norm(dim=1, keepdim=True)
        energy = sums_around(x.square().mT, width).mT.contiguous()
        return energy.clamp_min(0).sqrt().float()

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm(x)
        response = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        return x + self.gain * (x * response.to(x.dtype)) + self.bias


class AdaptiveLayerNorm(nn.Module):
    """LayerNorm over channels of `(B, L, C)` whose gain and bias come from a condition `(B, K)` (AdaLN). It
    starts as the usual LayerNorm."""

    def __init__(self, channels: int, condition_channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.project = nn.Linear(condition_channels, 2 * channels)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, bias = self.project(condition).unsqueeze(1).chunk(2, dim=-1)
        return self.norm(x) * (1 + gain) + bias


class ConvNeXtBlock(nn.Module):
    """Depth-wise convolution, LayerNorm, two 1x1 layers with GELU and GRN and `hidden` channels between,
    around a residual connection; `(B, C, L)` in and out. With `condition_channels` the norm is an AdaLN, and
    `forward` needs a condition. `norm_frames`: see `GlobalResponseNorm`."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel: int = 7,
        condition_channels: int | None = None,
        norm_frames: int | None = None,
    ):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        self.depthwise = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        if condition_channels is None:
            self.norm = nn.LayerNorm(channels, eps=1e-6)
        else:
            self.norm = AdaptiveLayerNorm(channels, condition_channels)
        self.expand = nn.Linear(channels, hidden)
        self.respond = GlobalResponseNorm(hidden, norm_frames)
        self.contract = nn.Linear(hidden, channels)
        for layer in (self.depthwise, self.expand, self.contract):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if (condition is not None) != isinstance(self.norm, AdaptiveLayerNorm):
            need = "needs" if condition is None else "was built without"
            raise ValueError(f"this ConvNeXtBlock {need} a condition")
        y = self.depthwise(x).transpose(1, 2)
        y = self.norm(y) if condition is None else self.norm(y, condition)
        y = self.contract(self.respond(F.gelu(self.expand(y))))
        return x + y.transpose(1, 2)
