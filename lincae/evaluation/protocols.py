"""The paper's protocols (sections 4.2 to 4.5) and more on one chunk of a track, for any `AutoencoderLike`.

Windows of the chunk go through encoder and decoder one by one and are overlap-added; metrics are taken of the
whole chunk. Every signal is encoded once, and its latents serve all protocols. Shapes (W, ...) are those of
W windows of a chunk.
"""

import functools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from lincae import metrics
from lincae.interface import AutoencoderLike
from lincae.machine import generator

MIXTURE = "mixture"
NOISES = ("common", "independent")
ROUNDING = 1e-5  # so much of a signal is the rounding of float32
ENDING_S = 0.1  # may be missing at the end of a track, and is silence: containers round lengths to frames

Pair = tuple[Tensor, Tensor]  # prediction and reference


class Stems(Protocol):
    """What is asked of a track; `lincae.data.tracks.Track` is one."""

    name: str
    dataset: str
    stem_names: tuple[str, ...]
    sample_rate: int
    duration_s: float

    def stems(self, sample_rate: int, start_s: float, seconds: float) -> Tensor:
        """Stems (S, T), mono."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What the paper gives (section 4.2: windows of 2 s, overlap 0.5 s), and choices that it leaves open.

    - `chunk_s`: what a metric is taken of. 10 s is a MusicCaps clip: one chunk a track in Table 2.
    - `seconds`: at most so much of each track; None: all.
    - `gains`: the grid of homogeneity.
    - `gain_range`: of the random gain of each track, drawn uniformly. The paper does not state it, and the
      mean encoder error depends on its lower end.
    - `noise`: the decodes of a comparison share it ("common"), or do not ("independent").
    """

    window_s: float = 2.0
    overlap_s: float = 0.5
    chunk_s: float = 10.0
    seconds: float | None = None
    gains: tuple[float, ...] = (-3.0, -1.0, -0.3, -0.1, 0.1, 0.3, 3.0)
    gain_range: tuple[float, float] = (0.1, 3.0)
    noise: str = "common"
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self):
        """Raises ValueError for values out of range."""
        for name in ("gains", "gain_range"):  # lists come from notebooks and JSON
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        low, high = self.gain_range
        for ok, allowed in (
            (0 <= self.overlap_s <= self.window_s / 2, "0 <= overlap_s <= window_s / 2"),
            (0 < self.window_s <= self.chunk_s, "0 < window_s <= chunk_s"),
            (self.seconds is None or self.seconds > 0, "seconds > 0, or None"),
            (all(math.isfinite(gain) and gain for gain in self.gains), "finite gains other than 0"),
            (math.isfinite(low) and low < high < math.inf, "a finite gain_range, low < high"),
            (self.noise in NOISES, f"noise in {NOISES}"),
            (self.seed >= 0 and self.batch_size >= 1, "seed >= 0 and batch_size >= 1"),
        ):
            if not ok:
                raise ValueError(f"evaluation needs {allowed}, got {self}")


def window_starts(n_samples: int, window: int, overlap: int) -> list[int]:
    """Start of every window, neighbours sharing `overlap` samples; the last one ends with the signal."""
    last = n_samples - window
    return [*range(0, last, window - overlap), last]


def overlap_add(windows: Sequence[Tensor], starts: Sequence[int], overlap: int) -> Tensor:
    """Join windows (T,), each fading in linearly over `overlap` samples; weights sum to one."""
    out = windows[0].new_empty(starts[-1] + len(windows[-1]))
    ramp = (torch.arange(overlap, device=out.device, dtype=out.dtype) + 0.5) / max(overlap, 1)
    for window, start in zip(windows, starts, strict=True):
        fade = overlap if start else 0
        head = out[start : start + fade]
        out[start : start + fade] = torch.lerp(head, window[:fade], ramp[:fade])
        out[start + fade : start + len(window)] = window[fade:]
    return out


