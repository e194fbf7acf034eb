"""A linearity report as a figure and as one self-contained HTML page (see `report.py`)."""

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from lincae.evaluation import plots, tables
from lincae.machine.files import atomic_write

SHORT = {
    "enc_homogeneity": "hom.\nEnc",
    "dec_homogeneity": "hom.\nDec",
    "enc_additivity": "add.\nEnc",
    "dec_additivity": "add.\nDec",
    "separation": "sep.",
    "linearity_db": "mean",
}


def figure(rows: pd.DataFrame, per_track: pd.DataFrame, good: Mapping[str, bool]) -> Figure:
    """Six panels of rows with the column `db`; models that are not `good` are grey."""
    parts = rows.assign(part=rows.protocol.str.split("_").str[0], counts=rows.model.map(good))
    colours = plots.model_colours(list(good))
    colours = {model: colour if good[model] else tables.GREY for model, colour in colours.items()}
    with plt.rc_context(plots.STYLE):
        drawn, axes = plt.subplots(2, 3, figsize=(10, 6))
        _gains(axes[0, 0], parts, good)
        _sums(axes[0, 1], parts, good)
        _shifts(axes[1, 0], parts, good)
        separated = tables.select(parts, protocol="separation", comparison="linearity")
        plots.dots(axes[0, 2], separated, "stem", "db", title="separated, SI-SDR [dB]", ylabel="")
        fitted = tables.select(parts, protocol="linear_fit")
        plots.dots(axes[1, 1], fitted, "condition", "db", title="best linear map [dB]", ylabel="")
        numbers = per_track.melt(["model", "dataset", "track"], list(SHORT), "part", "db")
        numbers = numbers.replace({"part": SHORT}).assign(counts=numbers.model.map(good))
        title = "the number (mean) and its parts [dB]"
        plots.dots(axes[1, 2], numbers, "part", "db", title=title, ylabel="")
        styles = {"decoder": "-", "encoder": "--"} | plots.BAND | plots.HOLLOW
        plots.model_legend(drawn, colours, styles, title=plots.DOTS)
    return drawn


def _gains(axis: Axes, parts: pd.DataFrame, good: Mapping[str, bool]) -> None:
    grid = parts[parts.protocol.str.endswith("_homogeneity") & (parts.condition == "grid")]
    gains = sorted(grid.gain.unique())
    _lines(axis, grid.assign(place=grid.gain.map(gains.index)), "place", good)
    axis.set_xticks(range(len(gains)), [f"{gain:g}" for gain in gains])
    axis.set(title="scaled by a gain", xlabel="gain", ylabel="signal over error [dB]")


def _sums(axis: Axes, parts: pd.DataFrame, good: Mapping[str, bool]) -> None:
    added = parts[parts.protocol.str.endswith("_additivity")]
    _lines(axis, added, "n_sources", good)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(title="added", xlabel="number of sources", ylabel="")


def _shifts(axis: Axes, parts: pd.DataFrame, good: Mapping[str, bool]) -> None:
    moved = parts[parts.protocol.str.endswith("_equivariance") & (parts.comparison != "floor")]
    moved = moved.assign(shift=pd.to_numeric(moved.condition.str.split().str[0]))
    _lines(axis, moved, "shift", good)
    axis.set_xscale("log")
    shifts = sorted(moved["shift"].dropna().unique())
    axis.set_xticks(shifts, [f"{shift:g}" for shift in shifts])
    axis.minorticks_off()
    axis.set(title="shifted in time", xlabel="latent frames", ylabel="signal over error [dB]")


def _lines(axis: Axes, rows: pd.DataFrame, x: str, good: Mapping[str, bool]) -> None:
    """Decoder and encoder of every model against `x`; nothing where nothing was measured."""
    rows = rows.sort_values("part", kind="stable")
    judged = tables.judged(rows, ["model", x, "part"], "db", "db", good)
    if len(judged):
        linear = tables.select(rows, comparison="linearity")
        plots.lines(axis, linear, judged, x, "db", style="part")


def write_page(
    path: str | Path, summary: pd.DataFrame, properties: Styler, drawn: Figure, facts: Mapping[str, str]
) -> Path:
    """One HTML file with numbers, figure and definitions; the figure is closed. Returns the path."""
    image = io.BytesIO()
    drawn.savefig(image, format="png", dpi=130, metadata={"Software": None})
    plt.close(drawn)

    environment = jinja2.Environment(loader=jinja2.PackageLoader("lincae", "evaluation"), autoescape=True)
    environment.filters["decibel"] = tables.decibel
    # names of models come from files, and may hold what HTML would read
    table = properties.format_index(escape="html", axis=1).set_uuid("properties").to_html()
    # a header that is empty heads nothing
    table = re.sub(r'<th class="blank[^>]*>&nbsp;</th>', "<td></td>", table)
    page = environment.get_template("page.html.jinja").render(
        numbers=summary.to_dict("records"),
        table=table,
        image=base64.b64encode(image.getvalue()).decode(),
        facts=facts,
        grey=tables.GREY,
    )

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(page.encode())
    return path
