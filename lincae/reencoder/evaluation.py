"""Evaluation of Re-Encoders as in Tables 1 and 2 and Figures 2 and 3 of the paper, as long-format frames.

Every system is decoded once, from latents: no module sees a waveform. One row per (model, track, system, band
or channel). `stft_d` and `mel_d` are auraloss's `MultiResolutionSTFTLoss` and `MelSTFTLoss` with their
defaults, item by item; lower is better, NaN where the reference is silent.

Where the paper is silent: bands are cut by a brick-wall filter on the Fourier transform of the whole signal,
so that low and high add up to what they were cut from; random conditions are drawn from the prior by
(seed, index of the track).

Axis legend: `B` batch, `T` samples, `C` latent channels, `L` latent frames, `H` numbers of a condition.
"""

import copy
import functools
import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lincae.interface import AutoencoderLike
from lincae.latents.algebra import left_right
from lincae.machine import generator
from lincae.metrics import is_silent
from lincae.reencoder.module import ReEncoder
from lincae.reencoder.pairs import Source, task_input, warn_if_full_band

AUTOENCODER, INPUT, CODED_INPUT = "autoencoder", "input", "autoencoder(input)"
LATENT_ARITHMETIC = "latent mid + side"
DISTANCES = ("stft_d", "mel_d")
CHANNELS = ("left", "right", "mid", "side")
FLOP_SECONDS = 4.0


# ---------------------------------------------------------------- distances


def distances(prediction: Tensor, reference: Tensor, sample_rate: int) -> dict[str, float]:
    """STFT-D and mel-D of audio (T,); NaN where the reference is silent."""
    if prediction.shape != reference.shape or reference.ndim != 1:
        shapes = f"{tuple(prediction.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"distances compare audio (T,) of one length, got {shapes}")
    if is_silent(reference[None]).item():
        return dict.fromkeys(DISTANCES, math.nan)
    pair = [x.detach().cpu().double()[None, None] for x in (prediction, reference)]
    return {name: loss(*pair).item() for name, loss in _losses(sample_rate).items()}


@functools.cache
def _losses(sample_rate: int) -> dict[str, torch.nn.Module]:
    from auraloss.freq import MelSTFTLoss, MultiResolutionSTFTLoss

    losses = {"stft_d": MultiResolutionSTFTLoss(), "mel_d": MelSTFTLoss(sample_rate)}
    return {name: loss.double() for name, loss in losses.items()}


def band(audio: Tensor, sample_rate: int, low_hz: float = 0.0, high_hz: float = math.inf) -> Tensor:
    """What audio (..., T) holds from `low_hz` up to below `high_hz`."""
    spectrum = torch.fft.rfft(audio)
    bins = torch.fft.rfftfreq(audio.shape[-1], 1 / sample_rate, device=audio.device)
    return torch.fft.irfft(spectrum * ((bins >= low_hz) & (bins < high_hz)), audio.shape[-1])


# ---------------------------------------------------------------- bandwidth extension


def bandwidth_frame(
    model: AutoencoderLike,
    modules: Mapping[str, ReEncoder],
    sources: Sequence[Source],
    factor: int = 2,
    top_hz: float = math.inf,
    seed: int = 0,
) -> pd.DataFrame:
    """Table 1: a row for each track, system and band ("all", "low", "high").

    Systems: "autoencoder" (of the full band), "input" (band-limited, never encoded), "autoencoder(input)",
    then the modules by name. The bands meet at the input's limit; "high" and "all" end at `top_hz`, for
    autoencoders that reproduce no more. All decodes share their noise.

    Raises LatentFileError for a module of another autoencoder; ValueError for one of another task, and as
    `task_input`. Warns of targets that hold nothing above the limit, and of inputs that do.
    """
    _check(model, modules, "bandwidth")
    rate, rows = model.sample_rate, []
    limit_hz = rate / (2 * factor)
    bands = {"all": (0.0, top_hz), "low": (0.0, limit_hz), "high": (limit_hz, top_hz)}
    for source in sources:
        target = source.read(rate)
        narrow = task_input(target, "bandwidth", rate, factor)
        warn_if_full_band(narrow, rate, factor, source.name)
        z_in, z_target = model.encode(narrow), model.encode(target)
        latents = {AUTOENCODER: z_target, CODED_INPUT: z_in}
        latents |= {name: module.process(z_in) for name, module in modules.items()}
        outputs = {INPUT: narrow} | {
            name: model.decode(z, length=target.shape[-1], seed=seed).cpu() for name, z in latents.items()
        }
        labels = {"model": model.name, "dataset": source.dataset, "track": source.name}
        for system, audio in outputs.items():
            for name, edges in bands.items():
                cut = (band(x[0], rate, *edges) for x in (audio, target))
                rows.append(labels | {"system": system, "band": name} | distances(*cut, rate))
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- mono to stereo


