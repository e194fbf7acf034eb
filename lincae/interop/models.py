"""Models by name: own checkpoints, released Lin-CAE and Music2Latent, baselines, linear references.

    model = load("desk/lin-cae")       # bundled with the repository
    model = load("runs/desk-lin-cae")  # a folder of `Autoencoder.save`, or of the official training script
    model = load("lin-cae")            # the authors' weights, from the hub

Official state dicts number the layers through all levels (`down_layers.17.conv1.weight`); `key_map` is the
exact translation, in both directions. Files of others are read with `weights_only=True`, and strictly: no
tensor may be missing, left over or misshapen.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lincae.autoencoder import Autoencoder, AutoencoderConfig
from lincae.checkpoints import BUNDLED, WEIGHTS, check_hash, kind_of, load_strictly, require_bundled
from lincae.consistency import NoiseConfig
from lincae.files import atomic_write
from lincae.interface import AutoencoderLike
from lincae.interop.codecs import HUB, codec_kind, load_codec
from lincae.interop.linear import EXAMPLES, is_linear_reference, load_linear_reference
from lincae.interop.pickles import read_pickle
from lincae.interop.references import BASELINES, load_baseline
from lincae.machine import resolve_device
from lincae.network import BOTH, FREQUENCY, Network, NetworkConfig
from lincae.transform import OVERLAP, TransformConfig
from lincae.vae.model import SpectralVae

OWN = {kind.kind: kind for kind in (Autoencoder, SpectralVae)}
LIN_CAE_HUB, MUSIC2LATENT_HUB = "BernardoTorres/linear_consistency_autoencoders", "SonyCSLParis/music2latent"
MUSIC2LATENT, MUSIC2LATENT_SCALE = "music2latent", 1 / 0.06
# Folder in the hub repository, and the factor that gives latents of MUSDB18 unit standard deviation.
LIN_CAE = {"lin-cae": ("0a3afbec", 33.0), "lin-cae-2": ("2f4c6d21", 40.0), "m2l": ("1511f18a", 15.0)}
KINDS = ("frontend", "generator", "diffusion")  # of official constructor arguments, one YAML file each


def names() -> list[str]:
    """What `load` knows by name: released models, baselines, linear references (at the rate of the study;
    others have another number), codecs, then the repository's checkpoints."""
    return [*LIN_CAE, MUSIC2LATENT, *BASELINES, *EXAMPLES, *HUB, *listed("bundled")]


def listed(models: str | Sequence[str]) -> list[str]:
    """The models that a notebook's parameter names: a list, one name, or a JSON list as `papermill -p` passes
    it. "bundled" stands for all checkpoints of the repository. Raises ValueError for none."""
    if isinstance(models, str):
        models = json.loads(models) if models.startswith("[") else [models]
    if not models:
        raise ValueError(f"models names none; choose from {', '.join(names())}, or give paths of checkpoints")
    bundled = sorted(path.parent.relative_to(BUNDLED).as_posix() for path in BUNDLED.rglob(WEIGHTS))
    return [name for model in models for name in (bundled if model == "bundled" else [model])]


