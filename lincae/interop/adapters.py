"""Any object that encodes and decodes, as the `AutoencoderLike` that reports and notebooks take.

What cannot be measured is refused, with the reason. What has two readings (channels, posteriors, several
tensors) is stated. Axis legend: see `lincae.interface`.
"""

import contextlib
import logging
import math
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lincae.checkpoints import content_fingerprint
from lincae.data.audio import resample
from lincae.interop.checked import Checked
from lincae.interop.identity import UnknownContentError, content_hash
from lincae.machine import generator, resolve_device

LATENTS = ("deterministic", "mean", "sample")
PROBE_S = (0.5, 1.0)
"""Lengths of the noise that a new adapter is tried with."""
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)
LAYOUTS = (
    ". channels=None is for models that take audio (B, T), channels=1 for (B, 1, T), channels=2 for stereo"
    " models; multiple=... pads the length"
)
DISCRETE = (
    "indices cannot be added or scaled; hand over what the encoder gives to the quantiser"
    " (lincae.interop.codecs does so for EnCodec and DAC)"
)

log = logging.getLogger(__name__)


class Adapted(Checked):
    """An `AutoencoderLike` of anything with `encode` and `decode`: an nn.Module (moved to `device`, used in
    eval mode without gradients), another object, or two callables of tensors or arrays.

        model = adapt(my_model, sample_rate=44100, channels=2)
        model = adapt(encode=lambda x: vae.encode(x)[0], decode=vae.decode, sample_rate=16000, channels=1)

    - `channels`: None: the model takes (B, T); n: it takes (B, n, T), hears the mono signal in every channel,
      and the mean of its output channels is the result.
    - `latent`: "deterministic"; of a stochastic encoder "mean", the mode or mean of the distribution that
      `encode` returns (or its `latent_dist`), or "sample", a draw with seed 0.
    - `join`: latents of several tensors (B, C_i, L) become one, (B, sum C_i, L), and are parted for `decode`.
      Not for (mean, log-variance): there `encode=lambda x: model.encode(x)[0]` is meant.
    - `multiple`: audio is padded with silence at its end to a multiple of so many samples; default: the hop.
    - `output_rate`: the rate of a model's output where it is another: it is resampled to `sample_rate`.
    - `version`: text that stands for what `encode` and `decode` do, where their content cannot be told.

    Latents (B, C, F, L) are taken as (B, C F, L). Output longer than asked for is cut at its end.

    A tenth of full scale of noise goes through the model at once. Raises TypeError for objects that do not
    encode and decode; ValueError, saying what and why, for models that fail on it, discrete or complex
    latents, several tensors, posteriors and random numbers that are not stated, latents without a time axis
    or with a hop that is none, and output of another length or rate.
    """

    def __init__(
        self,
        model: Any = None,
        sample_rate: int = 0,
        *,
        encode: Callable[[Tensor], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
        name: str = "",
        channels: int | None = None,
        latent: str = "deterministic",
        join: bool = False,
        multiple: int | None = None,
        output_rate: int | None = None,
        version: str | None = None,
        device: str | torch.device = "auto",
    ):
        self._encode = encode or getattr(model, "encode", None)
        self._decode = decode or getattr(model, "decode", None)
        functions = {"encode": self._encode, "decode": self._decode}
        lacking = " and ".join(what for what, function in functions.items() if not callable(function))
        if lacking:
            raise TypeError(f"{type(model).__name__} has no {lacking}: pass encode=... and decode=...")
        self.stated = {"sample_rate": sample_rate, "output_rate": output_rate or sample_rate}
        self.stated |= {"channels": channels, "latent": latent, "join": join, "multiple": multiple}
        self._check_stated()

        self.name = name or getattr(model, "name", "") or type(model).__name__
        self.device = resolve_device(device)
        self.module = model.to(self.device) if isinstance(model, nn.Module) else None
        self.version = version
        self._unknown: str | None = None
        # Shapes (C, ...) of a latent without batch and time: of each tensor, where the model returns several.
        self._parts: list[tuple[int, ...]] | None = None
        self._inner: tuple[int, ...] | None = None
        self._try(sample_rate, multiple)

    def fingerprint(self) -> str:
        """A sha256 (hex) of what is stated, of a module's weights, and of `version`, or without one of the
        content of `encode` and `decode` (`lincae.interop.identity`). Where that cannot be told, each adapter
        has another one, and latents are not continued by a later process: a warning says so once."""
        settings = self.stated | {"hop": self.hop, "version": self.version}
        if self.version is None:
            settings["content"] = self._content()
        state = {} if self.module is None else self.module.state_dict()
        return content_fingerprint("adapted", settings, state)

    def _content(self) -> str:
        if self._unknown is None:
            try:
                return content_hash([self._encode, self._decode, self.module])
            except UnknownContentError as error:
                self._unknown = uuid.uuid4().hex
                log.warning("%s is known in this process only: %s; pass version=...", self.name, error)
        return self._unknown

    # ------------------------------------------------------------ in and out of the model

    def _latents_of(self, audio: Tensor, seed: int = 0) -> Tensor:
        audio = F.pad(audio.float().to(self.device), (0, -audio.shape[1] % self._multiple))
        channels = self.stated["channels"]
        if channels is not None:
            audio = audio[:, None].expand(-1, channels, -1).contiguous()
        return self._run("encode", audio, seed, self._as_latents)

    def _audio_of(self, z: Tensor, seed: int) -> Tensor:
        return resample(self._native(z, seed), self.stated["output_rate"], self.sample_rate)

    def _native(self, z: Tensor, seed: int = 0) -> Tensor:
        """All that latents (B, C, L) decode to, (B, T) at the output's rate."""
        z = z.to(self.device)
        if self._parts is None:
            return self._run("decode", z.unflatten(1, self._inner), seed, self._as_audio)
        parts = z.split([math.prod(shape) for shape in self._parts], 1)
        parts = [part.unflatten(1, shape) for part, shape in zip(parts, self._parts, strict=True)]
        return self._run("decode", parts, seed, self._as_audio)

    def _run(self, what: str, given: Any, seed: int, then: Callable[[Any], Tensor]) -> Tensor:
        """`then` of what the model returns in eval mode, without gradients; torch's random numbers are those
        of `seed`."""
        function = self._encode if what == "encode" else self._decode
        devices = [] if self.device.type == "cpu" else [self.device]
        forked = torch.random.fork_rng(devices, device_type=self.device.type)
        with torch.no_grad(), _evaluating(self.module), forked:
            torch.manual_seed(seed)
            try:
                output = function(given)
            except FAILURES as error:
                shape = tuple(given.shape) if isinstance(given, Tensor) else [tuple(z.shape) for z in given]
                hint = LAYOUTS if what == "encode" and self._inner is None else ""
                raise ValueError(f"{self.name}: {what} failed on {shape}: {error}{hint}") from error
            return then(output)

    def _as_latents(self, output: Any) -> Tensor:
        output = getattr(output, "latent_dist", output)
        if hasattr(output, "sample") and callable(output.sample):
            output = self._from_posterior(output)
        several = isinstance(output, (tuple, list))
        tensors = [self._checked_latent(part) for part in (output if several else [output])]

        shapes = [tuple(tensor.shape) for tensor in tensors]
        if len(tensors) > 1 and not self.stated["join"]:
            self._refuse(
                f"encode returns {len(tensors)} tensors {shapes}",
                "join=True makes one latent of those of one length; for (mean, log-variance)"
                " pass encode=lambda x: model.encode(x)[0]",
            )
        if any(len(shape) < 3 for shape in shapes) or len({(s[0], s[-1]) for s in shapes}) > 1:
            self._refuse(f"latents are {shapes}", "they have to be (B, C, L), time last, and of one length")
        self._parts = [shape[1:-1] for shape in shapes] if several else None
        self._inner = shapes[0][1:-1]
        return torch.cat([tensor.to(self.device).float().flatten(1, -2) for tensor in tensors], 1)

    def _from_posterior(self, posterior: Any) -> Tensor:
        if self.stated["latent"] == "deterministic":
            reason = 'state latent="mean", or latent="sample" for a seeded draw'
            self._refuse(f"encode returns a distribution ({type(posterior).__name__})", reason)
        if self.stated["latent"] == "sample":
            return posterior.sample()
        centre = getattr(posterior, "mode", None) if hasattr(posterior, "mode") else posterior.mean
        return centre() if callable(centre) else centre

    def _checked_latent(self, part: Any) -> Tensor:
        tensor = torch.as_tensor(part) if isinstance(part, np.ndarray) else part
        if not isinstance(tensor, Tensor):
            found = f"encode returns {type(tensor).__name__}"
            for key in ("audio_codes", "codes", "indices"):
                if getattr(tensor, key, None) is not None:
                    self._refuse(f"{found} with {key}, which are discrete", DISCRETE)
            self._refuse(found, "encode=... has to return a tensor, or a posterior")
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_complex():
            self._refuse(f"latents are {kind}", "real and imaginary parts as channels are a latent")
        if not tensor.is_floating_point():
            self._refuse(f"latents are {kind}", DISCRETE)
        return tensor

    def _as_audio(self, output: Any) -> Tensor:
        output = getattr(output, "sample", output) if not isinstance(output, Tensor) else output
        output = torch.as_tensor(output) if isinstance(output, np.ndarray) else output
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            self._refuse(f"decode returns {kind}", "it has to return floating-point audio")

        channels = self.stated["channels"]
        if output.ndim != (2 if channels is None else 3):
            expected = "(B, T)" if channels is None else "(B, channels, T)"
            self._refuse(f"decode returns {tuple(output.shape)}", f"with channels={channels}: {expected}")
        return output.float() if channels is None else output.float().mean(1)

    def _refuse(self, found: str, reason: str) -> None:
        raise ValueError(f"{self.name}: {found}: {reason}")

    # ------------------------------------------------------------ what a model is, found by trying

    def _check_stated(self) -> None:
        rates = (self.stated["sample_rate"], self.stated["output_rate"])
        if min(rates) <= 0:
            raise ValueError(f"rates are positive numbers of samples a second, got {rates}")
        if self.stated["latent"] not in LATENTS:
            raise ValueError(f"latent must be one of {LATENTS}, got {self.stated['latent']!r}")
        channels = self.stated["channels"]
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be None, for audio (B, T), or at least 1, got {channels}")

    def _try(self, sample_rate: int, multiple: int | None) -> None:
        """Sets hop, latent rate, padding and number of latent channels."""
        self._multiple = multiple or 1
        step = self._multiple
        short, long = (max(step, round(s * sample_rate) // step * step) for s in PROBE_S)
        long = max(long, short + step)
        noise = 0.1 * torch.randn(1, long, generator=generator(0), dtype=torch.float32)
        hop, n_channels = self._found(noise, short, sample_rate)
        super().__init__(sample_rate, hop, n_channels)
        self._multiple = multiple or max(1, round(hop))
        self._check_repeats(noise)

        held = self.decode(self.encode(noise)).shape[1]
        if held < long or held > long + 2 * max(self._multiple, hop):
            rate = round(held / long * self.stated["output_rate"])
            reason = f"a model that changes the rate needs output_rate (here {rate}?);"
            reason += " one that cuts its ends has to be padded in encode=..."
            self._refuse(f"decodes {held} of {long} samples", reason)

    def _found(self, noise: Tensor, n_short: int, sample_rate: int) -> tuple[float, int]:
        """The hop and the number of latent channels."""
        short = self.encode(noise[:, :n_short])
        z = self.encode(noise)
        more_frames = z.shape[-1] - short.shape[-1]
        if more_frames <= 0:
            frames = f"{short.shape[-1]} and {z.shape[-1]} frames for {n_short} and {noise.shape[1]} samples"
            self._refuse(f"latents have {frames}", "a latent needs a time axis, the last one")
        # Whole frames hide the hop of the encoder; what a frame more decodes to shows it.
        longer = self._native(z).shape[1] - self._native(short).shape[1]
        hop = longer / more_frames * sample_rate / self.stated["output_rate"]
        if hop < 1:
            found = f"a latent frame decodes to {hop:g} samples"
            self._refuse(found, "latents have to be (B, C, L), time last")
        return round(hop) if hop == round(hop) else hop, z.shape[1]

    def _check_repeats(self, noise: Tensor) -> None:
        """Refuse what differs from call to call, or from seed to seed where that is not stated."""
        z = self.encode(noise)
        change = (self._latents_of(noise, seed=1) - z).norm() / z.norm()
        if self.stated["latent"] != "sample" and change > 1e-4:
            reason = 'return the posterior\'s mean, or state latent="sample" for seeded draws'
            self._refuse(f"encode is stochastic, two latents of one sound differ by {change:.0%}", reason)
        again = {"encode": (self.encode(noise), z), "decode": (self.decode(z), self.decode(z))}
        for what, (first, second) in again.items():
            if not torch.equal(first, second):
                reason = "it has to use torch's random numbers, so that equal seeds give equal noise"
                self._refuse(f"{what} differs from call to call with one seed", reason)


adapt = Adapted
"""The name by which a model is handed over."""


def check_trainable(
    encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], audio: Tensor
) -> None:
    """Raises ValueError, saying where the gradient ends, unless a loss on decode(encode(audio)) reaches the
    encoder: what `lincae.linearity` needs of a model, and a report does not."""
    z = encode(audio)
    if not z.requires_grad:
        raise ValueError(
            "the latents carry no gradient (no_grad, detached, quantised, or frozen weights):"
            " such a model can be measured, and not be made linear"
        )
    decoded = decode(z)
    if not decoded.requires_grad or torch.autograd.grad(decoded.sum(), z, allow_unused=True)[0] is None:
        raise ValueError(
            "decode passes no gradient on to the latents: the encoder cannot learn from its output"
        )


@contextlib.contextmanager
def _evaluating(module: nn.Module | None) -> Iterator[None]:
    """A module in eval mode, and afterwards in the modes that its parts had."""
    modes = {} if module is None else {part: part.training for part in module.modules()}
    try:
        if module is not None:
            module.eval()
        yield
    finally:
        for part, training in modes.items():
            part.training = training
