"""Evaluation of Re-Encoders as in Tables 1 and 2 and Figures 2 and 3 of the paper, as long-format frames.

Every system is decoded once, from latents: no module sees a waveform. One row per (model, track, system, band
or channel). `stft_d` and `mel_d` are auraloss's `MultiResolutionSTFTLoss` and `MelSTFTLoss`, item by item;
lower is better, NaN where the reference is silent.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lincae.evaluation.tables import interval, select
from lincae.interface import AutoencoderLike
from lincae.latents.algebra import left_right
from lincae.machine import generator
from lincae.metrics import is_silent
from lincae.reencoder.module import ReEncoder
from lincae.reencoder.pairs import Source, task_input, warn_if_full_band
from lincae.training.environment import give_numba_a_cache

AUTOENCODER = "autoencoder"
INPUT = "input"
CODED_INPUT = "autoencoder(input)"
LATENT_ARITHMETIC = "latent mid + side"
DISTANCES = ("stft_d", "mel_d")
CHANNELS = ("left", "right", "mid", "side")


# ---------------------------------------------------------------- distances


def distances(prediction: Tensor, reference: Tensor, sample_rate: int) -> dict[str, float]:
    """STFT-D and mel-D of audio (T,); NaN where the reference is silent.

    Raises ValueError for audio of another shape or length.
    """
    if prediction.shape != reference.shape or reference.ndim != 1:
        shapes = f"{tuple(prediction.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"distances compare audio (T,) of one length, got {shapes}")
    if is_silent(reference[None]).item():
        return dict.fromkeys(DISTANCES, math.nan)
    pair = [x.detach().cpu().double()[None, None] for x in (prediction, reference)]
    return {name: loss(*pair).item() for name, loss in _losses(sample_rate).items()}


@functools.cache
def _losses(sample_rate: int) -> dict[str, torch.nn.Module]:
    give_numba_a_cache()
    from auraloss.freq import MelSTFTLoss, MultiResolutionSTFTLoss

    losses = {"stft_d": MultiResolutionSTFTLoss(), "mel_d": MelSTFTLoss(sample_rate)}
    return {name: loss.double() for name, loss in losses.items()}


def band(audio: Tensor, sample_rate: int, low_hz: float = 0.0, high_hz: float = math.inf) -> Tensor:
    """What audio (..., T) holds from `low_hz` up to below `high_hz`: a brick wall on the Fourier transform of
    the whole, so that low and high add up to what they were cut from."""
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
    rate = model.sample_rate
    limit_hz = rate / (2 * factor)
    bands = {"all": (0.0, top_hz), "low": (0.0, limit_hz), "high": (limit_hz, top_hz)}
    rows = []
    for source in sources:
        target = source.read(rate)
        narrow = task_input(target, "bandwidth", rate, factor)
        warn_if_full_band(narrow, rate, factor, source.name)
        z_in = model.encode(narrow)
        latents = {AUTOENCODER: model.encode(target), CODED_INPUT: z_in}
        latents |= {name: module.process(z_in) for name, module in modules.items()}
        outputs, labels = _heard(model, source, narrow, latents, seed)
        for system, audio in outputs.items():
            for name, edges_hz in bands.items():
                found = distances(band(audio[0], rate, *edges_hz), band(target[0], rate, *edges_hz), rate)
                rows.append({**labels, "system": system, "band": name, **found})
    return pd.DataFrame(rows)


def _heard(
    model: AutoencoderLike, source: Source, unprocessed: Tensor, latents: Mapping[str, Tensor], seed: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The audio of all systems, each decoded once, and the columns that all rows of a source share."""
    outputs = {INPUT: unprocessed}
    for name, z in latents.items():
        outputs[name] = model.decode(z, length=unprocessed.shape[-1], seed=seed).cpu()
    return outputs, {"model": model.name, "dataset": source.dataset, "track": source.name}