def load(
    name_or_path: str | Path,
    device: str = "auto",
    checkpoint: str = "last",
    latent_scale: float | None = None,
) -> AutoencoderLike:
    """A model by one of `names()`, or from a folder or file of either family, ready to use on `device`: an
    `Autoencoder` or, where the checkpoint says so, a `SpectralVae`; "stable-audio-vae", "stft" and "tanh" are
    what `lincae.interop.references` describes, "resample-32x", "resample+noise-32x" and "pca-32x", at this or
    another rate, what `lincae.interop.linear` does, EnCodec and DAC ("encodec-24khz", "dac-44khz", ...) what
    `lincae.interop.codecs` does.

    Folders: what `save` of either wrote; what diffusers or transformers saved (AutoencoderOobleck,
    EncodecModel, DacModel); or the four official files, named as on the hub
    (`autoencoder_inference_model_{checkpoint}.pth`, `generator_kwargs_{checkpoint}.yaml`, ...) or as the
    official training script names them (`autoencoder.pth`, `generator_kwargs.yaml`, ...). Files:
    `music2latent.pt`, or another state dict of such a network at 44.1 kHz, also in a Lightning checkpoint
    (whose EMA weights are taken).

    `latent_scale`: factor of the public latents. None is the released models' own (33, 40, 15 and 1 / 0.06);
    official files do not hold it, so for a folder or file of Lin-CAE None is 1, as in the official code.

    Raises ValueError for an unknown name (listing the known ones), a bundled file that is not the one of its
    card, settings that this network does not have and tensors that do not fit; FileNotFoundError for missing
    files; ImportError without pyyaml, diffusers or transformers.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in LIN_CAE:
        folder, scale = LIN_CAE[name]
        files = [_fetch(LIN_CAE_HUB, f"{folder}_weights/{file}") for file in official_files(checkpoint)]
        source = f"hub: {LIN_CAE_HUB}, {folder}, checkpoint {checkpoint}"
        model = _foreign(name, source, files, scale if latent_scale is None else latent_scale)
    elif name == MUSIC2LATENT:
        files = [_fetch(MUSIC2LATENT_HUB, "music2latent.pt")]
        model = _foreign(name, f"hub: {MUSIC2LATENT_HUB}", files, latent_scale)
    elif name in BASELINES and latent_scale is None:
        return load_baseline(name, device)
    elif is_linear_reference(name) and latent_scale is None:
        resolve_device(device)
        return load_linear_reference(name)
    elif name in HUB or (path.is_dir() and codec_kind(path)):
        if latent_scale is not None:
            raise ValueError(f"latents of {name} have no scale; the argument is for official files")
        return load_codec(name, device)
    elif path.is_file():
        model = _foreign(path.stem, str(path), [path], latent_scale)
    elif (path / WEIGHTS).is_file() or name in names():
        if latent_scale is not None:
            raise ValueError(f"{name} holds its own latent scale; the argument is for official files")
        if not (path / WEIGHTS).is_file():
            path = BUNDLED / name
            check_hash(path / WEIGHTS)
        return OWN[kind_of(path / WEIGHTS)].load(path, device)
    elif path.is_dir():
        model = _foreign(path.name, str(path), _files_in(path, checkpoint), latent_scale)
    else:
        require_bundled()
        raise ValueError(
            f"unknown model {name!r}: choose from {', '.join(names())}, or give the path of a checkpoint"
            " (Autoencoder.load takes the ids of hub repositories)"
        )
    return model.to(resolve_device(device))


def export_official(model: Autoencoder, folder: str | Path, checkpoint: str = "last") -> Path:
    """Write the four files that the official code builds its `Autoencoder` from; returns the folder.

    They have no place for the latent scale (the official code looks it up by name: give it to the official
    constructor as `scale_factor`), nor for `pad_edges` (the official code does not pad). Raises ValueError
    for attention with other than 4 heads, which the official encoder cannot have.
    """
    network, folder = model.config.network, Path(folder)
    if network.heads != 4 and any(network.attention):
        raise ValueError(f"the official encoder has 4 attention heads, {model.name} has {network.heads}")
    state = {f"generator.{key}": value for key, value in to_official(model.network).items()}
    state["frontend.window"] = torch.hann_window(model.config.transform.window)
    weights, *texts = (folder / file for file in official_files(checkpoint))
    folder.mkdir(parents=True, exist_ok=True)
    for path, values in zip(texts, official_arguments(model.config).values(), strict=True):
        with atomic_write(path) as file:
            file.write(_yaml().safe_dump(values, sort_keys=False).encode())
    with atomic_write(weights) as file:
        torch.save(state, file)
    return folder


# ---------------------------------------------------------------- names of tensors

MODULES = {  # ours -> official, those outside the numbered lists
    "encoder.frequency_gain": "encoder.gain.scale",
    "encoder.conv_in.": "encoder.conv_inp.",
    "encoder.norm_features.": "encoder.prenorm_1d_to_2d.",
    "encoder.conv_features.": "encoder.bottleneck_layers.0.",
    "encoder.norm_out.": "encoder.norm_out.",
    "encoder.conv_out.": "encoder.conv_out.",
    "pyramid.conv_in.": "decoder.conv_inp.",
    "pyramid.conv_features.": "decoder.conv_out_bottleneck.",
    "denoiser.noise_mlp.": "emb_proj.",
    "denoiser.gain_in.": "scale_inp.",
    "denoiser.gain_out.": "scale_out.",
    "denoiser.conv_in.": "conv_inp.",
    "denoiser.project_out.": "conv_decoded.",
    "denoiser.norm_out.": "norm_out.",
    "denoiser.conv_out.": "conv_out.",
}
LEAVES = {  # ours -> official, within blocks and changes of resolution
    "conv.": "c.",
    "noise_shift.": "proj_emb.",
    "shortcut.": "res_conv.",
    "attention.norm.": "att.norm.",
    "attention.to_qkv.": "att.mha.in_proj_",
    "attention.to_out.": "att.mha.out_proj.",
}


def key_map(config: NetworkConfig) -> dict[str, str]:
    """Key in `Network.state_dict()` -> key in the official `UNet.state_dict()`, one to one.

    The official side numbers the modules of a path through its levels: each level's blocks (in the U-Net
    each behind its 1x1 projection), then its change of resolution. Downward paths begin at the finest level.
    """
    modules = dict(MODULES)
    for b in range(config.bottleneck_blocks):
        modules[f"encoder.bottleneck.{b}."] = f"encoder.bottleneck_layers.{b + 1}."
        modules[f"pyramid.bottleneck.{b}."] = f"decoder.bottleneck_layers.{b}."
    down = range(len(config.multipliers))
    for ours, theirs, resample, levels, counts in (
        ("encoder.levels", "encoder.down_layers", "downsample", down, config.encoder_blocks),
        ("pyramid.levels", "decoder.up_layers", "upsample", down[::-1], config.encoder_blocks),
        ("denoiser.down_levels", "down_layers", "resample", down, config.unet_blocks),
        ("denoiser.up_levels", "up_layers", "resample", down[::-1], config.unet_blocks),
    ):
        index = count()
        for level in levels:
            for b in range(counts[level]):
                if ours.startswith("denoiser"):
                    modules[f"{ours}.{level}.projections.{b}."] = f"{theirs}.{next(index)}."
                modules[f"{ours}.{level}.blocks.{b}."] = f"{theirs}.{next(index)}."
            modules[f"{ours}.{level}.{resample}."] = f"{theirs}.{next(index)}."
    with torch.device("meta"):
        network = Network(replace(config, unit_variance_init=False), config.frequency_factor)
    keys = {}
    for key in network.state_dict():
        (module,) = (module for module in modules if key.startswith(module))
        leaf = key.removeprefix(module)
        renamed = (
            theirs + leaf.removeprefix(mine) for mine, theirs in LEAVES.items() if leaf.startswith(mine)
        )
        keys[key] = modules[module] + next(renamed, leaf)
    return keys


def from_official(state: dict[str, Tensor], config: NetworkConfig, where: str) -> dict[str, Tensor]:
    """Tensors of the official `UNet` under our names. Raises ValueError for other keys; `where`: the file."""
    keys = key_map(config)
    missing, unknown = sorted(set(keys.values()) - set(state)), sorted(set(state) - set(keys.values()))
    if missing or unknown:
        raise ValueError(
            f"{where} does not fit the network: {len(missing)} missing ({', '.join(missing[:3])}),"
            f" {len(unknown)} unknown ({', '.join(unknown[:3])})"
        )
    return {ours: state[theirs].float() for ours, theirs in keys.items()}


def to_official(network: Network) -> dict[str, Tensor]:
    """The network's tensors as the official `UNet` names them; projections that it never uses are zeros."""
    config, keys = network.config, key_map(network.config)
    state = {keys[key]: value.to("cpu", torch.float32) for key, value in network.state_dict().items()}
    for b in range(0 if config.unused_projections else config.bottleneck_blocks):
        unused, wide = f"decoder.bottleneck_layers.{b}.proj_emb", config.bottleneck_channels
        state[f"{unused}.weight"] = torch.zeros(wide, config.noise_channels)
        state[f"{unused}.bias"] = torch.zeros(wide)
    return state


