"""Encoder and decoder as ONNX files, for programs without PyTorch: `lincae export`.

export(load("desk/lin-cae"), "exported")  # exported/encoder.onnx and exported/decoder.onnx
latents = Exported("exported").encode(audio)

ONNX has no complex numbers and no choice by length: here the transform is made of convolutions, and norms
take any number of frames. The noise of the decoder is an input, so that all programs can use the same.
"""

import copy
import importlib
import io
import math
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lincae.autoencoder import Autoencoder, FramewiseAutoencoder
from lincae.bypass.model import BypassAutoencoder
from lincae.interface import AutoencoderLike, check_audio, check_latents
from lincae.machine import generator
from lincae.machine.files import atomic_write
from lincae.machine.kernels import means_nearby
from lincae.network import Neighbourhood, Norm, Upsample
from lincae.transform import TINY_MODULUS, Transform, TransformConfig

LEAST_SNR_DB = 60.0
"""What an export must keep of the model's own numbers."""

OPSET = 17
TRACED_FRAMES = 16  # the length of the example by which a graph is found; it then takes others
ENCODER, DECODER = "encoder.onnx", "decoder.onnx"


def _constants_in_fp32(graph: Any) -> None:
    """Python's numbers in a traced graph are float64, for which runtimes for GPUs have no cast."""
    import onnx

    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.t.data_type == onnx.TensorProto.DOUBLE:
                values = onnx.numpy_helper.to_array(attribute.t).astype("float32")
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values))


