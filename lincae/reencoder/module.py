"""The Re-Encoder (Bralios, Smaragdis and Casebeer, WASPAA 2025): audio processing on latents alone.

    module = ReEncoder.load("data/checkpoints/reencoder/lin-cae/bandwidth-m-gan.safetensors")
    wide = model.decode(module.process(model.encode(narrow)), length=narrow.shape[-1])

What is not in the paper: docs/reencoder.md. Beside the axes of `lincae.interface`, `H` are the numbers of a
condition.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lincae.checkpoints import (
    FORMAT_VERSION,
    from_dict,
    load_strictly,
    opened,
    read_checkpoint,
    write_weights,
)
from lincae.interface import AutoencoderLike, check_fields, check_finite, check_latents
from lincae.interop.bundled import BUNDLED, check_hash
from lincae.latents.store import check_description, check_same_model, describe
from lincae.machine import generator, resolve_device
from lincae.vae.convnext import AdaptiveLayerNorm, ConvNeXtBlock

KIND = "reencoder"  # as files say it
MODULES = BUNDLED / "reencoder"  # what comes with the package
TASKS = ("bandwidth", "stereo")
LAYOUTS = ("left_right", "mid_side")
START_LOG_VARIANCE = -2.0  # that a condition encoder starts with
START_GAIN = 0.2  # standard deviation of AdaLN's weights at the start
# What a configuration may state: a file is not to make a network that nothing could hold.
LARGEST = dict.fromkeys(("latent_channels", "hidden", "expansion", "kernel", "condition"), 2**16)
LARGEST |= dict.fromkeys(("blocks", "condition_blocks"), 2**7)


def check_task(task: str) -> str:
    """Return `task` as it is. Raises ValueError for an unknown one."""
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    return task


@dataclass(frozen=True)
class ReEncoderConfig:
    """All that defines a module but its weights. The defaults are the paper's M for bandwidth extension.

    `latent_channels`: C of the autoencoder. `hidden`, `blocks`: width and number of ConvNeXt-V2 blocks;
    `expansion`: of the 1x1 layers within one; `kernel`: of their depth-wise convolution. `condition`: H of
    mono-to-stereo; `condition_blocks`: of its encoder. `layout` of mono-to-stereo: "left_right", the paper's,
    predicts both latents; "mid_side" predicts that of the side, and takes the input for that of the mid,
    which is exact where the encoder is linear.
    """

    task: str = "bandwidth"
    latent_channels: int = 64
    hidden: int = 768
    blocks: int = 8
    expansion: int = 2
    kernel: int = 7
    condition: int = 64
    condition_blocks: int = 2
    layout: str = "left_right"

    def __post_init__(self):
        """Raises ValueError for unknown names and sizes out of range."""
        check_fields(self)
        check_task(self.task)
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {LAYOUTS}, got {self.layout!r}")
        for name, most in LARGEST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in 1..{most}, got {getattr(self, name)}")
        if self.hidden < self.latent_channels:  # it could not start as the identity
            sizes = f"latent_channels, {self.latent_channels}, got {self.hidden}"
            raise ValueError(f"hidden must be at least {sizes}")


SIZES = {
    "s": {"hidden": 512, "blocks": 4},
    "m": {"hidden": 768, "blocks": 8},
    "desk-s": {"hidden": 32, "blocks": 2, "condition": 16},
    "desk-m": {"hidden": 64, "blocks": 4, "condition": 16},
}


def unit_variance(block: ConvNeXtBlock) -> None:
    """Weights that keep unit variance. ConvNeXt's 0.02 does so at widths of a thousand; a narrow block would
    be almost linear with it, and slow to leave its start."""
    for layer in (block.depthwise, block.expand, block.contract):
        nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)


class Trunk(nn.Module):
    """1x1 convolution, ConvNeXt-V2 blocks, 1x1 convolution: `(B, in, L)` to `(B, out, L)`."""

    def __init__(
        self, channels_in: int, channels_out: int, config: ReEncoderConfig, blocks: int, condition=None
    ):
        super().__init__()
        width = config.hidden
        self.enter = nn.Conv1d(channels_in, width, 1)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, config.expansion * width, config.kernel, condition) for _ in range(blocks)
        )
        self.leave = nn.Conv1d(width, channels_out, 1)

    def start_as_copies(self, copies: int) -> None:
        """The output becomes the input, `copies` times; without any, zero.

        The first bias is random, but orthogonal to the columns, so that the last layer does not see it.
        Beside it a block's LayerNorm does not divide out the level of a frame, which latents that scale like
        the sound need.
        """
        nn.init.orthogonal_(self.enter.weight)
        columns = self.enter.weight.detach().squeeze(-1)
        with torch.no_grad():
            self.leave.weight.copy_(torch.cat([columns.T] * copies)[..., None] if copies else torch.zeros(()))
            bias = torch.randn(len(columns))
            self.enter.bias.copy_(bias - columns @ (columns.T @ bias))
        nn.init.zeros_(self.leave.bias)
        for block in self.blocks:
            unit_variance(block)
            nn.init.zeros_(block.contract.weight)
            if isinstance(block.norm, AdaptiveLayerNorm):  # from zero, neither it nor `contract` would move
                nn.init.normal_(block.norm.project.weight, std=START_GAIN)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.leave(x)


class ConditionEncoder(nn.Module):
    """G of section 2.3: latents of left and right `(B, 2, C, L)` to the mean and log variance `(B, H)` of c.

    Blocks, then the mean over time. It starts as random features of unit size, bent enough for their means to
    tell levels apart, and with a variance below the prior's: from a mean that says nothing, or that the noise
    of equation 5 drowns, the module would not learn to use a condition.
    """

    def __init__(self, config: ReEncoderConfig):
        super().__init__()
        self.trunk = Trunk(2 * config.latent_channels, 2 * config.condition, config, config.condition_blocks)
        leave = self.trunk.leave
        for block in self.trunk.blocks:
            unit_variance(block)
        with torch.no_grad():
            leave.weight[: config.condition].normal_(std=4 * config.hidden**-0.5)
            leave.weight[config.condition :].zero_()
            leave.bias[: config.condition].zero_()
            leave.bias[config.condition :].fill_(START_LOG_VARIANCE)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.trunk(z.flatten(1, 2)).mean(-1).chunk(2, -1)
        return mean, log_variance


class ReEncoder(nn.Module):
    """Latents of one frozen autoencoder to latents of the same: of a band-limited signal to those of the full
    band, of a mono signal to those of left and right.

    The network of section 3.1.2, and for mono-to-stereo `gains` of the input's channels in either output.
    `autoencoder` says whose latents these are (`store.describe`), `latent_std` is the standard deviation of
    the training targets, `metadata` a JSON-able dict that travels in the file.
    """

    def __init__(
        self,
        config: ReEncoderConfig,
        autoencoder: dict[str, Any],
        latent_std: float = 1.0,
        metadata: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.config = config
        self.autoencoder = autoencoder
        self.latent_std = latent_std
        self.metadata = metadata or {}
        copies = {"left_right": 2, "mid_side": 0}[config.layout] if self.stereo else 1
        outputs = max(1, copies) * config.latent_channels
        condition = config.condition if self.stereo else None
        self.trunk = Trunk(config.latent_channels, outputs, config, config.blocks, condition)
        self.trunk.start_as_copies(copies)
        if self.stereo:
            self.condition_encoder = ConditionEncoder(config)
            self.gains = nn.Linear(config.condition, outputs)
            nn.init.zeros_(self.gains.weight)
            nn.init.zeros_(self.gains.bias)

    @property
    def stereo(self) -> bool:
        return self.config.task == "stereo"

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Latents `(B, C, L)` to `(B, C, L)`; or with a condition `(B, H)` to left and right `(B, 2, C, L)`.

        Differentiable, without checks of the values. Raises ValueError for another shape, fewer frames than
        the kernel, a condition that is missing, empty or unasked for.
        """
        config = self.config
        if z.ndim != 3 or z.shape[1] != config.latent_channels or len(z) == 0:
            raise ValueError(f"latents must be (B, {config.latent_channels}, L), got {tuple(z.shape)}")
        self._check_frames(z)
        if not self.stereo:
            if condition is not None:
                raise ValueError("bandwidth extension takes no condition")
            return self.trunk(z / self.latent_std) * self.latent_std
        if condition is None or tuple(condition.shape) != (len(z), config.condition):
            got = "none" if condition is None else tuple(condition.shape)
            raise ValueError(f"the condition must be (B, H) = ({len(z)}, {config.condition}), got {got}")
        out = self.trunk(z / self.latent_std, condition) * self.latent_std
        gains = self.gains(condition).unflatten(1, (-1, config.latent_channels))
        out = out.unflatten(1, gains.shape[1:]) + gains[..., None] * z[:, None]
        if config.layout == "mid_side":
            return torch.stack([z + out[:, 0], z - out[:, 0]], 1)
        return out

    def _check_frames(self, z: Tensor) -> None:
        kernel = self.config.kernel
        if z.shape[-1] < kernel:
            fix = f"give {kernel / self.autoencoder['latent_rate']:.3f} s or more"
            raise ValueError(f"{z.shape[-1]} latent frames are fewer than the kernel, {kernel}: {fix}")

    def posterior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance `(B, H)` of the condition of stereo latents `(B, 2, C, L)`.

        Raises ValueError for another shape, fewer frames than the kernel, and for bandwidth extension.
        """
        if not self.stereo:
            raise ValueError("bandwidth extension has no condition")
        channels = self.config.latent_channels
        if z.ndim != 4 or tuple(z.shape[1:3]) != (2, channels) or len(z) == 0:
            wanted = f"stereo latents (B, 2, {channels}, L)"
            raise ValueError(f"a condition is of {wanted}, got {tuple(z.shape)}: mono has no left and right")
        self._check_frames(z)
        return self.condition_encoder(z / self.latent_std)

    # -------- inference

    def prior(self, items: int, seed: int = 0) -> Tensor:
        """Conditions `(items, H)` from the prior N(0, I): item i is a pure function of (seed, i)."""
        size = self.config.condition
        drawn = [torch.randn(size, generator=generator(seed, i), dtype=torch.float32) for i in range(items)]
        return torch.stack(drawn).to(self.device)

    @torch.no_grad()
    def oracle(self, z: Tensor) -> Tensor:
        """The condition `(B, H)` of stereo latents `(B, 2, C, L)`: the posterior's mean. Raises as
        `posterior`; ValueError for latents that are not finite."""
        mean, _ = self.posterior(self._own(z))
        check_finite(z, "stereo latents", ("item", "side", "channel", "frame"))
        return mean.float()

    @torch.no_grad()
    def process(self, z: Tensor, condition: Tensor | None = None, seed: int = 0) -> Tensor:
        """Latents `(B, C, L)` to `(B, C, L)`, or of mono-to-stereo to left and right `(B, 2, C, L)`.

        Without a condition mono-to-stereo draws one for each item from the prior, by `seed`. Raises as
        `forward`; ValueError for latents and conditions that are not finite.
        """
        check_latents(z, self.config.latent_channels)
        if self.stereo and condition is None:
            condition = self.prior(len(z), seed)
        if condition is not None:
            check_finite(condition.flatten(), "the condition", ("number",))
            condition = self._own(condition)
        return self(self._own(z), condition).float()

    def _own(self, values: Tensor) -> Tensor:
        """On the device and in the number type of the weights, which may be `.half()` or `.double()`."""
        return values.to(next(self.parameters()))

    def check_model(self, model: AutoencoderLike) -> None:
        """Raises LatentFileError, naming both, unless the module was trained on latents of `model`."""
        check_same_model(self.autoencoder, describe(model), f"the module of {self.autoencoder['name']}")

    # -------- files

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write one safetensors file with the configuration in its header, atomically; returns the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        description = {
            "format_version": FORMAT_VERSION,
            "kind": KIND,
            "reencoder": dataclasses.asdict(self.config),
            "autoencoder": self.autoencoder,
            "latent_std": self.latent_std,
            "metadata": self.metadata,
        }
        write_weights(path, json.dumps(description), self, dtype)
        return path

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> "ReEncoder":
        """A module on a device, ready for use.

        Raises FileNotFoundError; ValueError, naming the file, for a damaged one, another kind of checkpoint,
        unknown settings, tensors that do not fit, and a bundled file that is not the one of its card.
        """
        path = Path(path)
        if path.resolve().is_relative_to(BUNDLED):
            folder = path.parent
            check_hash(path, f"`python tools/bundle.py --reencoder {folder}` makes a card of what is there")
        description, tensors = read_checkpoint(path, KIND)
        config = from_dict(ReEncoderConfig, description.get("reencoder"), f"{path}: reencoder")
        owner = description.get("autoencoder")
        check_description(owner, path)
        latent_std = description.get("latent_std")
        if type(latent_std) not in (int, float) or not 0 < latent_std < math.inf:
            raise ValueError(f"{path}: latent_std must be a number > 0, got {latent_std!r:.80}")
        with torch.device("meta"):
            load_strictly(cls(config, owner), tensors, str(path))

        module = cls(config, owner, latent_std, description.get("metadata"))
        module.load_state_dict(tensors)
        return module.eval().to(resolve_device(device))


def stereo_modules(model: AutoencoderLike, folder: str | Path = MODULES) -> dict[str, Path]:
    """Files below `folder` of the mono-to-stereo modules of a model, by name, such as "left_right".

    Their headers decide, not names of folders. A file in a folder of the model's name that cannot be read is
    among them: loading it says what is wrong.
    """
    fingerprint = model.fingerprint()
    found: dict[str, Path] = {}
    for path in sorted(Path(folder).rglob("stereo-*.safetensors")):
        try:
            with opened(path) as (_, description):
                owner = description.get("autoencoder") or {}
                own = owner.get("fingerprint") == fingerprint
        except (ValueError, OSError):
            own = path.parent.name == Path(model.name).name
        if own:
            found.setdefault(path.stem.removeprefix("stereo-"), path)
    return found


def modules_in(folder: str | Path, task: str, device: str = "auto") -> dict[str, ReEncoder]:
    """The modules of a task in a folder, by name: `bandwidth-m-gan.safetensors` is "m-gan".

    Raises ValueError for an unknown task; FileNotFoundError where there are none, naming the folder.
    """
    paths = sorted(Path(folder).glob(f"{check_task(task)}-*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no {task}-*.safetensors: `make reencoder` trains them")
    return {path.stem.removeprefix(f"{task}-"): ReEncoder.load(path, device) for path in paths}
