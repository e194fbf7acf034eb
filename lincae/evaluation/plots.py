"""Figure style, and the figures that several notebooks share.

Distributions, points with intervals and lines with bands are seaborn's, drawn from long frames with a value
for each track; their intervals are those of the tables. Every figure is saved beside a CSV of the numbers in
it (`save`).
"""

import base64
import io
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from lincae.evaluation import tables
from lincae.evaluation.pictures import COLOUR_MAP, FLOOR_DB, LOWEST_HZ, TICKS_HZ, spectrogram_db
from lincae.evaluation.tables import GREY

# One meaning a colour: models, stems and conditions have palettes of their own.
MODEL_COLOURS = {
    "m2l": "#D55E00",
    "no-additivity": "#CC79A7",
    "no-homogeneity": "#882255",
    "lin-cae-2": "#003D66",
    "lin-cae": "#0072B2",
    "lin-bypass": "#7CCBA2",
    "lin-bypass-learned": "#00573F",
    "lin-bypass-code": "#009E73",
    "listen": "#44AA99",
    "vae": "#E69F00",
    "lin-vae": "#56B4E9",
    "stft": "#000000",
    "pca": "#333333",
    "resample+noise": "#666666",
    "resample": "#7D6B5D",
}
"""The kinds of models in the order of README's table; others take the next free colour (`model_colours`)."""

FREE_COLOURS = ("#999933", "#661100", "#AA4499", "#B79F00", "#5D7A8C", "#6A3D9A")
STEM_COLOURS = {"drums": "#4E342E", "bass": "#A1785C", "other": "#827717", "vocals": "#C2185B"}
CONDITION_COLOURS = ("#54278F", "#9E9AC8", "#DADAEB", "#2D004B")
"""Conditions, modules and parts of an error: whatever is neither a model nor a stem."""

ERROR_PARTS = {"level_rel_l2": "level", "constant_rel_l2": "constant", "shape_rel_l2": "shape"}
PART_COLOURS = dict(zip(ERROR_PARTS.values(), reversed(CONDITION_COLOURS[:3]), strict=True))
PART_LOOKS = {part: {"color": colour, "linewidth": 8} for part, colour in PART_COLOURS.items()}
"""Parts of an error, as columns of frames, in figures and in their legends."""
DOT = {"marker": "o", "linestyle": "none"}
HOLLOW = {"does not count": DOT | {"markerfacecolor": "white"}}
"""For the legend of `lines` where something does not count."""
BAND = {"95 % interval": {"linewidth": 8, "alpha": 0.15}}
"""The same for its bands."""

POINTS = "means, 95 % intervals"
DOTS = f"dots: values; bars: {POINTS}"
"""What the marks of `dots` are, and those of means alone, as titles of legends."""
STYLE = {
    "axes.prop_cycle": cycler(color=CONDITION_COLOURS),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "font.size": 9,
    "grid.alpha": 0.3,
    "image.cmap": COLOUR_MAP,
    "legend.edgecolor": "none",
    "legend.facecolor": "white",
    "legend.framealpha": 0.9,
    "savefig.dpi": 110,
}


def use_style() -> None:
    """The house's figure style for the running notebook or script."""
    plt.rcParams.update(STYLE)


def save(figure: Figure, numbers: pd.DataFrame, name: str, out_dir: str | Path, alt: str = "") -> None:
    """Write `name`.png and, with the numbers that the figure shows, `name`.csv.

    In a notebook the figure is also shown, once, with `alt` for those who do not see it.
    """
    save_numbers(numbers, name, out_dir)
    # Without the software's version in the file, an unchanged figure is an unchanged file.
    figure.savefig(Path(out_dir) / f"{name}.png", metadata={"Software": None})
    if "ipykernel" in sys.modules:
        from IPython.display import display

        # Spectrograms do not compress as PNG: inline they are JPEG, so that notebooks stay small.
        picture = io.BytesIO()
        figure.savefig(picture, format="jpeg", pil_kwargs={"quality": 80})
        shown = {"image/jpeg": base64.b64encode(picture.getvalue()).decode(), "text/plain": alt or name}
        display(shown, raw=True, metadata={"image/jpeg": {"alt": alt}})
        plt.close(figure)


def save_numbers(numbers: pd.DataFrame, name: str, out_dir: str | Path) -> None:
    """Write `name`.csv, to six digits."""
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    numbers.to_csv(Path(out_dir) / f"{name}.csv", index=False, float_format="%.6g")


