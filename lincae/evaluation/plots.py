"""Figure style and the figures that several notebooks share.

Axis legend: `T` samples, `S` source (stem). Figures are matplotlib's; every one is saved beside a CSV of the
numbers in it (`save`).
"""

import io
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann
from torch import Tensor

# Okabe and Ito: distinguishable with every common colour vision, and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FLOOR_DB = -90.0  # of spectrograms, below the maximum of the figure
LOWEST_HZ, N_ROWS = 50.0, 160  # of spectrograms
TICKS_HZ = (100, 400, 1600, 6400)
# One colour per kind of model, in every figure; what is not listed takes the next free one.
MODEL_COLOURS = {
    "lin-cae": COLOURS[0],
    "m2l": COLOURS[1],
    "no-additivity": COLOURS[2],
    "no-homogeneity": COLOURS[3],
    "lin-cae-2": COLOURS[5],
    "stft": COLOURS[6],
}
GREY = "#999999"

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
    save_numbers(numbers, name, out_dir)
    # Without the software's version in the file, an unchanged figure is an unchanged file.
    figure.savefig(Path(out_dir) / f"{name}.png", metadata={"Software": None})


def save_numbers(numbers: pd.DataFrame, name: str, out_dir: str | Path) -> None:
    """Write `name`.csv, to six digits."""
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    numbers.to_csv(Path(out_dir) / f"{name}.csv", index=False, float_format="%.6g")


