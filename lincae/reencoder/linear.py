"""Any frozen autoencoder made linear by two small maps on its latents.

    model = lincae.load("desk/m2l", linear="linear/desk-m2l")  # or the file of another pair
    both = model.decode(model.encode(u) + model.encode(v))

`phi` takes latents z to linear latents w, which add and scale like the sound; `psi` takes them back. Three
designs: "coupling", where psi is the exact inverse of phi, so that reconstruction is that of the frozen
autoencoder by construction; "residual", where both are networks of their own; and either of them `odd`,
phi(-z) = -phi(z). All start as the identity.

A level is a factor: every network says log gains besides shifts, and is told the log levels of its input near
a frame and over `norm_frames` around it. Nearest in print: Re-Bottleneck (Bralios et al., arXiv 2507.07867),
which restructures latents of a frozen autoencoder for order, semantics and filtering, not for linearity.

The axis legend is that of `lincae.interface`.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lincae.checkpoints import (
    FORMAT_VERSION,
    content_fingerprint,
    from_dict,
    load_strictly,
    read_checkpoint,
    weights_of,
    write_weights,
)
from lincae.interface import AutoencoderLike, check_fields, check_latents
from lincae.interop import models
from lincae.interop.bundled import BUNDLED, check_hash
from lincae.latents.store import check_description, check_same_model, describe
from lincae.machine import resolve_device

KIND = "linear"  # as files say it
DESIGNS = ("coupling", "residual")
NEAR_FRAMES = 9  # over which a level is near a frame
QUIETEST = 1e-3  # level, in standard deviations of the latents, below which all is alike
SILENCE = 1e-6  # level of silence
LARGEST_LOG_GAIN = 4.0
STEEPEST = 0.98  # share of the bound up to which atanh is taken; beyond, its tangent
WIDEST = 2**12
DEEPEST = 2**6
LARGEST = dict.fromkeys(("latent_channels", "hidden", "kernel"), WIDEST)
LARGEST |= dict.fromkeys(("layers", "blocks", "expansion"), DEEPEST)


@dataclass(frozen=True)
class LinearConfig:
    """All that defines a pair but its weights.

    `design`, `odd`: see the module docstring; odd maps cost twice as much. `latent_channels`: C of the
    autoencoder, of which the linear space has `expansion` times as many. `layers`: couplings in a row.
    `hidden`, `blocks`, `kernel`: width of every network, its residual convolutions and their frames.
    `norm_frames`: over which levels are taken, around each frame.
    """

    design: str = "coupling"
    odd: bool = False
    latent_channels: int = 64
    expansion: int = 1
    layers: int = 6
    hidden: int = 24
    blocks: int = 1
    kernel: int = 7
    norm_frames: int = 256

    def __post_init__(self):
        """Raises ValueError for an unknown design and sizes out of range."""
        check_fields(self)
        if self.design not in DESIGNS:
            raise ValueError(f"design must be one of {DESIGNS}, got {self.design!r}")
        for name, most in LARGEST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in 1..{most}, got {getattr(self, name)}")
        if self.norm_frames < 1 or self.kernel % 2 == 0:
            raise ValueError(f"norm_frames must be positive and kernel odd, got {self}")
        if self.design == "coupling" and self.linear_channels < 2:
            raise ValueError("a coupling needs two latent channels or more, got 1: use design residual")

    @property
    def linear_channels(self) -> int:
        """Channels of the linear space."""
        return self.expansion * self.latent_channels

    @property
    def context_frames(self) -> int:
        """Latent frames on each side that a frame of w depends on; nothing here is causal."""
        per_network = (self.blocks + 1) * (self.kernel // 2) + max(self.norm_frames, NEAR_FRAMES)
        return per_network * (self.layers if self.design == "coupling" else 1)


# ---------------------------------------------------------------- parts


class Network(nn.Module):
    """Latents `(B, A, L)` to log gains and shifts `(B, O, L)` for others, zero at the start.

    With `odd`, gains are even and shifts odd functions of the latents.
    """

    def __init__(self, channels: int, outputs: int, config: LinearConfig):
        super().__init__()
        self.odd = config.odd
        self.norm_frames = config.norm_frames
        widths = [channels + 2, *[config.hidden] * (config.blocks + 1)]
        self.layers = nn.ModuleList(
            nn.Conv1d(widths[k], widths[k + 1], config.kernel, padding=config.kernel // 2)
            for k in range(config.blocks + 1)
        )
        self.leave = nn.Conv1d(config.hidden, 2 * outputs, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        power = x.square().mean(1, keepdim=True) + SILENCE**2  # a root has no gradient at zero
        around = mean_around(power, self.norm_frames).sqrt()
        near = mean_around(power, NEAR_FRAMES).sqrt()
        log_around = (around + QUIETEST).log()
        levels = torch.cat((log_around, (near + QUIETEST).log() - log_around), 1)
        shape = x / (around + QUIETEST)
        if self.odd:
            gains, shifts = self._of(torch.cat((shape, -shape)), levels.repeat(2, 1, 1))
            log_gain = gains.chunk(2)[0] + gains.chunk(2)[1]
            shift = shifts.chunk(2)[0] - shifts.chunk(2)[1]
        else:
            log_gain, shift = self._of(shape, levels)
        return LARGEST_LOG_GAIN * torch.tanh(log_gain / LARGEST_LOG_GAIN), around * shift

    def _of(self, shape: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        h = F.silu(self.layers[0](torch.cat((shape, levels), 1)))
        for layer in self.layers[1:]:
            h = h + F.silu(layer(h))
        return self.leave(h).chunk(2, 1)


def mean_around(x: Tensor, frames: int) -> Tensor:
    """The mean of `(B, 1, L)` over so many frames around each one, near the ends over the first or last."""
    n_frames = x.shape[-1]
    if n_frames <= frames:
        return x.mean(-1, keepdim=True).expand(-1, -1, n_frames)
    means = F.avg_pool1d(x, frames, 1)
    first = (torch.arange(n_frames, device=x.device) - frames // 2).clamp(0, n_frames - frames)
    return means[..., first]


class Curve(nn.Module):
    """atanh(k z) / k for every channel, which undoes the tanh that many encoders end in; k is learned.

    From STEEPEST of the bound on, it goes on as its tangent: sums of latents may leave the bound.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.squared = nn.Parameter(torch.full((channels, 1), 1e-4))

    def _constants(self) -> tuple[Tensor, Tensor, Tensor]:
        k = self.squared.clamp_min(1e-8).sqrt()
        corner = torch.tensor(STEEPEST, device=k.device, dtype=k.dtype)
        return k, torch.atanh(corner), 1 / (1 - corner.square())

    def forward(self, z: Tensor) -> Tensor:
        k, _, slope = self._constants()
        inside = (k * z).clamp(-STEEPEST, STEEPEST)
        return (torch.atanh(inside) + slope * (k * z - inside)) / k

    def inverse(self, w: Tensor) -> Tensor:
        k, height, slope = self._constants()
        inside = (k * w).clamp(-height, height)
        return (torch.tanh(inside) + (k * w - inside) / slope) / k