def spectrogram_grid(
    panels: Mapping[str, Mapping[str, Tensor]],
    sample_rate: int | Mapping[str, int],
    notes: Mapping[tuple[str, str], str] | None = None,
    top_hz: float = np.inf,
) -> Figure:
    """Rows of columns of `(T,)` audio on one dB scale, levels comparable; `notes[row, column]` on top.

    `sample_rate`: of all, or of each row. `top_hz`: no frequencies above it are shown.
    """
    rows = list(panels)
    columns = list(panels[rows[0]])
    rates = sample_rate if isinstance(sample_rate, Mapping) else dict.fromkeys(rows, sample_rate)
    images = {(r, c): spectrogram_db(panels[r][c], rates[r]) for r in rows for c in panels[r]}
    top_db = max(image.max() for image, _ in images.values())
    size = (min(3.6 * len(columns), 9) + 1, 1.45 * len(rows) + 0.5)
    shared = {"figsize": size, "sharex": True, "sharey": True, "squeeze": False}
    figure, axes = plt.subplots(len(rows), len(columns), **shared)
    for (row, column), (image, extent) in images.items():
        axis = axes[rows.index(row), columns.index(column)]
        shown = show_spectrogram(axis, image, extent, top_db)
        if notes and (row, column) in notes:
            place = {"ha": "right", "va": "top", "transform": axis.transAxes, "fontsize": "small"}
            box = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 2}
            axis.text(0.98, 0.95, notes[row, column], color="white", bbox=box, **place)

    top_hz = min(top_hz, max(rates.values()) / 2)
    axes[0, 0].set_ylim(0, np.log2(top_hz / LOWEST_HZ))
    ticks = [hz for hz in TICKS_HZ if hz <= top_hz]
    for row, axis in zip(rows, axes[:, 0], strict=True):
        axis.set_ylabel(textwrap.fill(row, 18) + "\nHz")
        axis.set_yticks([np.log2(hz / LOWEST_HZ) for hz in ticks], [str(hz) for hz in ticks])
    for column, axis in zip(columns, axes[0], strict=True):
        axis.set_title(column)
    for axis in axes[-1]:
        axis.set_xlabel("s")
    figure.align_ylabels(axes[:, 0])
    figure.colorbar(shown, ax=axes, label="dB re full-scale sine", shrink=0.6, pad=0.01)
    return figure


def show_spectrogram(axis: Axes, image: np.ndarray, extent: Sequence[float], top_db: float) -> AxesImage:
    """An image of `spectrogram_db` on an axis, FLOOR_DB below `top_db` to `top_db`."""
    axis.grid(False)
    scale = {"vmin": top_db + FLOOR_DB, "vmax": top_db, "interpolation": "auto"}
    return axis.imshow(image, extent=extent, origin="lower", aspect="auto", **scale)


def ordered(models: Sequence[str]) -> list[str]:
    """Models as rows of a figure: those of MODEL_COLOURS in its order, then the others as they came."""
    order = list(MODEL_COLOURS)
    return sorted(models, key=lambda model: order.index(kind) if (kind := _kind(model)) else len(order))


def _kind(model: str) -> str | None:
    """The key of MODEL_COLOURS for a name such as "desk/m2l", "runs/desk-m2l" or "pca-32x"."""
    name = re.sub(r"-[\d.]+x$", "", model)
    return next((kind for kind in sorted(MODEL_COLOURS, key=len, reverse=True) if name.endswith(kind)), None)


def model_colours(models: Sequence[str]) -> dict[str, str]:
    """seaborn's palette for models: the colour of its kind, or the next free one."""
    found: dict[str, str | None] = {}
    for model in models:
        colour = MODEL_COLOURS.get(_kind(model) or "")
        found[model] = None if colour in found.values() else colour
    free = iter([c for c in FREE_COLOURS if c not in found.values()] + [GREY] * len(found))
    return {model: colour or next(free) for model, colour in found.items()}