def _check(model: AutoencoderLike, modules: Mapping[str, ReEncoder], task: str) -> None:
    for name, module in modules.items():
        if module.config.task != task:
            raise ValueError(f"{name} is a module of {module.config.task}, not of {task}")
        module.check_model(model)


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
    "autoencoder(input)", "latent mid + side" (true mid and side, encoded and combined as latents: the cost of
    mid/side arithmetic), and "NAME, lambda = 0" and so on: the condition is lambda c_oracle +
    (1 - lambda) c_random, the latter drawn from the prior by (seed, index of the track).

    Raises as `bandwidth_frame`; ValueError for a source that is not stereo and for no lambdas.
    """
    _check(model, modules, "stereo")
    if not len(lambdas):
        raise ValueError("stereo_frame needs one lambda or more: an empty list is no condition")
    rate = model.sample_rate
    rows = []
    ratios = []
    for index, source in enumerate(sources):
        target = source.read(rate)
        mono = task_input(target, "stereo", rate)
        z_mono = model.encode(mono)
        z_target = model.encode(target)
        z_mid_side = model.encode(torch.stack(_mid_side(target)))
        latents = {CODED_INPUT: z_mono, AUTOENCODER: z_target, LATENT_ARITHMETIC: left_right(z_mid_side)}
        mixed = {}
        for name, module in modules.items():
            random = module.prior(index + 1, seed)[index:]
            oracle = module.oracle(z_target[None])
            for weight in lambdas:
                system = f"{name}, lambda = {weight:g}"
                mixed[system] = (name, weight)
                latents[system] = module.process(z_mono, weight * oracle + (1 - weight) * random)[0]

        outputs, labels = _heard(model, source, mono, latents, seed)
        for system, audio in outputs.items():
            sides = audio.expand(2, -1)  # mono is heard from both
            pairs = zip((*sides, *_mid_side(sides)), (*target, *_mid_side(target)), strict=True)
            for channel, (made, true) in zip(CHANNELS, pairs, strict=True):
                rows.append({**labels, "system": system, "channel": channel, **distances(made, true, rate)})
            if system in mixed:
                name, weight = mixed[system]
                balance = {"balance_true_db": level_db(*target), "balance_db": level_db(*audio)}
                ratios.append({**labels, "module": name, "lambda": weight, **balance})
    return pd.DataFrame(rows), pd.DataFrame(ratios)


def _mid_side(audio: Tensor) -> tuple[Tensor, Tensor]:
    return (audio[0] + audio[1]) / 2, (audio[0] - audio[1]) / 2


def level_db(audio: Tensor, reference: Tensor) -> float:
    """Energy of audio (T,) over that of a reference, in dB; of left over right, the ratio of Figure 3."""
    energy, unit = (x.double().square().sum() + 1e-12 for x in (audio, reference))
    return 10 * (energy / unit).log10().item()


def paired(
    frame: pd.DataFrame, better: str, worse: str, metric: str, **rows: str
) -> tuple[float, float, float]:
    """Mean over tracks of metric(worse) - metric(better), and its 95 % interval: above zero, `better` is.

    `rows`: which rows of the frame, such as band="high". Raises ValueError for a system without rows.
    """
    table = select(frame, **rows).pivot_table(index=["model", "track"], columns="system", values=metric)
    missing = {better, worse} - set(table.columns)
    if missing:
        raise ValueError(f"no rows of {', '.join(sorted(missing))}; there are {', '.join(table.columns)}")
    return interval((table[worse] - table[better]).dropna())


# ---------------------------------------------------------------- cost


def costs(model: AutoencoderLike, modules: Mapping[str, ReEncoder], seconds: float = 4.0) -> pd.DataFrame:
    """What "encode", "decode" and each module, by name, cost for one second of mono audio.

    They run on `seconds` of noise. Columns: `gflops`, and `seconds`, the least of three runs.
    """
    n_samples = round(seconds * model.sample_rate)
    audio = 0.1 * torch.randn(1, n_samples, generator=generator(0))
    z = model.encode(audio)
    part = z[..., : round(seconds * model.latent_rate)]
    runs = {"encode": lambda: model.encode(audio), "decode": lambda: model.decode(z, length=n_samples)}
    for name, module in modules.items():
        runs[name] = functools.partial(module.process, part)

    rows = {}
    for name, run in runs.items():
        length_s = part.shape[-1] / model.latent_rate if name in modules else seconds
        least_s = min(_timed(run) for _ in range(3))
        rows[name] = {"gflops": gflops(run, length_s), "seconds": least_s / length_s}
    return pd.DataFrame.from_dict(rows, orient="index")


def gflops(run: Callable[[], Any], seconds: float = 1.0) -> float:
    """GFLOP for a second of audio, of `run`, which processes so many: two for each multiplication and
    addition in matrix products and convolutions, nothing for norms, activations and Fourier transforms."""
    # the counter does not see the fused attention of CPUs
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / seconds / 1e9


def _timed(run: Callable[[], Tensor]) -> float:
    begin = time.perf_counter()
    # reading a number off an accelerator waits for it
    float(run().flatten()[0])
    return time.perf_counter() - begin
