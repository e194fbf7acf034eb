"""What Tables 1 and 2 of the Re-Encoder's paper measure: distances, bands, levels, gains and costs.

`stft_d` and `mel_d` are auraloss's `MultiResolutionSTFTLoss` and `MelSTFTLoss` of one item; lower is better.
Notebooks 09 and 10 make the tables and figures of them.
"""

import functools
import math
import timeit
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lincae.evaluation.tables import interval, select
from lincae.interface import AutoencoderLike
from lincae.machine import generator
from lincae.metrics import is_silent
from lincae.reencoder.module import ReEncoder
from lincae.training.environment import give_numba_a_cache

DISTANCES = ("stft_d", "mel_d")


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

    return {"stft_d": MultiResolutionSTFTLoss().double(), "mel_d": MelSTFTLoss(sample_rate).double()}


def band(audio: Tensor, sample_rate: int, low_hz: float = 0.0, high_hz: float = math.inf) -> Tensor:
    """What audio (..., T) holds from `low_hz` up to below `high_hz`: a brick wall on the Fourier transform of
    the whole, so that low and high add up to what they were cut from."""
    spectrum = torch.fft.rfft(audio)
    bins = torch.fft.rfftfreq(audio.shape[-1], 1 / sample_rate, device=audio.device)
    return torch.fft.irfft(spectrum * ((bins >= low_hz) & (bins < high_hz)), audio.shape[-1])


def level_db(audio: Tensor, reference: Tensor) -> float:
    """Energy of audio (T,) over that of a reference, in dB; of left over right, the ratio of Figure 3."""
    energy, unit = (x.double().square().sum() + 1e-12 for x in (audio, reference))
    return 10 * (energy / unit).log10().item()


def paired(
    frame: pd.DataFrame, better: str, worse: str, metric: str, **rows: str
) -> tuple[float, float, float]:
    """Mean over tracks of metric(worse) - metric(better), and its 95 % interval: above zero, `better` is.

    `frame` has columns "model", "track", "system" and the metric. `rows`: which rows of it, such as
    band="high". Raises ValueError for a system without rows.
    """
    table = select(frame, **rows).pivot_table(index=["model", "track"], columns="system", values=metric)
    missing = {better, worse} - set(table.columns)
    if missing:
        raise ValueError(f"no rows of {', '.join(sorted(missing))}; there are {', '.join(table.columns)}")
    return interval((table[worse] - table[better]).dropna())


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
        # Reading a number off an accelerator waits for it.
        least_s = min(timeit.repeat(lambda run=run: run().flatten()[0].item(), number=1, repeat=3))
        rows[name] = {"gflops": gflops(run, length_s), "seconds": least_s / length_s}
    return pd.DataFrame.from_dict(rows, orient="index")


def gflops(run: Callable[[], Any], seconds: float = 1.0) -> float:
    """GFLOP for a second of audio, of `run`, which processes so many: two for each multiplication and
    addition in matrix products and convolutions, nothing for norms, activations and Fourier transforms."""
    # The counter does not see the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / seconds / 1e9