# ---------------------------------------------------------------- configuration

# Official arguments that say nothing about a trained network: of initialisation and training, or unused.
WITHOUT_EFFECT = {"init_as_zero", "min_res_dropout", "fourier_scale", "enable_grad_denoise", "total_iters"}
WITHOUT_EFFECT |= {"schedule", "start_exp", "end_exp", "base_step", "p_mean", "p_std", "use_lognormal"}
FIXED = {"use_fourier": False, "normalization": True, "dropout_rate": 0.0, "frequency_scaling": True}
FIXED |= {"pre_normalize_downsampling_encoder": True, "pre_normalize_2d_to_1d": True}
FIXED |= {"bottleneck_layers": None, "padding_mode": "zeros", "data_channels": 2, "heads": 4}


def official_arguments(config: AutoencoderConfig) -> dict[str, dict[str, Any]]:
    """Constructor arguments of the official frontend, generator and diffusion for this configuration."""
    network, transform, noise = config.network, config.transform, config.noise
    attention = [int(flag) for flag in network.attention]
    frontend = {"hop_size": transform.hop, "n_fft_factor": OVERLAP, "sample_rate": config.sample_rate}
    frontend |= {"alpha_rescale": transform.alpha, "beta_rescale": transform.beta}
    levels = {"sigma_min": noise.sigma_min, "sigma_max": noise.sigma_max, "sigma_data": noise.sigma_data}
    generator = {
        "hop": transform.hop,
        "base_channels": network.base_channels,
        "multipliers_list": list(network.multipliers),
        "freq_downsample_list": [int(kind == FREQUENCY) for kind in network.downsampling],
        "layers_list": list(network.unet_blocks),
        "attention_list": attention,
        "layers_list_encoder": list(network.encoder_blocks),
        "attention_list_encoder": attention.copy(),
        "bottleneck_base_channels": network.bottleneck_channels,
        "num_bottleneck_layers": network.bottleneck_blocks,
        "bottleneck_channels": network.latent_channels,
        "cond_channels": network.noise_channels,
    }
    diffusion = {**levels, "rho": noise.rho}
    return {"frontend": frontend, "generator": generator | FIXED | levels, "diffusion": diffusion}