def export(model: AutoencoderLike, folder: str | Path) -> dict[str, float]:
    """Write `encoder.onnx` and `decoder.onnx` of a model into `folder`, once they are found to agree with it.

    Encoder: `audio` (1, T) to `latents` (1, C, L), as `model.encode`. Decoder: `latents` (1, C, L) and
    `noise`, which is `model.noise(0, L, seed)`, to `audio` (1, T), as `model.decode(latents, seed=seed)`.
    Both are for up to `model.config.window_frames` latent frames: the model cuts longer signals.

    Returns the least SNR in dB against the model's own latents and audio, by file, over three lengths of
    noise. Raises ValueError for another kind of model, and where an SNR is below LEAST_SNR_DB, in which case
    nothing is written; ImportError without onnx or onnxruntime.
    """
    check_kind(model)
    model = copy.deepcopy(model).cpu().eval()
    latents = torch.zeros(1, model.config.network.latent_channels, TRACED_FRAMES)
    audio = torch.zeros(1, model.decoded_samples(TRACED_FRAMES))
    files = {
        ENCODER: _graph(Encoder(model), {"audio": audio}, "latents", model),
        DECODER: _graph(
            Decoder(model), {"latents": latents, "noise": model.noise(0, TRACED_FRAMES, 0)}, "audio", model
        ),
    }

    found = _agreement(model, Exported(files))
    for name, agreement_db in found.items():
        if not agreement_db >= LEAST_SNR_DB:
            wanted = f"at least {LEAST_SNR_DB:g} dB are wanted: nothing was written"
            raise ValueError(f"{name} of {model.name} agrees with it to {agreement_db:.1f} dB, {wanted}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content)
    return found


def check_kind(model: AutoencoderLike) -> None:
    """Raises ValueError for a model that `export` does not know."""
    if not isinstance(model, Autoencoder | BypassAutoencoder):
        kinds = "consistency and bypass autoencoders are exported"
        raise ValueError(f"{kinds}, got {model.name}, a {type(model).__name__}")


class Exported:
    """The files of `export`, from a folder or as `{name: bytes}`, run by onnxruntime.

    `facts`: what the files say of the model: name, fingerprint, sample_rate, hop (samples of a latent frame),
    compression, latent_channels and most_frames, as texts.
    """

    def __init__(self, source: str | Path | dict[str, bytes]):
        if not isinstance(source, dict):
            source = {name: Path(source, name).read_bytes() for name in (ENCODER, DECODER)}
        session = library("onnxruntime").InferenceSession
        self.encoder = session(source[ENCODER], providers=["CPUExecutionProvider"])
        self.decoder = session(source[DECODER], providers=["CPUExecutionProvider"])
        self.facts = self.decoder.get_modelmeta().custom_metadata_map

    def encode(self, audio: Tensor) -> Tensor:
        """Audio (1, T) to latents (1, C, L). Raises as `decode`."""
        (latents,) = self.encoder.run(None, {"audio": check_audio(audio).numpy()})
        self._check_frames(latents.shape[-1])
        return torch.from_numpy(latents)

    def decode(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Latents (1, C, L) and the model's noise for them to audio (1, T). Raises ValueError for more latent
        frames than the export is for."""
        check_latents(latents, int(self.facts["latent_channels"]))
        self._check_frames(latents.shape[-1])
        (audio,) = self.decoder.run(None, {"latents": latents.numpy(), "noise": noise.numpy()})
        return torch.from_numpy(audio)

    def _check_frames(self, n_frames: int) -> None:
        most = int(self.facts["most_frames"])
        if n_frames > most:
            why = "its norms are over frames, and longer signals go through the model in windows"
            raise ValueError(
                f"the export of {self.facts['name']} takes {most} latent frames, got {n_frames}: {why}"
            )


def _graph(module: nn.Module, inputs: dict[str, Tensor], output: str, model: FramewiseAutoencoder) -> bytes:
    """The ONNX file of a module, with what it says of its model."""
    onnx = library("onnx")
    last_axes = {name: {example.dim() - 1: f"{name}_length"} for name, example in inputs.items()}
    last_axes[output] = {2 if output == "latents" else 1: f"{output}_length"}
    file = io.BytesIO()
    # With gradients layers take their plain forms; the warnings are about shapes that tests try.
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            file,
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes=last_axes,
            opset_version=OPSET,
            do_constant_folding=False,
            dynamo=False,
        )
    graph = onnx.load_from_string(file.getvalue())
    _constants_in_fp32(graph)
    facts = {
        "name": model.name,
        "fingerprint": model.fingerprint(),
        "sample_rate": model.sample_rate,
        "hop": model.config.hop,
        "compression": model.compression,
        "latent_channels": model.config.network.latent_channels,
        "most_frames": model.config.window_frames,
    }
    onnx.helper.set_model_props(graph, {name: str(value) for name, value in facts.items()})
    return graph.SerializeToString()


def _agreement(model: FramewiseAutoencoder, exported: Exported) -> dict[str, float]:
    """The least SNR of each file against the model in dB, over three lengths of noise as loud as music."""
    least = {ENCODER: math.inf, DECODER: math.inf}
    longest = model.config.window_frames
    for n_frames in (2, longest // 2, longest):
        n_samples = model.decoded_samples(n_frames)
        audio = 0.1 * torch.randn(1, n_samples, generator=generator(n_frames))
        latents = model.encode(audio)
        decoded = model.decode(latents)
        noise = model.noise(0, n_frames, 0)
        least[ENCODER] = min(least[ENCODER], _snr_db(exported.encode(audio), latents))
        least[DECODER] = min(least[DECODER], _snr_db(exported.decode(latents, noise), decoded))
    return least


def _snr_db(found: Tensor, wanted: Tensor) -> float:
    """SNR without the floor of `lincae.metrics.snr_db`, which quiet sounds of untrained models would meet."""
    error = (found.double() - wanted.double()).norm()
    return 20 * (wanted.double().norm() / error.clamp_min(1e-30)).log10().item()


def library(name: str) -> ModuleType:
    """The package of this name. Raises ImportError, saying what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"an ONNX export needs {name}: pip install 'lincae[export]'") from error


# ---------------------------------------------------------------- models as graphs


class Encoder(nn.Module):
    """`model.encode` of one item, of a length within one window."""

    def __init__(self, model: FramewiseAutoencoder):
        super().__init__()
        self.model = exportable(model)

    def forward(self, audio: Tensor) -> Tensor:
        # Lengths as in `FramewiseAutoencoder._encoded`; a graph keeps the maximum of tensors alone.
        model = self.model
        hop, least = model.config.hop, torch.tensor(model.config.transform.window)
        n_samples = torch.maximum(torch.as_tensor(audio.shape[1] + 2 * model._edge), least)
        n_frames = (n_samples - model._overlap + hop - 1) // hop
        n_samples = torch.maximum(n_samples, (n_frames - 1) * hop + least)
        padded = F.pad(audio, (model._edge, model._edge + model.config.transform.window))
        return model._latents_of(padded[:, :n_samples]) * model.config.latent_scale


class Decoder(nn.Module):
    """`model.decode` of one item within one window, with its noise."""

    def __init__(self, model: FramewiseAutoencoder):
        super().__init__()
        self.model = exportable(model)

    def forward(self, latents: Tensor, noise: Tensor) -> Tensor:
        model = self.model
        frames = model.denoise(latents / model.config.latent_scale, [noise])
        audio = model.transform.inverse(frames)
        return audio[:, model._edge : audio.shape[1] - model._edge]


def exportable(model: FramewiseAutoencoder) -> FramewiseAutoencoder:
    """A copy of the model from parts that ONNX can express."""
    model = copy.deepcopy(model)
    model.transform = RealTransform(model.config.transform)
    for parent in list(model.network.modules()):
        if hasattr(parent, "neighbourhood") and not isinstance(parent, Norm):
            parent.neighbourhood = Neighbourhood(None)
        for name, child in parent.named_children():
            if isinstance(child, Norm):
                setattr(parent, name, SlidingNorm(child))
            elif isinstance(child, Upsample):
                setattr(parent, name, FixedUpsample(child))
    return model


class SlidingNorm(nn.Module):
    """A `Norm` of maps `(B, channels, ..., N)` without a choice by their number of frames."""

    def __init__(self, norm: Norm):
        super().__init__()
        self.latent_frames = norm.neighbourhood.latent_frames
        self.per_latent = norm.neighbourhood.per_latent
        self.neighbourhood = Neighbourhood(1)  # networks ask, and then take the plain form of their layers
        self.eps = norm.eps
        self.weight = nn.Parameter(norm.weight[:, None])
        self.bias = nn.Parameter(norm.bias[:, None])
        group = torch.arange(norm.num_channels) // (norm.num_channels // norm.num_groups)
        same = (group[:, None] == group).float()
        self.register_buffer("group_mean", same / same.sum(1, keepdim=True))

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        of_frames, squares = (x, x.square()) if x.dim() == 3 else (x.mean(2), x.square().mean(2))
        n_frames = x.shape[x.dim() - 1]
        n_latents = (n_frames + self.per_latent - 1) // self.per_latent
        width = self.latent_frames * n_frames // n_latents  # as `Neighbourhood.width`
        mean = means_nearby(self.group_mean @ of_frames, width)
        power = means_nearby(self.group_mean @ squares, width)
        variance = (power - mean.square()).clamp_min(0)
        scale = (variance + self.eps).rsqrt().float() * self.weight
        shift = self.bias - mean.float() * scale
        if x.dim() == 4:
            scale, shift = scale[:, :, None], shift[:, :, None]
        normed = x * scale + shift
        return F.silu(normed) if silu else normed


class FixedUpsample(nn.Module):
    """An `Upsample` whose transposed kernel is computed once."""

    def __init__(self, upsample: Upsample):
        super().__init__()
        conv = upsample.conv
        kernel = torch.einsum("ds,er,oisr->iode", upsample.rows, upsample.columns, conv.weight)
        self.register_buffer("kernel", kernel.detach())
        self.bias = conv.bias
        self.factor = upsample.factor
        self.padding = conv.padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.kernel, self.bias, self.factor, self.padding)


