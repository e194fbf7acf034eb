"""Figure style and the figures that several notebooks share.

Axis legend: `T` samples, `S` source (stem). Figures are matplotlib's; every one is saved beside a CSV of the
numbers in it (`save`).
"""

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann
from torch import Tensor

# Okabe and Ito: distinguishable with every common colour vision, and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FLOOR_DB = -90.0  # of spectrograms, below the maximum of the figure

STYLE = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "font.size": 9,
    "grid.alpha": 0.3,
    "image.cmap": "magma",
    "legend.frameon": False,
    "savefig.dpi": 110,
}


def use_style() -> None:
    """The house's figure style for the running notebook or script."""
    plt.rcParams.update(STYLE)
    if "ipykernel" in sys.modules:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        # Spectrograms do not compress as PNG: inline they are JPEG, so that notebooks stay small.
        set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})


def save(figure: Figure, numbers: pd.DataFrame, name: str, out_dir: str | Path) -> None:
    """Write `name`.png and, with the numbers that the figure shows, `name`.csv."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    # Without the software's version in the file, an unchanged figure is an unchanged file.
    figure.savefig(out_dir / f"{name}.png", metadata={"Software": None})
    numbers.to_csv(out_dir / f"{name}.csv", index=False, float_format="%.6g")


def spectrogram_db(audio: Tensor, sample_rate: int, window_s: float = 0.04) -> tuple[np.ndarray, list[float]]:
    """Magnitudes in dB of `(T,)` audio, (frequencies, frames), and their extent (s, s, kHz, kHz) for imshow.

    0 dB is a full-scale sine. Signals shorter than a window are padded.
    """
    window = hann(round(window_s * sample_rate), sym=False)
    stft = ShortTimeFFT(window, hop=len(window) // 4, fs=sample_rate)
    samples = np.asarray(audio.detach().cpu(), dtype=np.float64)
    samples = np.pad(samples, (0, max(0, len(window) - len(samples))))
    magnitude = np.abs(stft.stft(samples)) * 2 / window.sum()
    return 20 * np.log10(magnitude + 1e-12), [0, len(samples) / sample_rate, 0, sample_rate / 2000]


def spectrogram_grid(
    panels: Mapping[str, Mapping[str, Tensor]],
    sample_rate: int,
    notes: Mapping[tuple[str, str], str] | None = None,
) -> Figure:
    """Rows of columns of `(T,)` audio on one dB scale, levels comparable; `notes[row, column]` on top."""
    rows, columns = list(panels), list(next(iter(panels.values())))
    images = {(r, c): spectrogram_db(panels[r][c], sample_rate) for r in rows for c in panels[r]}
    top = max(image.max() for image, _ in images.values())
    size = (min(3.6 * len(columns), 9) + 1, 1.45 * len(rows) + 0.5)
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for (row, column), (image, extent) in images.items():
        axis = axes[rows.index(row), columns.index(column)]
        shown = axis.imshow(
            image,
            extent=extent,
            origin="lower",
            aspect="auto",
            vmin=top + FLOOR_DB,
            vmax=top,
            interpolation="auto",
        )
        axis.grid(False)
        if notes and (row, column) in notes:
            box = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 2}
            axis.text(
                0.98,
                0.95,
                notes[row, column],
                color="white",
                bbox=box,
                ha="right",
                va="top",
                transform=axis.transAxes,
                fontsize="small",
            )
    for row, axis in zip(rows, axes[:, 0], strict=True):
        axis.set_ylabel(textwrap.fill(row, 16) + "\nkHz")
    for column, axis in zip(columns, axes[0], strict=True):
        axis.set_title(column)
    figure.align_ylabels(axes[:, 0])
    for axis in axes[-1]:
        axis.set_xlabel("s")
    figure.colorbar(shown, ax=axes, label="dB re full-scale sine", shrink=0.6, pad=0.01)
    return figure


def lines(axis: Axes, table: pd.DataFrame, x: str, columns: Mapping[str, str], **labels: str) -> None:
    """Curves of a table's columns (column -> legend) over `x`; `labels` are the axis' properties."""
    for column, legend in columns.items():
        axis.plot(table[x], table[column], label=legend)
    axis.set(xlabel=labels.pop("xlabel", x), **labels)
    if len(columns) > 1:
        axis.legend()