def spectrogram_db(audio: Tensor, sample_rate: int, window_s: float = 0.04) -> tuple[np.ndarray, list[float]]:
    """Magnitudes in dB of `(T,)` audio, (N_ROWS, frames), and their extent for imshow: seconds, octaves.

    The frequency axis is logarithmic, LOWEST_HZ to half the sample rate, as hearing is: 0 is LOWEST_HZ, 1 an
    octave above. 0 dB is a full-scale sine. Signals shorter than a window are padded.
    """
    window = hann(round(window_s * sample_rate), sym=False)
    stft = ShortTimeFFT(window, hop=len(window) // 4, fs=sample_rate)
    samples = np.asarray(audio.detach().cpu(), dtype=np.float64)
    samples = np.pad(samples, (0, max(0, len(window) - len(samples))))
    magnitude = np.abs(stft.stft(samples)) * 2 / window.sum()
    octaves = np.log2(sample_rate / 2 / LOWEST_HZ)
    rows = LOWEST_HZ * 2 ** np.linspace(0, octaves, N_ROWS) / stft.delta_f  # in bins
    # the loudest bin of a row's band where it spans several, so that nothing falls between rows
    edges = np.concatenate([[rows[0]], (rows[1:] + rows[:-1]) / 2, [rows[-1]]])
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
    share = np.clip((image[::-1] - top_db - FLOOR_DB) / -FLOOR_DB, 0, 1)
    picture = Image.fromarray(plt.get_cmap(STYLE["image.cmap"])(share, bytes=True)[..., :3])
    file = io.BytesIO()
    (picture.resize(size) if size else picture).save(file, kind, quality=72, optimize=True)
    return file.getvalue()


def frequency_ticks(extent: Sequence[float], sample_rate: int) -> list[tuple[float, str]]:
    """Share of the height and label of TICKS_HZ in a picture of `spectrogram_db` with this extent."""
    shown = [hz for hz in TICKS_HZ if hz < sample_rate / 2]
    return [(float(np.log2(hz / LOWEST_HZ) / extent[3]), f"{hz} Hz") for hz in shown]


def spectrogram_grid(
    panels: Mapping[str, Mapping[str, Tensor]],
    sample_rate: int | Mapping[str, int],
    notes: Mapping[tuple[str, str], str] | None = None,
    top_hz: float = np.inf,
) -> Figure:
    """Rows of columns of `(T,)` audio on one dB scale, levels comparable; `notes[row, column]` on top.

    `sample_rate`: of all, or of each row. `top_hz`: no frequencies above it are shown.
    """
    rows, columns = list(panels), list(next(iter(panels.values())))
    rates = sample_rate if isinstance(sample_rate, Mapping) else dict.fromkeys(rows, sample_rate)
    images = {(r, c): spectrogram_db(panels[r][c], rates[r]) for r in rows for c in panels[r]}
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
    top_hz = min(top_hz, max(rates.values()) / 2)
    ticks = [hz for hz in TICKS_HZ if hz <= top_hz]
    axes[0, 0].set_ylim(0, np.log2(top_hz / LOWEST_HZ))
    for row, axis in zip(rows, axes[:, 0], strict=True):
        axis.set_ylabel(textwrap.fill(row, 18) + "\nHz")
        axis.set_yticks([np.log2(hz / LOWEST_HZ) for hz in ticks], [str(hz) for hz in ticks])
    for column, axis in zip(columns, axes[0], strict=True):
        axis.set_title(column)
    figure.align_ylabels(axes[:, 0])
    for axis in axes[-1]:
        axis.set_xlabel("s")
    figure.colorbar(shown, ax=axes, label="dB re full-scale sine", shrink=0.6, pad=0.01)
    return figure


def mixing_board(
    latents: Mapping[str, Tensor], gains_db: Sequence[float], mixes: Mapping[str, Tensor], sample_rate: int
) -> Figure:
    """The idea of a latent mixer: latents `(C, L)` of stems at their gains, one sum, one decode.

    `mixes`: title -> `(T,)` audio, spectrograms on one dB scale; the first is what the sum decodes to.
    """
    factors = [10 ** (level_db / 20) for level_db in gains_db]
    images = [z.detach().cpu() * g for z, g in zip(latents.values(), factors, strict=True)]
    largest = float(sum(images).abs().quantile(0.99)) or 1.0
    levels = [
        "off" if level_db == -np.inf else f"{level_db:+g} dB" if level_db else "0 dB" for level_db in gains_db
    ]
    titles = [f"{name}, {level}" for name, level in zip(latents, levels, strict=True)]
    figure = plt.figure(figsize=(10, 3.9))
    left, middle, right = figure.subfigures(1, 3, width_ratios=(3, 2.4, 4))
    boards = left.subplots(len(images), 1, squeeze=False)[:, 0]
    total = middle.subplots(3, 1, height_ratios=(1, 1.4, 1))
    for axis in (total[0], total[2]):
        axis.axis("off")
    panels = zip([*boards, total[1]], [*images, sum(images)], [*titles, "one latent"], strict=True)
    for axis, image, title in panels:
        axis.imshow(image, aspect="auto", cmap="RdBu", vmin=-largest, vmax=largest)
        axis.set_title(title, loc="left")
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
    arrow = {"ha": "center", "va": "center", "fontsize": 15, "color": COLOURS[0]}
    total[0].text(0.5, 0.1, "add  →", transform=total[0].transAxes, **arrow)
    total[2].text(0.5, 0.9, "decode once  →", transform=total[2].transAxes, **arrow)
    pictures = {title: spectrogram_db(audio, sample_rate) for title, audio in mixes.items()}
    top = max(image.max() for image, _ in pictures.values())
    ticks = [hz for hz in TICKS_HZ if hz <= sample_rate / 2]
    for axis, title in zip(
        right.subplots(len(mixes), 1, sharex=True, squeeze=False).flat, mixes, strict=True
    ):
        image, extent = pictures[title]
        axis.imshow(image, extent=extent, origin="lower", aspect="auto", vmin=top + FLOOR_DB, vmax=top)
        axis.set_yticks([np.log2(hz / LOWEST_HZ) for hz in ticks], [f"{hz} Hz" for hz in ticks])
        axis.set_title(title, loc="left")
        axis.grid(False)
    axis.set_xlabel("s")
    left.suptitle("latents of the stems, each at its fader", x=0.02, ha="left")
    right.suptitle("is the mix", x=0.15, ha="left")
    return figure


def lines(axis: Axes, table: pd.DataFrame, x: str, columns: Mapping[str, str], **labels: str) -> None:
    """Curves of a table's columns (column -> legend) over `x`; `labels` are the axis' properties."""
    for column, legend in columns.items():
        axis.plot(table[x], table[column], label=legend)
    axis.set(xlabel=labels.pop("xlabel", x), **labels)
    if len(columns) > 1:
        axis.legend()


def model_colours(models: Sequence[str]) -> dict[str, str]:
    """A colour for each model: that of its kind ("desk/m2l", "runs/desk-m2l"), or the next free one."""
    kinds = sorted(MODEL_COLOURS, key=len, reverse=True)
    found = {}
    for model in models:
        colour = next((MODEL_COLOURS[kind] for kind in kinds if model.endswith(kind)), None)
        found[model] = None if colour in found.values() else colour
    free = iter([c for c in COLOURS if c not in found.values()] + [GREY] * len(found))
    return {model: colour or next(free) for model, colour in found.items()}


def curves(
    axis: Axes, table: pd.DataFrame, x: str, style: str = "-", legend: str = "{}", **labels: Any
) -> None:
    """A line a model over `x`, with its 95 % band, from `tables.judged`; what does not count is a hollow dot,
    and a model of which nothing counts is grey. `legend`: of the model's name; `labels`: of the axis."""
    colours = model_colours(list(dict.fromkeys(table.model)))
    for model, line in table.groupby("model", sort=False):
        line = line.sort_values(x)
        colour = colours[model] if line.counts.any() else GREY
        axis.plot(line[x], line["mean"], color=colour, linestyle=style, label=legend.format(model))
        for counts, face in ((True, colour), (False, "white")):
            dots = line[line.counts == counts]
            axis.plot(dots[x], dots["mean"], "o", color=colour, markerfacecolor=face, markersize=4)
        axis.fill_between(line[x], line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    axis.set(**{"xlabel": x, **labels})
    if axis.get_yscale() == "log":
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())


def strips(axis: Axes, table: pd.DataFrame, groups: str, metric: str, **labels: Any) -> None:
    """Every value of `metric` as a dot, models side by side within each of `groups`, their means as bars.

    Rows whose `counts` is False are grey, where `table` has that column.
    """
    models, names = list(dict.fromkeys(table.model)), list(dict.fromkeys(table[groups]))
    colours, width = model_colours(models), 0.8 / len(models)
    for (model, name), rows in table.groupby(["model", groups], sort=False):
        values = rows[metric].dropna().to_numpy()
        place = names.index(name) + (models.index(model) - (len(models) - 1) / 2) * width
        colour = GREY if "counts" in rows and not rows.counts.all() else colours[model]
        spread = width * 0.5 * (np.arange(len(values)) / max(len(values) - 1, 1) - 0.5)
        axis.plot(place + spread, values, "o", color=colour, markersize=3, alpha=0.6, markeredgewidth=0)
        if len(values):
            axis.hlines(values.mean(), place - width * 0.4, place + width * 0.4, colour, linewidth=2)
    for model in models:
        axis.plot([], [], color=colours[model], linewidth=2, label=model)
    axis.set_xticks(range(len(names)), names)
    axis.set(**labels)