class Coupling(nn.Module):
    """In an orthonormal basis `(C, C)`, one half of the channels scales and shifts the other."""

    def __init__(self, config: LinearConfig):
        super().__init__()
        self.told = config.linear_channels // 2
        self.network = Network(self.told, config.linear_channels - self.told, config)

    def forward(self, x: Tensor, basis: Tensor, inverse: bool = False) -> Tensor:
        x = basis @ x
        told = x[:, : self.told]
        rest = x[:, self.told :]
        log_gain, shift = self.network(told)
        rest = (rest - shift) * (-log_gain).exp() if inverse else rest * log_gain.exp() + shift
        return basis.T @ torch.cat((told, rest), 1)


class Flow(nn.Module):
    """phi of the design "coupling"; `inverse` is psi. `centre` `(C, 1)`: the latents of silence, which phi
    takes to zero; `latent_std`: what the latents' deviations are divided by within. Channels that the linear
    space has beyond those of the latents enter as zeros, and psi leaves them out at the end."""

    def __init__(self, config: LinearConfig):
        super().__init__()
        channels = config.latent_channels
        wide = config.linear_channels
        self.beyond = wide - channels
        self.register_buffer("centre", torch.zeros(channels, 1))
        self.register_buffer("latent_std", torch.ones(()))
        self.curve = Curve(channels)
        self.couplings = nn.ModuleList(Coupling(config) for _ in range(config.layers))
        # The exponential of a skew matrix of such entries is a rotation far from the identity.
        self.turns = nn.Parameter(torch.randn(config.layers, wide, wide))

    def forward(self, z: Tensor) -> Tensor:
        x = F.pad(self.curve((z - self.centre) / self.latent_std), (0, 0, 0, self.beyond))
        for coupling, basis in zip(self.couplings, self._bases(), strict=True):
            x = coupling(x, basis)
        return x * self.latent_std

    def inverse(self, w: Tensor) -> Tensor:
        x = w / self.latent_std
        for coupling, basis in zip(reversed(self.couplings), self._bases().flip(0), strict=True):
            x = coupling(x, basis, inverse=True)
        return self.curve.inverse(x[:, : len(self.centre)]) * self.latent_std + self.centre

    def _bases(self) -> Tensor:
        return torch.matrix_exp(self.turns - self.turns.mT)