class RealTransform(Transform):
    """T and its inverse as convolutions with sinusoids."""

    def __init__(self, config: TransformConfig):
        super().__init__(config)
        sample = torch.arange(config.window, dtype=torch.float64)
        frequency = torch.arange(config.n_bins, dtype=torch.float64)[:, None]
        angle = 2 * math.pi * frequency * sample / config.window
        waves = torch.cat((angle.cos(), -angle.sin()))
        share = torch.full_like(
            waves[:, :1], 2 / config.window
        )  # a bin stands for its negative frequency as well
        share[0] = 1 / config.window
        self.register_buffer("analysis", (waves * self.analysis_window).float()[:, None])
        self.register_buffer("synthesis", (share * waves * self.synthesis_window).float()[:, None])

    def stft(self, audio: Tensor) -> Tensor:
        parts = F.conv1d(audio[:, None], self.analysis, stride=self.config.hop)
        n_bins = self.config.n_bins
        return torch.stack((parts[:, :n_bins], parts[:, n_bins:]), dim=1)

    def forward(self, audio: Tensor) -> Tensor:
        return self._warped(self.stft(audio), self.config.alpha, self.config.beta)

    def inverse(self, spectrogram: Tensor) -> Tensor:
        bins = self._warped(spectrogram / self.config.beta, 1 / self.config.alpha, 1.0)
        parts = torch.cat((bins[:, 0], bins[:, 1]), dim=1)
        return F.conv_transpose1d(parts, self.synthesis, stride=self.config.hop)[:, 0]

    def _warped(self, bins: Tensor, exponent: float, factor: float) -> Tensor:
        modulus = bins.square().sum(1, keepdim=True).sqrt().clamp_min(TINY_MODULUS)
        return bins * (factor * modulus ** (exponent - 1))
