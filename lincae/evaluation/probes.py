"""What a linearity report asks beyond the paper's protocols: time shifts, and the best linear map.

Both are protocols as those of `protocols.py`, on the loudest window of a chunk, with `rel_l2` as their metric
(an error e is -20 log10(e) dB).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from lincae.evaluation.protocols import MIXTURE, Chunk

SHIFTS = (0.25, 0.5, 1.0, 4.0)
"""Shifts in time, in latent frames."""
FILTER_S = 0.064
BLOCK_S = 1.0
"""Window of the spectrogram that the best linear filter acts on, and the stretches that it is fitted to."""
N_WINDOWS = 4
"""So many windows are mixed where a track has no stems."""


def equivariance(chunk: Chunk) -> Iterator[dict]:
    """Enc and Dec(Enc) of a sound that begins d later, against the shifted Enc and Dec(Enc) of the sound.

    Shifts are crops of one window, so that nothing but the place of the cut changes; an eighth of the window
    is left out at both sides, where the cut is heard. `condition` is the shift in latent frames ("0.5
    frames"). Latents can shift by whole frames alone; decoded sound by any d. Raises as `Chunk`.
    """
    model = chunk.model
    hop = model.sample_rate / model.latent_rate
    number = _loudest(chunk)
    audio = chunk.windows(MIXTURE)[number]
    length = chunk.window - round(SHIFTS[-1] * hop)
    margin = chunk.window // 8
    edge = math.ceil(margin / hop)
    if length - round(SHIFTS[-1] * hop) - 2 * margin < hop:
        for protocol in ("encoder_equivariance", "decoder_equivariance"):
            yield chunk.row(protocol, "linearity", MIXTURE, (audio, audio), status="window too short")
        return

    def cropped(shift: float) -> tuple[Tensor, Tensor, int]:
        d = round(shift * hop)
        z = model.encode(audio[None, d : d + length])
        return z, chunk.decode_windows(z, length), d

    z0, own, _ = cropped(0)
    wrong = chunk.swapped(MIXTURE)[number : number + 1, :, : z0.shape[-1]]
    foreign = chunk.decode_windows(wrong, length)
    for shift in SHIFTS:
        z, decoded, d = cropped(shift)
        condition = f"{shift:g} frames"
        frames = z0.shape[-1] - round(shift)
        if shift == round(shift):
            for comparison, latents in {"linearity": z0, "swap": wrong}.items():
                later = latents[..., round(shift) + edge : latents.shape[-1] - edge]
                pair = z[..., edge : edge + later.shape[-1]], later
                if frames > 2 * edge:
                    yield chunk.row("encoder_equivariance", comparison, MIXTURE, pair, condition=condition)
        for comparison, sound in {"linearity": own, "swap": foreign}.items():
            pair = decoded[:, margin : length - d - margin], sound[:, margin + d : length - margin]
            yield chunk.row("decoder_equivariance", comparison, MIXTURE, pair, condition=condition)
    again = chunk.decode_windows(z0, length, reseeded=True)
    pair = again[:, margin : length - margin], own[:, margin : length - margin]
    yield chunk.row("decoder_equivariance", "floor", MIXTURE, pair, condition="0 frames")


def fit(chunk: Chunk) -> Iterator[dict]:
    """How much of Dec(Enc) a linear map explains: `value` is that share of its output's energy, 1 - rel_l2^2.

    Condition "any map": K sounds (the stems; without stems, the loudest windows of the mixture) are mixed
    with 4 K random signed weights. On such mixtures every linear map is a matrix from K weights to T samples,
    whatever its filters, strides or changes over time. It is fitted by least squares on half of the mixtures
    and tested on the other half, in both directions. Exactly 1 where Dec(Enc) is linear; 0 where the output
    has nothing to do with the weights, so also for a decoder that ignores its latent. The weights of a half
    have orthogonal columns, so that fitting adds no more than half of the unexplained energy to it.

    Condition "one filter": the best linear filter from the mixture to its decode, one complex number for each
    frequency, fitted on every other second and tested on the rest, in both directions. The share is the part
    of the output that is coherent with the input: smaller than that of "any map" where aliasing, shifts in
    time or new sounds replace what was there.
    """
    parts = _parts(chunk)
    rng = chunk.generator(chunk.start)
    halves = []
    for _ in range(2):
        n = 2 * len(parts)
        weights = torch.linalg.qr(torch.randn(n, len(parts), generator=rng))[0] * n**0.5
        mixed = (weights.to(parts) @ parts).split(chunk.config.batch_size)
        decoded = [chunk.decode_windows(chunk.model.encode(audio), chunk.window) for audio in mixed]
        halves.append((weights.double(), torch.cat(decoded).double().cpu()))
    yield _explained(chunk, "any map", *_crossed(halves, lambda w, y: torch.linalg.pinv(w) @ y))
    x, y = _spectra(chunk)
    frames = round(BLOCK_S / (FILTER_S / 4))
    odd = (torch.arange(x.shape[-1]) // frames) % 2 == 1
    if odd.any():
        halves = [(x[:, part].T, y[:, part].T) for part in (~odd, odd)]
        prediction, reference = _crossed(halves, _filter, lambda x, h: x * h)
        pair = torch.view_as_real(prediction), torch.view_as_real(reference)
        yield _explained(chunk, "one filter", *pair)


PROBES: dict[str, Callable[[Chunk], Iterator[dict]]] = {
    probe.__name__: probe for probe in (equivariance, fit)
}


def _crossed(
    halves: Sequence[tuple[Tensor, Tensor]], fitted: Callable, applied: Callable = torch.matmul
) -> tuple[Tensor, Tensor]:
    """Outputs that a map fitted on the other half predicts, and the outputs."""
    (x, y), (x_other, y_other) = halves
    prediction = applied(x, fitted(x_other, y_other)), applied(x_other, fitted(x, y))
    return torch.cat(prediction), torch.cat((y, y_other))


def _filter(x: Tensor, y: Tensor) -> Tensor:
    """Least squares h (F,) of y = h x for spectra (N, F); 0 where there is no input."""
    power = x.abs().square().sum(0)
    return (x.conj() * y).sum(0) / power.clamp(min=torch.finfo(power.dtype).tiny)


def _spectra(chunk: Chunk) -> tuple[Tensor, Tensor]:
    """Spectra (F, N) of the mixture and of its decode, in float64."""
    n_fft = 4 * round(FILTER_S / 4 * chunk.model.sample_rate)
    audio = torch.stack([s.cpu().double() for s in (chunk.signal(MIXTURE), chunk.decoded(MIXTURE))])
    audio = pad(audio, (0, max(0, n_fft - audio.shape[-1])))
    window = torch.hann_window(n_fft, dtype=audio.dtype)
    x, y = torch.stft(audio, n_fft, n_fft // 4, window=window, center=False, return_complex=True)
    return x, y


def _loudest(chunk: Chunk) -> int:
    """The number of the window of the mixture that has the most energy."""
    return int(chunk.windows(MIXTURE).square().sum(1).argmax())


def _parts(chunk: Chunk) -> Tensor:
    """Sounds (K, T) to mix: the stems in the loudest window, or the loudest windows of the mixture."""
    if len(chunk.names) > 1:
        number = _loudest(chunk)
        return torch.stack([chunk.windows(name)[number] for name in chunk.names])
    windows = chunk.windows(MIXTURE)
    return windows[windows.square().sum(1).argsort(descending=True)[:N_WINDOWS]]


def _explained(chunk: Chunk, condition: str, prediction: Tensor, reference: Tensor) -> dict:
    row = chunk.row("linear_fit", "linearity", MIXTURE, (prediction, reference), condition=condition)
    return row | ({"value": 1 - row["rel_l2"] ** 2} if "rel_l2" in row else {})