class Inverse(nn.Module):
    """psi of the design "coupling": the flow backwards, with the flow's weights."""

    def __init__(self, flow: Flow):
        super().__init__()
        self.flow = flow

    def forward(self, w: Tensor) -> Tensor:
        return self.flow.inverse(w)


class Residual(nn.Module):
    """phi, or if `back` psi, of the design "residual": gains and shifts of all channels, from all of them."""

    def __init__(self, config: LinearConfig, back: bool):
        super().__init__()
        self.back = back
        self.register_buffer("centre", torch.zeros(config.latent_channels, 1))
        self.register_buffer("latent_std", torch.ones(()))
        self.curve = Curve(config.latent_channels)
        self.beyond = config.linear_channels - config.latent_channels
        sizes = (config.latent_channels, config.linear_channels)
        self.network = Network(*(sizes[::-1] if back else sizes), config)

    def forward(self, z: Tensor) -> Tensor:
        x = z / self.latent_std if self.back else self.curve((z - self.centre) / self.latent_std)
        log_gain, shift = self.network(x)
        if self.back:
            x = x[:, : len(self.centre)] * log_gain.exp() + shift
            return self.curve.inverse(x) * self.latent_std + self.centre
        x = F.pad(x, (0, 0, 0, self.beyond)) * log_gain.exp() + shift
        return x * self.latent_std


# ---------------------------------------------------------------- the pair