def interval(per_track: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the tables, as seaborn's `errorbar`."""
    return tables.interval(per_track)[1:]


def lines(
    axis: Axes, rows: pd.DataFrame, judged: pd.DataFrame, x: str, metric: str, style: str | None = None
) -> None:
    """Means over tracks of a metric of `rows` against `x`, a line for each model, with 95 % bands.

    `judged`: `tables.judged` of these rows by "model", `x` and `style`, a column of one or two values, drawn
    solid and dashed. What does not count is a hollow dot; a model of which nothing counts is grey. Set a
    logarithmic scale afterwards: seaborn takes means on the scale that it finds.
    """
    counts = judged.groupby("model", sort=False).counts.any()
    colours = model_colours(list(counts.index))
    colours = {model: colour if counts[model] else GREY for model, colour in colours.items()}
    groups = ["model", x, style] if style else ["model", x]
    values = tables.per_track(rows, groups, metric)
    dashes = None
    if style:
        dashes = dict(zip(dict.fromkeys(values[style]), ("", (4, 2)), strict=False))
    sns.lineplot(
        values, x=x, y=metric, hue="model", style=style, dashes=dashes, palette=colours,
        errorbar=interval, err_kws={"alpha": 0.15, "linewidth": 0}, ax=axis, legend=False,
    )  # fmt: skip
    for counting, dots in judged.groupby("counts"):
        edges = [colours[model] for model in dots.model]
        faces = edges if counting else "white"
        axis.scatter(dots[x], dots["mean"], s=16, color=faces, edgecolor=edges, zorder=3)


def dots(axis: Axes, rows: pd.DataFrame, x: str, metric: str, **labels: Any) -> None:
    """Every value of a metric as a dot, models side by side within each of `x`, their means over tracks as
    bars with 95 % intervals. Rows whose `counts` is False are grey, where `rows` has that column."""
    rows = rows.dropna(subset=[metric])
    if rows.empty:
        axis.text(0.5, 0.5, "not measured: needs stems", ha="center", transform=axis.transAxes)
        axis.set(**labels)
        return
    colours = model_colours(list(dict.fromkeys(rows.model)))
    places = {"x": x, "y": metric, "hue": "model", "hue_order": list(colours), "ax": axis, "legend": False}
    places["order"] = list(dict.fromkeys(rows[x]))
    width = 0.8
    counts = rows.counts if "counts" in rows else pd.Series(True, rows.index)
    for palette, part in ((colours, rows[counts]), (dict.fromkeys(colours, GREY), rows[~counts])):
        if part.empty:
            continue
        shared = places | {"palette": palette}
        sns.swarmplot(part, dodge=True, size=3, alpha=0.6, warn_thresh=1, **shared)
        means = tables.per_track(part, ["model", x], metric)
        apart = width - width / len(colours) if len(colours) > 1 else False
        sns.pointplot(
            means, dodge=apart, linestyle="none", marker="_", markersize=12, errorbar=interval,
            err_kws={"linewidth": 1}, **shared,
        )  # fmt: skip
    axis.set(xlabel="", **labels)


def error_parts(axis: Axes, table: pd.DataFrame, **labels: Any) -> None:
    """Energies of the parts of an error, from `tables.summary` by "model" and "part", as a bar a model.

    seaborn stacks counts alone, so the means are its weights. Beside a bar stands its length, in percent.
    """
    rows = table.set_index("model").loc[ordered(table.model.unique())].reset_index()
    sns.histplot(
        rows, y="model", weights="mean", hue="part", palette=PART_COLOURS, hue_order=list(PART_COLOURS),
        multiple="stack", discrete=True, shrink=0.7, alpha=1, ax=axis, legend=False,
    )  # fmt: skip
    lengths = rows.groupby("model", sort=False)["mean"].sum()
    for place, length in enumerate(lengths):
        axis.text(length, place, f" {100 * length:.2g} %" if length > 1e-6 else " 0 %", va="center")
    axis.set_xlim(0, 1.2 * max(lengths.max(), 0.01))
    axis.set(xlabel="energy of the error over that of the reference", ylabel="", **labels)


def model_legend(
    target: Axes | Figure,
    models: Sequence[str] | Mapping[str, str],
    styles: Mapping[str, Any] | None = None,
    look: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """A legend of models, and of marks in black: on an axis, or below the panels of a figure.

    `models`: names, or their colours where those are not `model_colours`. `styles`: what is said of a mark ->
    its line style, or other properties of its `Line2D`. `look`: the same for models, if no lines (`DOT`).
    """
    colours = models if isinstance(models, Mapping) else model_colours(models)
    handles = []
    for name, colour in colours.items():
        handles.append(plt.Line2D([], [], **{"color": colour, "label": name} | dict(look or {})))
    for label, style in (styles or {}).items():
        mark = style if isinstance(style, Mapping) else {"linestyle": style}
        handles.append(plt.Line2D([], [], **{"color": "black", "label": label} | mark))
    if isinstance(target, Figure):
        longest = max((len(handle.get_label()) for handle in handles), default=0)
        fitting = int(13 * target.get_figwidth() / (longest + 7))
        options = {"loc": "outside lower center", "ncols": max(1, min(fitting, 5))} | options
    target.legend(handles=handles, **options)


def plain_log_ticks(axis: Axes) -> None:
    """Ticks at 1, 2 and 5 of every decade of a logarithmic y axis, as plain numbers."""
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
