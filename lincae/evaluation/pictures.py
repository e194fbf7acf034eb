"""Spectrograms, and the colours of strips: what the desk and the demo page share with figures.

What draws and transforms is imported where it is used: the desk has sound before it has pictures.
"""

import io
from collections.abc import Sequence

import numpy as np
from torch import Tensor

# Okabe and Ito: distinguishable with every common colour vision, and in grey. Strips of the desk.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# Spectrograms: range below the maximum of the figure, lowest frequency, and height of the image.
FLOOR_DB = -90.0
LOWEST_HZ = 50.0
WINDOW_S = 0.04
N_ROWS = 160
TICKS_HZ = (100, 400, 1600, 6400)
COLOUR_MAP = "magma"


def spectrogram_db(audio: Tensor, sample_rate: int) -> tuple[np.ndarray, list[float]]:
    """Magnitudes in dB of `(T,)` audio, (N_ROWS, frames), and their extent for imshow: seconds, octaves.

    The frequency axis is logarithmic, from LOWEST_HZ (octave 0) to half the sample rate. 0 dB is a full-scale
    sine. Signals shorter than a window are padded.
    """
    from scipy.signal import ShortTimeFFT
    from scipy.signal.windows import hann

    window = hann(round(WINDOW_S * sample_rate), sym=False)
    stft = ShortTimeFFT(window, hop=len(window) // 4, fs=sample_rate)
    samples = np.asarray(audio.detach().cpu(), dtype=np.float64)
    samples = np.pad(samples, (0, max(0, len(window) - len(samples))))
    magnitude = np.abs(stft.stft(samples)) * 2 / window.sum()
    octaves = np.log2(sample_rate / 2 / LOWEST_HZ)
    row_bins = LOWEST_HZ * 2 ** np.linspace(0, octaves, N_ROWS) / stft.delta_f

    # a row shows the loudest of the bins up to half-way to its neighbours, so that no bin falls between rows
    edges = np.concatenate([[row_bins[0]], (row_bins[1:] + row_bins[:-1]) / 2, [row_bins[-1]]])
    first = np.clip(np.round(edges[:-1]).astype(int), 0, len(magnitude) - 1)
    last = np.clip(np.round(edges[1:]).astype(int), first + 1, len(magnitude))
    image = np.stack([magnitude[i:j].max(0) for i, j in zip(first, last, strict=True)])
    return 20 * np.log10(image + 1e-12), [0, len(samples) / sample_rate, 0, octaves]


def spectrogram_bytes(
    image: np.ndarray, top_db: float, kind: str = "png", size: tuple[int, int] | None = None
) -> bytes:
    """An image of `spectrogram_db` as an encoded picture, FLOOR_DB below `top_db` to `top_db`, high notes up.

    `size`: width and height in pixels, else a pixel a value.
    """
    import matplotlib
    from PIL import Image

    share = np.clip((image[::-1] - top_db - FLOOR_DB) / -FLOOR_DB, 0, 1)
    picture = Image.fromarray(matplotlib.colormaps[COLOUR_MAP](share, bytes=True)[..., :3])
    if size:
        picture = picture.resize(size)
    file = io.BytesIO()
    picture.save(file, kind, quality=72, optimize=True)
    return file.getvalue()


def frequency_ticks(extent: Sequence[float], sample_rate: int) -> list[tuple[float, str]]:
    """Share of the height and label of TICKS_HZ in a picture of `spectrogram_db` with this extent."""
    shown = [hz for hz in TICKS_HZ if hz < sample_rate / 2]
    return [(float(np.log2(hz / LOWEST_HZ) / extent[3]), f"{hz} Hz") for hz in shown]