class LinearPair(nn.Module):
    """`phi` and `psi` for the latents of one autoencoder, which `autoencoder` describes (`store.describe`).

    `metadata` is a JSON-able dict that travels in the file.
    """

    def __init__(
        self, config: LinearConfig, autoencoder: dict[str, Any], metadata: dict[str, Any] | None = None
    ):
        super().__init__()
        self.config = config
        self.autoencoder = autoencoder
        self.metadata = metadata or {}
        if config.design == "coupling":
            self.phi = Flow(config)
        else:
            self.phi = Residual(config, back=False)
            self.back = Residual(config, back=True)

    @property
    def psi(self) -> nn.Module:
        return Inverse(self.phi) if self.config.design == "coupling" else self.back

    @property
    def device(self) -> torch.device:
        return self.phi.centre.device

    @torch.no_grad()
    def fit_start(self, z: Tensor, silence: Tensor) -> None:
        """Take the deviation of latents `(B, C, L)` of sounds, and those of silence, as units and as zero."""
        for half in self.modules():
            if isinstance(half, Flow | Residual):
                half.latent_std.fill_(max((z - silence.mean(-1, keepdim=True)).std().item(), 1e-8))
                half.centre.copy_(silence.mean((0, 2))[:, None])

    @torch.no_grad()
    def process(self, z: Tensor, inverse: bool = False) -> Tensor:
        """Latents `(B, C, L)` into the linear space, or with `inverse` back. Raises as `check_latents`."""
        check_latents(z, self.config.linear_channels if inverse else self.config.latent_channels)
        return (self.psi if inverse else self.phi)(z.to(self.device).float())

    def linear_description(self) -> dict[str, Any]:
        """What linear latents on disk say of their model, as `linearise` of it would describe itself."""
        known = self.autoencoder
        fingerprint = _fingerprint(known["fingerprint"], self.phi, self.psi)
        return known | {"name": f"{known['name']}+linear", "fingerprint": fingerprint}

    # -------- files

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write one safetensors file with the configuration in its header, atomically; returns the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        description = {
            "format_version": FORMAT_VERSION,
            "kind": KIND,
            "linear": dataclasses.asdict(self.config),
            "autoencoder": self.autoencoder,
            "metadata": self.metadata,
        }
        write_weights(path, json.dumps(description), self, dtype)
        return path

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> "LinearPair":
        """A pair from a file, or a bundled one by its name such as "linear/desk-m2l", ready on a device.

        Raises FileNotFoundError; ValueError, naming the file, for a damaged one, another kind of checkpoint,
        unknown settings, tensors that do not fit, and a bundled file that is not the one of its card.
        """
        path = Path(path)
        bundled = BUNDLED / f"{path}.safetensors"
        if bundled.is_file() and not path.exists():
            path = bundled
        if path.resolve().is_relative_to(BUNDLED):
            check_hash(
                path, f"`python tools/bundle.py --reencoder {path.parent}` makes a card of what is there"
            )
        description, tensors = read_checkpoint(path, KIND)
        config = from_dict(LinearConfig, description.get("linear"), f"{path}: linear")
        owner = description.get("autoencoder")
        check_description(owner, path)
        with torch.device("meta"):
            load_strictly(cls(config, owner), tensors, str(path))
        pair = cls(config, owner, description.get("metadata"))
        pair.load_state_dict(tensors)
        return pair.eval().to(resolve_device(device))


# ---------------------------------------------------------------- a model like any other


def linearise(model: AutoencoderLike, phi: nn.Module, psi: nn.Module) -> "Linearised":
    """A frozen autoencoder between two maps of its latents, as an `AutoencoderLike`."""
    return Linearised(model, phi, psi)


def load(
    name_or_path: str | Path, device: str = "auto", *, linear: str | Path | None = None, **settings: Any
) -> AutoencoderLike:
    """`lincae.interop.models.load`, and around the model the pair `linear`, if one is named: a file, or the
    name of one that ships with the package, such as "linear/desk-m2l".

    Raises as it does and as `LinearPair.load`; LatentFileError, naming both, for a pair of another model.
    """
    model = models.load(name_or_path, device, **settings)
    if linear is None:
        return model
    pair = LinearPair.load(linear, device)
    check_same_model(pair.autoencoder, describe(model), linear)
    return linearise(model, pair.phi, pair.psi)


class Linearised:
    """What `linearise` returns: w = phi(Enc(x)), and Dec(psi(w)). The autoencoder is left as it is."""

    def __init__(self, model: AutoencoderLike, phi: nn.Module, psi: nn.Module):
        self.model = model
        self.phi = phi.eval()
        self.psi = psi.eval()
        self.name = f"{model.name}+linear"
        self.sample_rate = model.sample_rate
        self.latent_rate = model.latent_rate

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio `(B, T)` to linear latents `(B, C, L)`. Raises as the model's."""
        return self.phi(self.model.encode(audio))

    @torch.no_grad()
    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Linear latents `(B, C, L)` to audio `(B, length)`. Raises as the model's."""
        check_latents(z, name=f"latents of {self.name}")
        own = z.to(next(self.psi.parameters()))
        return self.model.decode(self.psi(own), length=length, seed=seed)

    def fingerprint(self) -> str:
        """A sha256 (hex) that changes with the autoencoder, with phi and with psi."""
        return _fingerprint(self.model.fingerprint(), self.phi, self.psi)


def _fingerprint(model: str, phi: nn.Module, psi: nn.Module) -> str:
    tensors = {}
    for name, half in (("phi", phi), ("psi", psi)):
        tensors |= {f"{name}.{key}": value for key, value in weights_of(half).items()}
    return content_fingerprint("linearised", {"autoencoder": model}, tensors)