def network_config(state: dict[str, Tensor], base_channels: int | None = None) -> NetworkConfig:
    """The configuration whose official state dict this is. Heads leave no trace: the official encoder's 4."""

    def blocks_per_level(path: str) -> list[int]:
        blocks = [0]
        for k in count():
            if f"{path}.{k}.c.weight" in state:
                blocks.append(0)
            elif f"{path}.{k}.conv1.weight" in state:
                blocks[-1] += 1
            elif f"{path}.{k}.weight" not in state:
                return blocks

    counts = blocks_per_level("down_layers")
    ends = list(accumulate(2 * n + 1 for n in counts))  # a projection per block, one change of resolution
    blocks = [f"down_layers.{end - 2 * n}" for end, n in zip(ends, counts, strict=True)]  # each level's first
    channels = [state[f"{block}.conv1.weight"].shape[0] for block in blocks]
    kernels = [state[f"down_layers.{end - 1}.c.weight"].shape[2:] for end in ends[:-1]]
    wide, latent_channels, _ = state["decoder.conv_inp.weight"].shape
    base_channels = base_channels or math.gcd(*channels)
    return NetworkConfig(
        base_channels=base_channels,
        multipliers=[c // base_channels for c in channels],
        attention=[f"{block}.att.norm.weight" in state for block in blocks],
        encoder_blocks=blocks_per_level("encoder.down_layers"),
        unet_blocks=counts,
        downsampling=[FREQUENCY if kernel == (5, 1) else BOTH for kernel in kernels],
        bottleneck_channels=wide,
        bottleneck_blocks=blocks_per_level("decoder.bottleneck_layers")[0],
        latent_channels=latent_channels,
        noise_channels=state["emb_proj.0.weight"].shape[0],
    )


def _foreign(name: str, source: str, files: list[Path], latent_scale: float | None) -> Autoencoder:
    """A model from official weights and, where given, the three files of arguments."""
    weights, *texts = files
    state, window, scale = _read_state(weights)
    arguments = {kind: _read_arguments(path) for kind, path in zip(KINDS, texts, strict=False)}
    frontend = arguments.get("frontend", {"alpha_rescale": 0.65, "beta_rescale": 0.34, "sample_rate": 44100})
    noise = {k: v for k, v in arguments.get("diffusion", {}).items() if k not in WITHOUT_EFFECT}
    try:
        hop = state["encoder.gain.scale"].shape[2] // 2
        config = AutoencoderConfig(
            sample_rate=frontend["sample_rate"],
            transform=TransformConfig(hop, frontend["alpha_rescale"], frontend["beta_rescale"]),
            network=network_config(state, arguments.get("generator", {}).get("base_channels")),
            noise=NoiseConfig(**noise),
            latent_scale=scale if latent_scale is None else latent_scale,
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} does not describe a network of this kind: {error}") from error
    for path, kind in zip(texts, KINDS, strict=False):
        supported = official_arguments(config)[kind]
        for key in sorted(arguments[kind].keys() - WITHOUT_EFFECT):
            if key not in supported or arguments[kind][key] != supported[key]:
                allowed = f"needs {supported[key]!r}" if key in supported else "is not known"
                raise ValueError(f"{path}: {key} is {arguments[kind][key]!r}, {allowed} with these weights")
    model = Autoencoder(config, name, {"source": source, "arguments": arguments})
    ours = model.transform.analysis_window
    if window is not None and (window.shape != ours.shape or (window - ours).abs().max() > 1e-6):
        raise ValueError(f"{weights}: frontend.window is not the Hann window of {len(ours)} samples")
    load_strictly(model.network, from_official(state, config.network, str(weights)), str(weights))
    return model.eval()


# ---------------------------------------------------------------- files


def official_files(checkpoint: str | None) -> list[str]:
    """Weights and arguments: names as on the hub, or (None) as the official training script writes them."""
    suffix = "" if checkpoint is None else f"_{checkpoint}"
    weights = "autoencoder" if checkpoint is None else f"autoencoder_inference_model{suffix}"
    return [f"{weights}.pth", *(f"{kind}_kwargs{suffix}.yaml" for kind in KINDS)]


def _files_in(folder: Path, checkpoint: str) -> list[Path]:
    layouts = [[folder / file for file in official_files(key)] for key in (checkpoint, None)]
    for files in layouts:
        if files[0].is_file():
            if missing := [file.name for file in files if not file.is_file()]:
                raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
            return files
    raise FileNotFoundError(
        f"{folder} holds neither {WEIGHTS}, {layouts[0][0].name} nor {layouts[1][0].name}"
    )


def _fetch(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo_id=repository, filename=file))