@dataclass(eq=False)
class Chunk:
    """A chunk of a track: its signals, their latents and decodes, each computed once, when asked for.

    Signals are named: "mixture", a stem, or "without " and a stem (the accompaniment). A track shorter than a
    window is padded with silence, which is cut off again. `start` and `n_samples` are at the model's rate.
    """

    model: AutoencoderLike
    track: Stems
    start: int
    n_samples: int
    config: EvaluationConfig
    latents: dict[tuple[str, float], Tensor] = field(default_factory=dict)
    """Known latents (W, C, L) of signals at gain 1, and where new ones go."""
    decodes: dict[str, Tensor] = field(default_factory=dict)
    """Known decodes (T,) of these, and where those go that another chunk asks for."""
    stranger: "Chunk | None" = None
    """A chunk of another track. None: there is none, and this one at another time stands in."""

    def __post_init__(self):
        self.names = tuple(name for name in self.track.stem_names if name != MIXTURE)
        self.window = round(self.config.window_s * self.model.sample_rate)
        self.overlap = round(self.config.overlap_s * self.model.sample_rate)
        self.starts = window_starts(max(self.n_samples, self.window), self.window, self.overlap)
        self._scaled: dict[tuple[str, float], Tensor] = {}
        self._decodes: dict[tuple[str, bool], Tensor] = {}

    @functools.cached_property
    def stems(self) -> Tensor:
        """Stems (S, T) at the model's sample rate.

        Raises ValueError, naming the track, where it ends before the chunk does.
        """
        rate = self.model.sample_rate
        stems = self.track.stems(rate, self.start / rate, self.n_samples / rate)
        lacking = self.n_samples - stems.shape[-1]
        if lacking > rate * ENDING_S:
            ends_s = (self.start + stems.shape[-1]) / rate
            stated = f"track {self.track.name!r} is said to last {self.track.duration_s:g} s"
            raise ValueError(f"{stated}, and its sound ends at {ends_s:.3f} s")
        return pad(stems, (0, max(0, lacking)))[:, : self.n_samples]

    @functools.cached_property
    def _signals(self) -> dict[str, Tensor]:
        mixture = self.stems.sum(0)
        signals = {MIXTURE: mixture}
        for stem, audio in zip(self.names, self.stems, strict=False):
            signals[stem] = audio
            signals[f"without {stem}"] = mixture - audio
        for n in range(3, len(self.names) - 1):
            signals[f"first {n}"] = self.stems[:n].sum(0)
        return signals

    def signal(self, name: str) -> Tensor:
        """(T,) at the model's sample rate. The mixture is the sum of the stems."""
        return self._signals[name]

    def encode(self, name: str, gain: float = 1.0) -> Tensor:
        """Latents (W, C, L) of the windows of `gain` times a signal."""
        cache = self.latents if gain == 1 else self._scaled
        if (name, gain) not in cache:
            windows = self.windows(name, gain)
            z = torch.cat([self.model.encode(part) for part in windows.split(self.config.batch_size)])
            if z.ndim != 3 or len(z) != len(windows):
                got = f"{tuple(z.shape)} for audio {tuple(windows.shape)}"
                raise ValueError(f"{self.model.name}: encode returned {got}, expected (B, C, L)")
            cache[name, gain] = z
        return cache[name, gain]

    def windows(self, name: str, gain: float = 1.0) -> Tensor:
        """Windows (W, T) of `gain` times a signal; silence follows a signal that is shorter than one."""
        audio = pad(gain * self.signal(name), (0, max(0, self.window - self.n_samples)))
        return torch.stack([audio[start : start + self.window] for start in self.starts])

    def decode(self, latents: Tensor, reseeded: bool = False) -> Tensor:
        """Latents (W, C, L) to (T,), overlap-added. `reseeded`: with another noise."""
        parts = []
        for z in latents.split(self.config.batch_size):
            parts += self.decode_windows(z, self.window, reseeded)
        audio = overlap_add(parts, self.starts, self.overlap)
        return audio[: self.n_samples]

    def decode_windows(self, z: Tensor, length: int, reseeded: bool = False) -> Tensor:
        """Latents (B, C, L) to (B, T), T = `length`; ValueError where the model returns another shape."""
        audio = self.model.decode(z, length=length, seed=self.config.seed + reseeded)
        if audio.shape != (len(z), length):
            asked = f"length={length} of {len(z)} latents"
            raise ValueError(f"{self.model.name}: decode returned {tuple(audio.shape)} for {asked}")
        return audio

    def generator(self, *labels: int) -> torch.Generator:
        """Random numbers of this track; `labels` tell apart what they are for."""
        name = self.track.name.encode("utf-8", "surrogateescape")
        return generator(self.config.seed, zlib.crc32(name), *labels)

    def once(self, name: str, latents: Callable[[], Tensor], reseeded: bool = False) -> Tensor:
        """Decode (T,) of `latents`, which are asked for and decoded at the first call with this name."""
        if (name, reseeded) not in self._decodes:
            self._decodes[name, reseeded] = self.decode(latents(), reseeded)
        return self._decodes[name, reseeded]

    def decoded(self, name: str, reseeded: bool = False) -> Tensor:
        """Dec(Enc(signal)), (T,)."""
        if name in self.decodes and not reseeded:
            return self.decodes[name]
        return self.once(name, lambda: self.encode(name), reseeded)

    def reference(self, name: str) -> Tensor:
        """`decoded` as the second side of a comparison: with the noise of the first side, or its own."""
        return self.decoded(name, reseeded=self.config.noise == "independent")

    def turned(self, name: str) -> Tensor:
        """`reference` of the latent turned upside down, Dec(-Enc(signal)), (T,)."""
        return self.once(f"-{name}", lambda: -self.encode(name), self.config.noise == "independent")

    def swapped(self, name: str) -> Tensor:
        """Latents (W, C, L) of the stranger's signal of this name, or of its mixture."""
        if self.stranger is None:
            z = self.encode(name)
            return z.roll(len(z) // 2, 0) if len(z) > 1 else z.roll(z.shape[-1] // 2, -1)
        z = self.stranger.encode(self.stranger.known(name))
        return z[torch.arange(len(self.starts)) % len(z)]

    def known(self, name: str) -> str:
        """The signal itself, or the mixture where this track has none of that name."""
        return name if name in self.names else MIXTURE

    def swap(self, name: str) -> Tensor:
        """Decode (T,) of `swapped`: of a stranger as long as this chunk, its own decode."""
        other = self.stranger
        if other is None or other.n_samples != self.n_samples:
            return self.once(f"swap {name}", lambda: self.swapped(name))
        theirs = other.known(name)
        if theirs not in other.decodes:
            other.decodes[theirs] = other.decoded(theirs)
        return other.decodes[theirs]

    def together(self, parts: Sequence[str]) -> str:
        """Status of a sum of these signals: "alone" with fewer than two that are not silent. Nothing is
        added then, and any encoder that keeps silence at zero would be perfect."""
        silent = metrics.is_silent(torch.stack([self.signal(part) for part in parts]))
        return "ok" if (~silent).sum() > 1 else "alone"

    def row(self, protocol: str, comparison: str, signal: str, pair: Pair, **labels) -> dict:
        """Metrics of a pair (prediction, reference), audio (T,) or latents (W, C, L).

        They count where `signal`, the true sound that is compared, is not silent.
        """
        row = {"protocol": protocol, "comparison": comparison, "stem": signal, "condition": ""}
        row |= {"status": "ok", **labels}
        prediction = pair[0][None]
        reference = pair[1][None].to(prediction)
        if metrics.is_silent(self.signal(signal)[None]).item():
            return row | {"status": "silent"}
        if row["status"] != "ok":
            return row
        scores = {"rel_l2": metrics.relative_l2(prediction, reference)}
        if prediction.ndim == 2:
            if metrics.is_silent(reference).item():
                return row | {"status": "silent decode"}
            convergence, log_mel = metrics.mss_terms(prediction, reference, self.model.sample_rate)
            scores["snr_db"] = metrics.snr_db(prediction, reference)
            scores["si_sdr_db"] = metrics.si_sdr_db(prediction, reference)
            scores |= {"mss": convergence + log_mel, "mss_log": log_mel}
        return row | {name: score.item() for name, score in scores.items()}

    def controls(self, name: str) -> dict[str, Pair]:
        """Pairs of the comparisons "codec" and "floor" of a signal."""
        own = self.decoded(name)
        return {"codec": (own, self.signal(name)), "floor": (self.decoded(name, reseeded=True), own)}

    def rows(
        self, protocol: str, signal: str, pairs: dict[str, Pair], turned: Pair | None = None, **labels
    ) -> Iterator[dict]:
        """A `row` for each comparison of `pairs`. With `turned`, the pair of the same operation on the
        negated sound, the row "linearity" has the `error_parts` too."""
        for comparison, pair in pairs.items():
            row = self.row(protocol, comparison, signal, pair, **labels)
            if comparison == "linearity" and turned and "rel_l2" in row:
                row |= error_parts(pair, turned)
            yield row


def error_parts(pair: Pair, turned: Pair) -> dict[str, float]:
    """Relative L2 of three parts of an error, at right angles: their squares add up to `rel_l2` squared.

    - constant: along the even part of the error, which stays when the sound is turned upside down
    - level: along what is left of the reference beside that; another gain would repair it
    - shape: the rest

    `pair`: prediction and reference, of one shape; `turned`: the same of the negated sound.
    """
    error = (pair[0] - pair[1]).double().flatten()
    turned_error = (turned[0] - turned[1]).double().flatten()
    reference = pair[1].double().flatten()
    even = (error + turned_error) / 2
    constant = _along(error, even)
    level = _along(error - constant, reference - _along(reference, even))
    parts = {"level_rel_l2": level, "constant_rel_l2": constant, "shape_rel_l2": error - constant - level}
    return {name: (part.norm() / (reference.norm() + metrics.EPS)).item() for name, part in parts.items()}


def _along(signal: Tensor, direction: Tensor) -> Tensor:
    """The projection of a signal on a direction; zero on one that is rounding, or none."""
    energy = direction.square().sum()
    if energy <= (ROUNDING * signal.norm()) ** 2:
        return torch.zeros_like(signal)
    return (signal @ direction) / energy * direction


def reconstruction(chunk: Chunk) -> Iterator[dict]:
    """Dec(Enc(x)) against x (paper 4.2)."""
    pairs = chunk.controls(MIXTURE) | {"swap": (chunk.swap(MIXTURE), chunk.signal(MIXTURE))}
    yield from chunk.rows("reconstruction", MIXTURE, pairs)


def homogeneity(chunk: Chunk) -> Iterator[dict]:
    """Enc(a x) against a Enc(x), Dec(a z) against a Dec(z) (paper 4.3), for a grid and a random gain a track.

    Floor and codec rows do not depend on the gain and stand at gain 1.
    """
    low, high = chunk.config.gain_range
    drawn = low + (high - low) * torch.rand(1, generator=chunk.generator()).item()
    for gain in chunk.config.gains:
        yield from _scaled(chunk, gain, "grid")
    yield from _scaled(chunk, drawn, "random")
    pairs = chunk.controls(MIXTURE)
    yield from chunk.rows("decoder_homogeneity", MIXTURE, pairs, condition="unit", gain=1.0)


def _scaled(chunk: Chunk, gain: float, condition: str) -> Iterator[dict]:
    """Rows of `homogeneity` at one gain."""
    labels = {"condition": condition, "gain": gain}
    z = chunk.encode(MIXTURE)

    def decoded(factor: float) -> Tensor:
        if factor == 1:
            return chunk.decoded(MIXTURE)
        name = f"-{MIXTURE}" if factor == -1 else f"{factor} times"
        return chunk.once(name, lambda: factor * z)

    encoded = chunk.encode(MIXTURE, gain)
    encoder = {"linearity": (encoded, gain * z), "swap": (encoded, gain * chunk.swapped(MIXTURE))}
    turned = chunk.encode(MIXTURE, -gain), gain * chunk.encode(MIXTURE, -1.0)
    yield from chunk.rows("encoder_homogeneity", MIXTURE, encoder, turned, **labels)
    decoder = {
        "linearity": (decoded(gain), gain * chunk.reference(MIXTURE)),
        "truth": (decoded(gain), gain * chunk.signal(MIXTURE)),
        "swap": (decoded(gain), gain * chunk.swap(MIXTURE)),
    }
    turned = decoded(-gain), gain * chunk.turned(MIXTURE)
    yield from chunk.rows("decoder_homogeneity", MIXTURE, decoder, turned, **labels)


def sums(names: Sequence[str]) -> list[tuple[int, str, tuple[str, ...], str]]:
    """What additivity adds: (number of signals, condition, their names, name of their sum), for 2..S signals.

    These are all stems; all but one; one stem, and the accompaniment; beyond four stems also the first few.
    """
    n = len(names)
    if n < 2:
        return []
    found = [(n, "all", tuple(names), MIXTURE)]
    for left_out in names if n > 2 else ():
        others = tuple(name for name in names if name != left_out)
        found.append((n - 1, f"without {left_out}", others, f"without {left_out}"))
    if n > 3:
        found += [(2, f"{name} and the rest", (name, f"without {name}"), MIXTURE) for name in names]
    return found + [(m, f"first {m}", tuple(names[:m]), f"first {m}") for m in range(3, n - 1)]


def additivity(chunk: Chunk) -> Iterator[dict]:
    """Sum of Enc(s_i) against Enc(sum), Dec(sum of Enc(s_i)) against Dec(Enc(sum)) (paper 4.4).

    The parts of the errors are those of the sum of all stems.
    """
    for n_sources, condition, parts, whole in sums(chunk.names):
        labels = {"condition": condition, "n_sources": n_sources, "status": chunk.together(parts)}
        total = sum(chunk.encode(part) for part in parts)
        pairs = {"linearity": (total, chunk.encode(whole)), "swap": (total, chunk.swapped(MIXTURE))}
        turned = None
        if condition == "all":
            turned = sum(chunk.encode(part, -1.0) for part in parts), chunk.encode(whole, -1.0)
        yield from chunk.rows("encoder_additivity", whole, pairs, turned, **labels)

        added = _added(chunk, parts)
        pairs = {
            "linearity": (added, chunk.reference(whole)),
            "truth": (added, chunk.signal(whole)),
            **chunk.controls(whole),
            "swap": (added, chunk.swap(MIXTURE)),
        }
        turned = (_added(chunk, parts, -1), chunk.turned(whole)) if condition == "all" else None
        yield from chunk.rows("decoder_additivity", whole, pairs, turned, **labels)


def superposition(chunk: Chunk) -> Iterator[dict]:
    """Dec(sum of Enc(s_i)) against the sum of Dec(Enc(s_i)): Property 2 of the paper as it stands.

    What section 4.4 measures instead, Dec(Enc(sum)) as the reference, is exact for every linear encoder,
    whatever its decoder does.
    """
    for n_sources, condition, parts, whole in sums(chunk.names):
        labels = {"condition": condition, "n_sources": n_sources, "status": chunk.together(parts)}
        added = _added(chunk, parts)
        separately = sum(chunk.decoded(part) for part in parts)
        pairs = {
            "linearity": (added, sum(chunk.reference(part) for part in parts)),
            "codec": (separately, chunk.signal(whole)),
            "floor": (sum(chunk.decoded(part, reseeded=True) for part in parts), separately),
            "swap": (added, chunk.swap(MIXTURE)),
        }
        turned = None
        if condition == "all":
            turned = _added(chunk, parts, -1), sum(chunk.turned(part) for part in parts)
        yield from chunk.rows("decoder_superposition", whole, pairs, turned, **labels)


def _added(chunk: Chunk, parts: Sequence[str], sign: int = 1) -> Tensor:
    """Decode (T,) of the sum of the latents of some signals."""
    return chunk.once(f"{sign} {parts}", lambda: sign * sum(chunk.encode(part) for part in parts))


def separation(chunk: Chunk) -> Iterator[dict]:
    """Dec(Enc(mix) - Enc(mix - s_i)) against Dec(Enc(s_i)), for every stem (paper 4.5)."""
    for stem in chunk.names if len(chunk.names) > 1 else ():
        z = chunk.encode(MIXTURE) - chunk.encode(f"without {stem}")
        estimate = chunk.decode(z)
        pairs = {
            "linearity": (estimate, chunk.reference(stem)),
            "input": (chunk.decoded(MIXTURE), chunk.reference(stem)),
            "truth": (estimate, chunk.signal(stem)),
            **chunk.controls(stem),
            "swap": (estimate, chunk.swap(stem)),
        }
        turned = chunk.decode(-z), chunk.turned(stem)
        status = chunk.together((stem, f"without {stem}"))
        yield from chunk.rows("separation", stem, pairs, turned, status=status)


def latents(chunk: Chunk) -> Iterator[dict]:
    """Statistics of the mixture's latents, in `value`: mean, standard deviation, largest absolute value,
    kurtosis (3 where normal), and |Enc(0)| / |Enc(x)| as "silence", 0 where the encoder is linear."""
    z = chunk.encode(MIXTURE)
    silence = chunk.encode(MIXTURE, 0.0)
    deviation = z - z.mean()
    values = {
        "mean": z.mean(),
        "std": z.std(),
        "max_abs": z.abs().max(),
        "kurtosis": deviation.pow(4).mean() / deviation.square().mean().square(),
        "silence": silence.norm() / z.norm(),
    }
    silent = metrics.is_silent(chunk.signal(MIXTURE)[None]).item()
    for statistic, value in values.items():
        row = {"protocol": "latents", "comparison": "codec", "stem": MIXTURE, "condition": statistic}
        yield row | ({"status": "silent"} if silent else {"status": "ok", "value": value.item()})


PROTOCOLS: dict[str, Callable[[Chunk], Iterator[dict]]] = {
    protocol.__name__: protocol
    for protocol in (reconstruction, homogeneity, additivity, superposition, separation, latents)
}


# ---------------------------------------------------------------- probes: what a report asks beyond the paper

SHIFTS = (0.25, 0.5, 1.0, 4.0)  # in time, in latent frames
FILTER_S = 0.064  # window of the spectrogram that the best linear filter acts on,
BLOCK_S = 1.0  # and the stretches that it is fitted to
N_WINDOWS = 4  # are mixed where a track has no stems


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