def stereo_frame(
    model: AutoencoderLike,
    modules: Mapping[str, ReEncoder],
    sources: Sequence[Source],
    lambdas: Sequence[float] = (0.0, 1.0),
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table 2, and Figure 3: rows for each track, system and channel ("left", "right", "mid", "side"); and
    for each track, module and lambda how much louder left is than right, in dB, in truth and output.

    Systems: "autoencoder" (left and right through it), "input" (mono copied to both, never encoded),
    "autoencoder(input)", "latent mid + side" (the true mid and side, encoded, and combined as latents: no
    module, it tells what mid/side arithmetic costs), and "NAME, lambda = 0" and so on: the condition is
    lambda c_oracle + (1 - lambda) c_random, so 1 is the oracle and 0 the prior.

    Raises as `bandwidth_frame`; ValueError for a source that is not stereo and for no lambdas.
    """
    _check(model, modules, "stereo")
    if not len(lambdas):
        raise ValueError("stereo_frame needs one lambda or more: an empty list is no condition")
    rows, ratios, rate = [], [], model.sample_rate
    for index, source in enumerate(sources):
        target = source.read(rate)
        mono = task_input(target, "stereo", rate)
        z_mono, z_target = model.encode(mono), model.encode(target)
        z_parts = model.encode(torch.stack([(target[0] + target[1]) / 2, (target[0] - target[1]) / 2]))
        latents = {AUTOENCODER: z_target, LATENT_ARITHMETIC: left_right(z_parts)}
        mixed = {}
        for name, module in modules.items():
            drawn, oracle = module.prior(index + 1, seed)[index:], module.oracle(z_target[None])
            for weight in lambdas:
                condition = weight * oracle + (1 - weight) * drawn
                mixed[f"{name}, lambda = {weight:g}"] = name, weight
                latents[f"{name}, lambda = {weight:g}"] = module.process(z_mono, condition)[0]
        length = target.shape[-1]
        coded_mono = model.decode(z_mono, length=length, seed=seed).cpu()
        outputs = {INPUT: mono.expand(2, -1), CODED_INPUT: coded_mono.expand(2, -1)} | {
            name: model.decode(z, length=length, seed=seed).cpu() for name, z in latents.items()
        }
        labels = {"model": model.name, "dataset": source.dataset, "track": source.name}
        for system, audio in outputs.items():
            for channel, x, y in zip(CHANNELS, _four(audio), _four(target), strict=True):
                rows.append(labels | {"system": system, "channel": channel} | distances(x, y, rate))
            if system in mixed:
                name, weight = mixed[system]
                energies = {"balance_true_db": level_db(*target), "balance_db": level_db(*audio)}
                ratios.append(labels | {"module": name, "lambda": weight} | energies)
    return pd.DataFrame(rows), pd.DataFrame(ratios)


def _four(audio: Tensor) -> tuple[Tensor, ...]:
    return (*audio, (audio[0] + audio[1]) / 2, (audio[0] - audio[1]) / 2)


def level_db(audio: Tensor, reference: Tensor) -> float:
    """Energy of audio (T,) over that of a reference, in dB; of left over right, the ratio of Figure 3."""
    energy, unit = (x.double().square().sum() + 1e-12 for x in (audio, reference))
    return 10 * (energy / unit).log10().item()


def correlations(ratios: pd.DataFrame, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Pearson's correlation of true and made balance for each (model, module, lambda), with its 95 %
    bootstrap interval over tracks."""
    rows = []
    for key, group in ratios.groupby(["model", "module", "lambda"], sort=False):
        pairs = group[["balance_true_db", "balance_db"]].to_numpy()
        draws = np.random.default_rng(seed).integers(len(pairs), size=(n_resamples, len(pairs)))
        low, high = np.nanquantile([_pearson(pairs[draw]) for draw in draws], [0.025, 0.975])
        labels = dict(zip(("model", "module", "lambda"), key, strict=True))
        rows.append(labels | {"correlation": _pearson(pairs), "low": low, "high": high, "n": len(pairs)})
    return pd.DataFrame(rows)


def _pearson(pairs: np.ndarray) -> float:
    centred = pairs - pairs.mean(0)
    size = np.sqrt((centred**2).sum(0)).prod()
    return float((centred[:, 0] * centred[:, 1]).sum() / size) if size > 0 else math.nan


def paired(
    frame: pd.DataFrame, better: str, worse: str, metric: str, **rows: str
) -> tuple[float, float, float]:
    """Mean over tracks of metric(worse) - metric(better), and its 95 % interval: above zero, `better` is.

    `rows`: which rows of the frame, such as band="high". Raises ValueError for a system without rows.
    """
    from lincae.evaluation.tables import interval

    part = frame.loc[np.logical_and.reduce([frame[key] == value for key, value in rows.items()])]
    table = part.pivot_table(index=["model", "track"], columns="system", values=metric)
    if missing := {better, worse} - set(table.columns):
        raise ValueError(f"no rows of {', '.join(sorted(missing))}; there are {', '.join(table.columns)}")
    return interval((table[worse] - table[better]).dropna().to_numpy())


# ---------------------------------------------------------------- cost


def module_gflops(module: ReEncoder, latent_rate: float | None = None) -> float:
    """GFLOP of a module for one second of audio, two per multiplication and addition (matrix products and
    convolutions; no norms or activations), as torch counts them on the meta device."""
    rate = module.autoencoder["latent_rate"] if latent_rate is None else latent_rate
    n_frames = round(rate * FLOP_SECONDS)
    shape = copy.deepcopy(module).to("meta")
    z = torch.empty(1, module.config.latent_channels, n_frames, device="meta")
    condition = torch.empty(1, module.config.condition, device="meta") if module.stereo else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shape(z, condition)
    return counter.get_total_flops() / (n_frames / rate) / 1e9


def autoencoder_gflops(model: AutoencoderLike) -> dict[str, float]:
    """GFLOP of "encode" and "decode" for one second of mono audio, counted as `module_gflops` while they
    run. Fourier transforms are not counted."""
    audio = 0.1 * torch.randn(1, round(FLOP_SECONDS * model.sample_rate), generator=generator(0))
    found = {}
    # the counter does not see the fused attention of CPUs
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            z = model.encode(audio)
        found["encode"] = counter.get_total_flops() / FLOP_SECONDS / 1e9
        with FlopCounterMode(display=False) as counter:
            model.decode(z, length=audio.shape[-1])
        found["decode"] = counter.get_total_flops() / FLOP_SECONDS / 1e9
    return found


def seconds_per_second(model: AutoencoderLike, module: ReEncoder, seconds: float = 4.0) -> dict[str, float]:
    """Time that "encode", "process" and "decode" take for one second of audio: the least of three runs."""
    audio = 0.1 * torch.randn(1, round(seconds * model.sample_rate), generator=generator(0))
    z = model.encode(audio)
    steps = {
        "encode": lambda: model.encode(audio),
        "process": lambda: module.process(z),
        "decode": lambda: model.decode(z, length=audio.shape[-1]),
    }
    return {name: min(_timed(step) for _ in range(3)) / seconds for name, step in steps.items()}


def _timed(step) -> float:
    begin = time.perf_counter()
    # reading a number off an accelerator waits for it
    float(step().flatten()[0])
    return time.perf_counter() - begin


def _check(model: AutoencoderLike, modules: Mapping[str, ReEncoder], task: str) -> None:
    for name, module in modules.items():
        if module.config.task != task:
            raise ValueError(f"{name} is a module of {module.config.task}, not of {task}")
        module.check_model(model)
