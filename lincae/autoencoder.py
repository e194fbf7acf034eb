"""Autoencoders over spectrogram frames: their configuration, encode and decode, for signals of any length.

`FramewiseAutoencoder` is what such autoencoders have in common, `Autoencoder` is the paper's. Axis legend:
see `lincae.interface`.
"""

import contextlib
import copy
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from lincae.checkpoints import Checkpointed, unwrapped
from lincae.consistency import NoiseConfig, precondition, sample
from lincae.interface import check_audio, check_fields, check_latents
from lincae.machine import OutOfMemoryError, computing_in, frame_noise, free_bytes, is_out_of_memory
from lincae.network import Network, NetworkConfig
from lincae.streaming import (
    Window,
    between_silence,
    cut,
    in_pieces,
    joined,
    one_batch,
    overlap_added,
    windowed,
)
from lincae.transform import Transform, TransformConfig


@dataclass(frozen=True)
class AutoencoderConfig:
    """All that defines a model but its weights.

    `pad_edges`: three hops of silence around the signal, so that its ends are covered by as many windows as
    its middle. Without, as the released models were used, it fades over 35 ms at both ends.
    `latent_scale`: public latents are the network's times this, to have unit standard deviation on the data.
    `window_frames`, `context_frames`: longer signals go through the network in windows of so many latent
    frames, of which so many on each side are context and dropped.
    `norm_frames`: signals of more latent frames are normalised by statistics over so many around each frame.
    """

    sample_rate: int = 44100
    transform: TransformConfig = field(default_factory=TransformConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    pad_edges: bool = False
    latent_scale: float = 1.0
    window_frames: int = 160
    context_frames: int = 16
    norm_frames: int = 24

    def __post_init__(self):
        check_fields(self)
        if self.sample_rate < 1 or self.latent_scale <= 0 or self.norm_frames < 1:
            raise ValueError(f"need a positive sample_rate, latent_scale and norm_frames, got {self}")
        if not 0 <= 2 * self.context_frames < self.window_frames:
            raise ValueError(f"context_frames on both sides must leave room within window_frames, got {self}")

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return self.transform.hop * self.network.time_factor


class FramewiseAutoencoder(Checkpointed):
    """Encode and decode signals of any length; an `AutoencoderLike`.

    A subclass says what the latents of one window are (`_latents_of`), how they become frames again
    (`_frames_of`), and where that was measured, what memory a frame takes (`frame_bytes`).

    Two attributes may be set at any time. `precision`: one of `lincae.machine.precisions`, that of the
    network in encode and decode; weights stay fp32. `memory_gb`: 10^9 bytes that encode and decode may take
    beyond the weights, or "free" for four fifths of what the device has left: items of a batch then go
    through the network in turns, and windows are shorter where one item is too much. None: windows as
    configured, the whole batch.
    """

    precision = "fp32"
    memory_gb: float | str | None = None

    def __init__(self, config: Any, network: nn.Module, name: str, metadata: dict | None):
        super().__init__(config, network, name, metadata)
        self.transform = Transform(config.transform)
        self.sample_rate = config.sample_rate
        self.latent_rate = config.sample_rate / config.hop
        # Samples of silence around the signal, and samples that a latent frame shares with the next one.
        self._edge = 3 * config.transform.hop if config.pad_edges else 0
        self._overlap = config.transform.window - config.transform.hop
        self.float()  # whatever torch's default dtype is

    def _latents_of(self, audio: Tensor) -> Tensor:
        """Unscaled latents `(B, C, L)` of a window of audio `(B, t)`."""
        raise NotImplementedError

    def _frames_of(self, latents: Tensor, start: int, seed: int, steps: int) -> Tensor:
        """Spectrogram `(B, 2, F, N)` of unscaled latents, the first being frame `start` of the signal."""
        raise NotImplementedError

    @property
    def frame_bytes(self) -> float:
        """Peak of the memory that a latent frame of an item takes in encode or decode, beyond the weights."""
        raise ValueError(f"memory_gb is not available for {self.name}: its memory has not been measured")

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def compression(self) -> float:
        """Samples per latent number."""
        return self.config.hop / self.config.network.latent_channels

    def latent_frames(self, n_samples: int) -> int:
        """Latent frames of a signal of `n_samples`: enough to decode every one of its samples."""
        padded = max(n_samples + 2 * self._edge, self.config.transform.window)
        return (padded - self._overlap + self.config.hop - 1) // self.config.hop

    def decoded_samples(self, n_latent_frames: int) -> int:
        """Samples that `n_latent_frames` hold."""
        return n_latent_frames * self.config.hop + self._overlap - 2 * self._edge

    # -------- encode

    def encode(self, audio: Tensor) -> Tensor:
        """Audio `(B, T)` to latents `(B, C, latent_frames(T))`, one sequence whatever the length, on the
        model's device. Raises as `check_audio`."""
        audio = check_audio(audio)
        shape = (len(audio), self.config.network.latent_channels, self.latent_frames(audio.shape[1]))
        return joined(self._encoded([audio]), torch.empty(shape, device=self.device, dtype=torch.float32))

    def encode_stream(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Audio in blocks `(B, t_i)` of any lengths to latents `(B, C, l_i)`, as they become known.

        Concatenated they are `encode` of the concatenated audio, bit for bit, in constant memory, at most
        `window_frames` latent frames and three hops late. Raises as `encode` does, naming the block, and
        ValueError where the batch size changes and for a stream without blocks.
        """
        return self._encoded(one_batch(blocks, check_audio))

    def _encoded(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Checked audio `(B, t_i)` to latents `(B, C, l_i)`."""
        for window in self._windows(blocks):
            yield from self.encode_windows([window])

    def windows(self, blocks: Iterable[Tensor]) -> Iterator[Window]:
        """What `encode_stream` makes latents of, window by window; raises as it."""
        return self._windows(one_batch(blocks, check_audio))

    def encode_windows(self, windows: Sequence[Window]) -> list[Tensor]:
        """Latents `(B, C, l)` of each of some `windows`, also of several signals: those of equal length go
        through the network together."""
        size, n_items = self._within_memory()
        alike = defaultdict(list)
        for number, window in enumerate(windows):
            alike[window.data.shape[1]].append(number)
        latents = {}
        for numbers in alike.values():
            batch = torch.cat([windows[number].data for number in numbers])
            z = self._in_turns(self._latents_of, batch, n_items, size).float() * self.config.latent_scale
            parts = z.split([len(windows[number].data) for number in numbers])
            latents |= dict(zip(numbers, parts, strict=True))
        return [latents[number][..., window.keep] for number, window in enumerate(windows)]

    def _windows(self, blocks: Iterable[Tensor]) -> Iterator[Window]:
        config = self.config

        def silence_after(n_samples: int) -> int:
            """What makes the whole window of samples that the last latent frame is made of."""
            needed = (self.latent_frames(n_samples) - 1) * config.hop + config.transform.window
            return max(self._edge, needed - n_samples - self._edge)

        size, _ = self._within_memory()
        pieces = in_pieces(blocks, size * config.hop)
        on_device = (piece.to(self.device, torch.float32) for piece in pieces)
        padded = between_silence(on_device, self._edge, silence_after)
        hops = {"hop": config.hop, "overlap": self._overlap}
        return windowed(padded, size, config.context_frames, **hops)

    # -------- decode

    def decode(
        self, latents: Tensor, length: int | None = None, seed: int = 0, steps: int = 1, first_frame: int = 0
    ) -> Tensor:
        """Latents `(B, C, L)` to audio `(B, length)`; all that they hold by default.

        Deterministic given `seed`: the noise of a latent frame depends on the seed and the frame's index
        alone, so items of one batch, and decodes that are compared, share it. `steps` > 1 refines the first
        decode. `first_frame`: the index of the first frame, where the latents are an excerpt; the audio is
        that of the whole from sample `first_frame * hop` on, bit for bit within the windows of the whole that
        the excerpt holds, close to it beyond `context_frames` (benchmarks/windows.csv).

        Raises as `check_latents`, and ValueError for a negative `first_frame` and a length outside
        1..decoded_samples(L).
        """
        n_items, _, n_frames = self._check_latents(latents).shape
        held = self.decoded_samples(n_frames)
        length = held if length is None else length
        if not 1 <= length <= held:
            raise ValueError(f"length must lie in 1..{held}, all of {n_frames} latent frames, got {length}")
        stream = self.decode_stream([latents], length, seed, steps, first_frame)
        return joined(stream, torch.empty(n_items, length, device=self.device, dtype=torch.float32))

    def decode_stream(
        self,
        latents: Iterable[Tensor],
        length: int | None = None,
        seed: int = 0,
        steps: int = 1,
        first_frame: int = 0,
    ) -> Iterator[Tensor]:
        """Latents in blocks `(B, C, l_i)` of any lengths to audio `(B, t_i)`, as it becomes known.

        Concatenated it is `decode` of the concatenated latents, bit for bit, in constant memory, at most
        `window_frames` late; after `length` samples no more are read. Raises as `decode` does, naming the
        block; a stream shorter than `length` is refused at its end.
        """
        wanted = {"length": 1 if length is None else length, "first_frame": first_frame, "steps": steps}
        for name, value in wanted.items():
            least = 0 if name == "first_frame" else 1
            if not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")
        parts = self._decoded(one_batch(latents, self._check_latents), seed, steps, first_frame)
        return cut(overlap_added(parts, self._overlap), self._edge, length)

    def decode_with_gradient(self, latents: Tensor, seed: int = 0) -> Tensor:
        """As `decode`, with a gradient to the latents, for losses on sound; raises as it, and ValueError
        for more than `window_frames` latent frames."""
        n_frames = self._check_latents(latents).shape[-1]
        if n_frames > self.config.window_frames:
            raise ValueError(f"a gradient reaches {self.config.window_frames} latent frames, got {n_frames}")
        z = latents.to(self.device, torch.float32) / self.config.latent_scale
        audio = self.transform.inverse(self._frames_of(z, 0, seed, 1))
        return audio[:, self._edge : self._edge + self.decoded_samples(n_frames)]

    def _decoded(self, blocks: Iterable[Tensor], seed: int, steps: int, first_frame: int) -> Iterator[Tensor]:
        """Checked latents `(B, C, l_i)` to audio that overlaps: `_overlap` samples with the part after it."""
        config = self.config
        factor = config.network.time_factor
        size, n_items = self._within_memory()
        for window in windowed(in_pieces(blocks, size), size, config.context_frames, first_frame):
            z = window.data.to(self.device, torch.float32) / config.latent_scale
            frames_of = partial(self._frames_of, start=window.start, seed=seed, steps=steps)
            frames = self._in_turns(frames_of, z, n_items, size)
            yield self.transform.inverse(frames[..., window.keep.start * factor : window.keep.stop * factor])

    def _check_latents(self, latents: Tensor, name: str = "latents") -> Tensor:
        return check_latents(latents, self.config.network.latent_channels, name=f"{name} of {self.name}")

    # -------- precision and memory

    @contextlib.contextmanager
    def _precise(self) -> Iterator[None]:
        """Raises ValueError for a precision that the device lacks, and for weights not in fp32."""
        dtype = next(self.network.parameters()).dtype
        if dtype != torch.float32:
            fix = 'call model.float(), and set model.precision = "bf16" for less precision'
            raise ValueError(f"{self.name} has weights in {dtype}, lincae computes with float32: {fix}")
        with computing_in(self.precision, self.device):
            yield

    def _within_memory(self) -> tuple[int, int]:
        """Latent frames of a window, and items that go through the network at once, for `memory_gb`.

        Raises ValueError where a window would be no longer than three contexts or what norms see.
        """
        longest = self.config.window_frames
        if self.memory_gb is None:
            return longest, sys.maxsize
        n_bytes = 0.8 * free_bytes(self.device) if self.memory_gb == "free" else 1e9 * self.memory_gb
        n_frames = n_bytes / self.frame_bytes
        least = min(longest, max(3 * self.config.context_frames, self.config.norm_frames + 1))
        if not n_frames >= least:
            takes = math.ceil(least * self.frame_bytes / 1e7) / 100
            needed = f"the shortest window of {self.name}, {least} latent frames, takes {takes:g}"
            raise ValueError(f"memory_gb {self.memory_gb!r} is too little: {needed}")
        n_items = min(max(1, n_frames / longest), sys.maxsize)
        return int(min(longest, n_frames)), int(n_items)

    @torch.no_grad()
    def _in_turns(
        self, compute: Callable[[Tensor], Tensor], batch: Tensor, n_items: int, n_frames: int
    ) -> Tensor:
        """`compute` of a window of `n_frames`, `n_items` of the batch at a time. Raises OutOfMemoryError,
        naming what takes half as much."""
        try:
            return torch.cat([compute(items) for items in batch.split(n_items)])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            n_items = min(n_items, len(batch))
            half = n_items * n_frames // 2
            fix = f"{max(1, n_items // 2)} in windows of {min(n_frames, half)} take half"
            with contextlib.suppress(ValueError):  # where a model's memory has not been measured
                fix += f", as with model.memory_gb = {(half + 0.5) * self.frame_bytes / 1e9:.4g}"
            tried = f"{n_items} items in windows of {n_frames} latent frames"
            raise OutOfMemoryError(f"{self.name}: out of memory for {tried}; {fix}. {error}") from error


MAPS_AT_ONCE = 6.5  # feature maps of the finest level that fit into the peak of encode or decode
BYTES_PER_BIN = 200  # noise, spectrograms and their transforms, for a bin of a spectrogram


class Autoencoder(FramewiseAutoencoder):
    """The paper's consistency autoencoder: `encode` audio to latents that add and scale like it, and back."""

    kind = "consistency"
    config_class = AutoencoderConfig

    def __init__(self, config: AutoencoderConfig, name: str = "autoencoder", metadata: dict | None = None):
        network = Network(config.network, config.transform.n_bins, config.norm_frames)
        super().__init__(config, network, name, metadata)
        self._half: dict[str, Any] = {}  # not a module of this one: its weights are no others

    @property
    def frame_bytes(self) -> float:
        """As measured on a CPU, with some to spare; elsewhere twice that, which is a guess."""
        n_bins = self.config.transform.n_bins * self.config.network.time_factor
        of_map = self.config.network.channels[0] * (4 if self.precision in ("fp32", "tf32") else 2)
        on_cpu = n_bins * (MAPS_AT_ONCE * of_map + BYTES_PER_BIN)
        return on_cpu if self.device.type == "cpu" else 2 * on_cpu

    def denoise(self, latents: Tensor, noises: Iterable[Tensor], steps: int = 1) -> Tensor:
        """Unscaled latents `(B, C, L)` and one noise `(B, 2, F, N)` per step to a spectrogram like these."""
        network = self._computing()
        f = precondition(network.denoiser, self.config.noise)
        with self._precise():
            return sample(f, network.pyramid(latents), noises, steps, self.config.noise)

    def _latents_of(self, audio: Tensor) -> Tensor:
        spectrogram = self.transform(audio)
        with self._precise():
            return self._computing().encoder(spectrogram)

    def _computing(self) -> Network:
        """The network. On an accelerator in half precision a copy whose layers are in that, which takes all
        weights in one launch: autocast would take one for each."""
        network = unwrapped(self.network)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        is_compiled = any(part._compiled_call_impl for part in network.children())
        if half is None or is_compiled or torch.is_grad_enabled() or self.device.type == "cpu":
            return network
        made_for = (half, self.device)
        if self._half.get("made for") != made_for:
            copied = copy.deepcopy(network).requires_grad_(False)
            for layer in copied.modules():
                if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                    layer.to(half)
            self._half = {"made for": made_for, "network": copied}
        copied = self._half["network"]
        torch._foreach_copy_(list(copied.parameters()), list(network.parameters()))
        return copied

    def _frames_of(self, latents: Tensor, start: int, seed: int, steps: int) -> Tensor:
        n_items, _, n_frames = latents.shape
        noises = (self.noise(start, start + n_frames, seed, step) for step in range(steps))
        shared = (noise.expand(n_items, -1, -1, -1) for noise in noises)
        return self.denoise(latents, shared, steps)

    def noise(self, start: int, stop: int, seed: int, step: int = 0) -> Tensor:
        """Noise `(1, 2, F, N)` of latent frames start..stop in one step."""
        bins = self.config.transform.n_bins
        factor = self.config.network.time_factor
        drawn = frame_noise(range(start, stop), 2 * bins * factor, seed, step, self.device)
        return drawn.reshape(-1, 2, bins, factor).permute(1, 2, 0, 3).reshape(1, 2, bins, -1)