def _yaml():
    try:
        import yaml
    except ImportError as error:
        raise ImportError("official checkpoints describe themselves in YAML: pip install pyyaml") from error
    return yaml


def _read_arguments(path: Path) -> dict[str, Any]:
    yaml = _yaml()
    try:
        arguments = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not plain YAML: {error}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"{path} holds {type(arguments).__name__} instead of named arguments")
    return arguments


def _read_state(path: Path) -> tuple[dict[str, Tensor], Tensor | None, float]:
    """Tensors of the official `UNet`, the window beside them, and the latent scale of the format."""
    content = read_pickle(path)
    if "gen_state_dict" in content:
        return content["gen_state_dict"], None, MUSIC2LATENT_SCALE
    tensors = dict(content.get("state_dict", content))
    window, generator = tensors.pop("frontend.window", None), {}
    for key in [key for key in tensors if key.startswith("generator.")]:
        generator[key.removeprefix("generator.")] = tensors.pop(key)
    # The official wrappers register modules twice: `encoder.*` after their first encode, and Lightning's.
    left = [key for key in tensors if not key.startswith(("encoder.", "autoencoder_inference_model."))]
    if generator and left:
        raise ValueError(f"{path} does not fit the network: {len(left)} unknown ({', '.join(left[:3])})")
    generator = generator or tensors
    if "ema_state_dict" in content:
        shadow = content["ema_state_dict"]["shadow_params"]  # in the order of the parameters, the keys' order
        if len(shadow) != len(generator):
            raise ValueError(f"{path}: {len(shadow)} EMA tensors for {len(generator)} of the network")
        generator = dict(zip(generator, shadow, strict=True))
    return generator, window, 1.0
