"""The official code's checkpoints: weights whose layers it numbers in its own way, and YAML arguments.

An official state dict numbers the layers through all levels (`down_layers.17.conv1.weight`); `key_map` is the
exact translation. Files are read strictly: no tensor may be missing, left over or misshapen.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import accumulate, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lincae.autoencoder import Autoencoder, AutoencoderConfig
from lincae.checkpoints import from_dict, load_strictly
from lincae.interop.hub import read_pickle
from lincae.machine.files import atomic_write
from lincae.network import BOTH, FREQUENCY, Network, NetworkConfig

MUSIC2LATENT_SCALE = 1 / 0.06
KINDS = ("frontend", "generator", "diffusion")
"""The kinds of official constructor arguments, in one YAML file each."""


def official_files(checkpoint: str | None) -> list[str]:
    """Weights and arguments: names as on the hub, or (None) as the official training script writes them."""
    suffix = "" if checkpoint is None else f"_{checkpoint}"
    weights = "autoencoder" if checkpoint is None else f"autoencoder_inference_model{suffix}"
    return [f"{weights}.pth", *(f"{kind}_kwargs{suffix}.yaml" for kind in KINDS)]


def load_official(name: str, source: str, files: list[Path], latent_scale: float | None) -> Autoencoder:
    """A model from official weights and, where given, the three files of arguments. `latent_scale`: None is
    that of the format. Raises ValueError for settings that this network does not have and for tensors that do
    not fit."""
    weights, *texts = files
    state, window, scale = _read_state(weights)
    arguments = {kind: _read_arguments(path) for kind, path in zip(KINDS, texts, strict=False)}
    try:
        config = _config(state, arguments, source)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} does not describe a network of this kind: {error}") from error
    config = replace(config, latent_scale=scale if latent_scale is None else latent_scale)
    for path, kind in zip(texts, KINDS, strict=False):
        _check_arguments(arguments[kind], official_arguments(config)[kind], path)

    model = Autoencoder(config, name, {"source": source, "arguments": arguments})
    ours = model.transform.analysis_window
    if window is not None and (window.shape != ours.shape or (window - ours).abs().max() > 1e-6):
        raise ValueError(f"{weights}: frontend.window is not the Hann window of {len(ours)} samples")
    load_strictly(model.network, from_official(state, config.network, str(weights)), str(weights))
    return model.eval()


def export_official(model: Autoencoder, folder: str | Path, checkpoint: str = "last") -> Path:
    """Write the four files that the official code builds its `Autoencoder` from; returns the folder. They
    have no place for the latent scale (its constructor's `scale_factor`), nor for `pad_edges`. Raises
    ValueError for attention with other than 4 heads."""
    import yaml

    network = model.config.network
    if network.heads != 4 and any(network.attention):
        raise ValueError(f"the official encoder has 4 attention heads, {model.name} has {network.heads}")
    state = {f"generator.{key}": value for key, value in to_official(model.network).items()}
    state["frontend.window"] = torch.hann_window(model.config.transform.window)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights, *texts = (folder / file for file in official_files(checkpoint))
    for path, values in zip(texts, official_arguments(model.config).values(), strict=True):
        with atomic_write(path) as file:
            file.write(yaml.safe_dump(values, sort_keys=False).encode())
    with atomic_write(weights) as file:
        torch.save(state, file)
    return folder


# ---------------------------------------------------------------- names of tensors

# Ours -> official, the modules outside of the numbered lists.
MODULES = {
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
# Ours -> official, within blocks and changes of resolution.
LEAVES = {
    "conv.": "c.",
    "noise_shift.": "proj_emb.",
    "shortcut.": "res_conv.",
    "attention.norm.": "att.norm.",
    "attention.to_qkv.": "att.mha.in_proj_",
    "attention.to_out.": "att.mha.out_proj.",
}


def key_map(config: NetworkConfig) -> dict[str, str]:
    """Key in `Network.state_dict()` -> key in the official `UNet.state_dict()`, one to one."""
    modules = MODULES | _numbered_modules(config)
    with torch.device("meta"):
        network = Network(replace(config, unit_variance_init=False), config.frequency_factor)
    keys = {}
    for key in network.state_dict():
        (module,) = (module for module in modules if key.startswith(module))
        leaf = key.removeprefix(module)
        for ours, theirs in LEAVES.items():
            if leaf.startswith(ours):
                leaf = theirs + leaf.removeprefix(ours)
                break
        keys[key] = modules[module] + leaf
    return keys


def _numbered_modules(config: NetworkConfig) -> dict[str, str]:
    """Ours -> official, the modules that the official side numbers along its levels: blocks (in the U-Net
    each behind its 1x1 projection), then the change of resolution."""
    modules = {}
    for b in range(config.bottleneck_blocks):
        modules[f"encoder.bottleneck.{b}."] = f"encoder.bottleneck_layers.{b + 1}."
        modules[f"pyramid.bottleneck.{b}."] = f"decoder.bottleneck_layers.{b}."

    down = range(len(config.multipliers))
    up = down[::-1]
    for ours, theirs, resample, levels, counts in (
        ("encoder.levels", "encoder.down_layers", "downsample", down, config.encoder_blocks),
        ("pyramid.levels", "decoder.up_layers", "upsample", up, config.encoder_blocks),
        ("denoiser.down_levels", "down_layers", "resample", down, config.unet_blocks),
        ("denoiser.up_levels", "up_layers", "resample", up, config.unet_blocks),
    ):
        index = count()
        for level in levels:
            for b in range(counts[level]):
                if ours.startswith("denoiser"):
                    modules[f"{ours}.{level}.projections.{b}."] = f"{theirs}.{next(index)}."
                modules[f"{ours}.{level}.blocks.{b}."] = f"{theirs}.{next(index)}."
            modules[f"{ours}.{level}.{resample}."] = f"{theirs}.{next(index)}."
    return modules


def from_official(state: Mapping[str, Tensor], config: NetworkConfig, where: str) -> dict[str, Tensor]:
    """Tensors of the official `UNet` under our names. Raises ValueError for other keys; `where`: the file."""
    keys = key_map(config)
    missing = sorted(set(keys.values()) - set(state))
    unknown = sorted(set(state) - set(keys.values()))
    if missing or unknown:
        raise ValueError(
            f"{where} does not fit the network: {len(missing)} missing ({', '.join(missing[:3])}),"
            f" {len(unknown)} unknown ({', '.join(unknown[:3])})"
        )
    return {ours: state[theirs].float() for ours, theirs in keys.items()}


def to_official(network: Network) -> dict[str, Tensor]:
    """The network's tensors as the official `UNet` names them; projections that it never uses are zeros."""
    config = network.config
    keys = key_map(config)
    state = {keys[key]: value.to("cpu", torch.float32) for key, value in network.state_dict().items()}
    for b in range(0 if config.unused_projections else config.bottleneck_blocks):
        unused = f"decoder.bottleneck_layers.{b}.proj_emb"
        state[f"{unused}.weight"] = torch.zeros(config.bottleneck_channels, config.noise_channels)
        state[f"{unused}.bias"] = torch.zeros(config.bottleneck_channels)
    return state


# ---------------------------------------------------------------- configuration

# Official arguments that say nothing about a trained network: of initialisation and training, or unused.
WITHOUT_EFFECT = {"init_as_zero", "min_res_dropout", "fourier_scale", "enable_grad_denoise", "total_iters"}
WITHOUT_EFFECT |= {"schedule", "start_exp", "end_exp", "base_step", "p_mean", "p_std", "use_lognormal"}
# Official arguments that our network has one value for.
FIXED = {"use_fourier": False, "normalization": True, "dropout_rate": 0.0, "frequency_scaling": True}
FIXED |= {"pre_normalize_downsampling_encoder": True, "pre_normalize_2d_to_1d": True}
FIXED |= {"bottleneck_layers": None, "padding_mode": "zeros", "data_channels": 2, "heads": 4}
# What music2latent.pt, a file without arguments, was made with.
MUSIC2LATENT_FRONTEND = {"alpha_rescale": 0.65, "beta_rescale": 0.34, "sample_rate": 44100}


def official_arguments(config: AutoencoderConfig) -> dict[str, dict[str, Any]]:
    """Constructor arguments of the official frontend, generator and diffusion for this configuration."""
    network = config.network
    transform = config.transform
    attention = [int(flag) for flag in network.attention]
    levels = {key: value for key, value in asdict(config.noise).items() if key != "rho"}
    frontend = {
        "hop_size": transform.hop,
        "n_fft_factor": transform.window // transform.hop,
        "sample_rate": config.sample_rate,
        "alpha_rescale": transform.alpha,
        "beta_rescale": transform.beta,
    }
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
    diffusion = levels | {"rho": config.noise.rho}
    return {"frontend": frontend, "generator": generator | FIXED | levels, "diffusion": diffusion}


def network_config(state: Mapping[str, Tensor], base_channels: int | None = None) -> NetworkConfig:
    """The configuration whose official state dict this is. Heads leave no trace: the official encoder's 4."""
    unet_blocks = _blocks_per_level(state, "down_layers")
    # The U-Net has a projection before each block; a level ends with its change of resolution.
    ends = list(accumulate(2 * n + 1 for n in unet_blocks))
    first_blocks = [f"down_layers.{end - 2 * n}" for end, n in zip(ends, unet_blocks, strict=True)]
    channels = [state[f"{block}.conv1.weight"].shape[0] for block in first_blocks]
    kernels = [state[f"down_layers.{end - 1}.c.weight"].shape[2:] for end in ends[:-1]]
    bottleneck_channels, latent_channels, _ = state["decoder.conv_inp.weight"].shape
    base_channels = base_channels or math.gcd(*channels)
    return NetworkConfig(
        base_channels=base_channels,
        multipliers=[c // base_channels for c in channels],
        attention=[f"{block}.att.norm.weight" in state for block in first_blocks],
        encoder_blocks=_blocks_per_level(state, "encoder.down_layers"),
        unet_blocks=unet_blocks,
        downsampling=[FREQUENCY if kernel == (5, 1) else BOTH for kernel in kernels],
        bottleneck_channels=bottleneck_channels,
        bottleneck_blocks=_blocks_per_level(state, "decoder.bottleneck_layers")[0],
        latent_channels=latent_channels,
        noise_channels=state["emb_proj.0.weight"].shape[0],
    )


def _blocks_per_level(state: Mapping[str, Tensor], path: str) -> list[int]:
    """Numbers of blocks along a numbered path, which changes its resolution after each level."""
    blocks = [0]
    for k in count():
        if f"{path}.{k}.c.weight" in state:
            blocks.append(0)
        elif f"{path}.{k}.conv1.weight" in state:
            blocks[-1] += 1
        elif f"{path}.{k}.weight" not in state:
            return blocks


def _config(state: Mapping[str, Tensor], arguments: Mapping[str, Mapping], where: str) -> AutoencoderConfig:
    frontend = arguments.get("frontend", MUSIC2LATENT_FRONTEND)
    transform = {"alpha": frontend["alpha_rescale"], "beta": frontend["beta_rescale"]}
    transform["hop"] = state["encoder.gain.scale"].shape[2] // 2
    diffusion = arguments.get("diffusion", {})
    noise = {key: value for key, value in diffusion.items() if key not in WITHOUT_EFFECT}
    settings = {"sample_rate": frontend["sample_rate"], "transform": transform, "noise": noise}
    network = network_config(state, arguments.get("generator", {}).get("base_channels"))
    return replace(from_dict(AutoencoderConfig, settings, where), network=network)


def _check_arguments(given: Mapping[str, Any], supported: Mapping[str, Any], path: Path) -> None:
    for key in sorted(given.keys() - WITHOUT_EFFECT):
        if key not in supported or given[key] != supported[key]:
            allowed = f"needs {supported[key]!r}" if key in supported else "is not known"
            raise ValueError(f"{path}: {key} is {given[key]!r}, {allowed} with these weights")


# ---------------------------------------------------------------- reading files


def _read_arguments(path: Path) -> dict[str, Any]:
    import yaml

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
    window = tensors.pop("frontend.window", None)
    generator = {}
    for key in [key for key in tensors if key.startswith("generator.")]:
        generator[key.removeprefix("generator.")] = tensors.pop(key)
    # The official wrappers register modules twice: `encoder.*` after their first encode, and Lightning's.
    left = [key for key in tensors if not key.startswith(("encoder.", "autoencoder_inference_model."))]
    if generator and left:
        raise ValueError(f"{path} does not fit the network: {len(left)} unknown ({', '.join(left[:3])})")
    generator = generator or tensors
    if "ema_state_dict" in content:
        # In the order of the parameters, which is that of the keys.
        shadow = content["ema_state_dict"]["shadow_params"]
        if len(shadow) != len(generator):
            raise ValueError(f"{path}: {len(shadow)} EMA tensors for {len(generator)} of the network")
        generator = dict(zip(generator, shadow, strict=True))
    return generator, window, 1.0
