"""A linearity report as a figure and as one self-contained HTML page (see `report.py`)."""

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lincae.evaluation import plots, tables
from lincae.files import atomic_write

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
    with plt.rc_context(plots.STYLE):
        drawn, axes = plt.subplots(2, 3, figsize=(10, 6))
        unit = "signal over error [dB]"
        gains = sorted(rows[rows.condition == "grid"].gain.unique())  # one place each
        for style, part in (("-", "decoder"), ("--", "encoder")):
            grid = rows[(rows.protocol == f"{part}_homogeneity") & (rows.condition == "grid")]
            grid = grid.assign(place=grid.gain.map(gains.index))
            labels = {"title": "scaled by a gain", "xlabel": "gain", "ylabel": unit}
            _curves(axes[0, 0], grid, "place", style, good, **labels)
            added = rows[rows.protocol == f"{part}_additivity"]
            _curves(axes[0, 1], added, "n_sources", style, good, title="added", xlabel="number of sources")
            moved = rows[(rows.protocol == f"{part}_equivariance") & (rows.comparison != "floor")]
            moved = moved.assign(shift=pd.to_numeric(moved.condition.str.split().str[0]))
            labels = {"title": "shifted in time", "xlabel": "latent frames", "ylabel": unit}
            _curves(axes[1, 0], moved, "shift", style, good, **labels)
        axes[0, 0].set_xticks(range(len(gains)), [f"{gain:g}" for gain in gains])
        axes[0, 1].xaxis.get_major_locator().set_params(integer=True)
        axes[1, 0].set_xscale("log")
        everywhere = rows[rows.protocol == "decoder_equivariance"]
        shifts = sorted({float(c.split()[0]) for c in everywhere.condition if c and not c.startswith("0 ")})
        axes[1, 0].set_xticks(shifts, [f"{shift:g}" for shift in shifts])
        axes[1, 0].minorticks_off()
        known = rows.assign(counts=rows.model.map(good))
        separated = known[(known.protocol == "separation") & (known.comparison == "linearity")]
        _strips(axes[0, 2], separated, "stem", "db", title="separated, SI-SDR [dB]")
        fitted = known[known.protocol == "linear_fit"]
        _strips(axes[1, 1], fitted, "condition", "db", title="best linear map [dB]")
        parts = per_track.melt(["model", "track"], list(SHORT), "part", "db").replace({"part": SHORT})
        parts = parts.assign(counts=parts.model.map(good))
        _strips(axes[1, 2], parts, "part", "db", title="the number (mean) and its parts [dB]")
        names = list(dict.fromkeys(rows.model))
        handles = [plt.Line2D([], [], color=c, lw=2, label=n) for n, c in plots.model_colours(names).items()]
        handles += [
            plt.Line2D([], [], color="black", ls=s, label=n) for s, n in (("-", "decoder"), ("--", "encoder"))
        ]
        drawn.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return drawn


def _curves(
    axis: Axes, rows: pd.DataFrame, x: str, style: str, good: Mapping[str, bool], **labels: Any
) -> None:
    table = tables.judged(rows, ["model", x], "db", "db", good)
    if len(table):
        plots.curves(axis, table, x, style, **labels)


def _strips(axis: Axes, table: pd.DataFrame, groups: str, metric: str, **labels: Any) -> None:
    if table[metric].notna().any():
        plots.strips(axis, table, groups, metric, **labels)
    else:
        axis.set(**labels)
        axis.text(0.5, 0.5, "not measured: needs stems", ha="center", transform=axis.transAxes)


def write_page(
    path: str | Path, summary: pd.DataFrame, table: pd.DataFrame, drawn: Figure, facts: Mapping[str, str]
) -> Path:
    """One HTML file with numbers, figure and definitions; the figure is closed. Returns the path."""
    image = io.BytesIO()
    drawn.savefig(image, format="png", dpi=130, metadata={"Software": None})
    plt.close(drawn)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = PAGE.substitute(
        models=html.escape(", ".join(summary.model)),
        numbers="\n".join(_number(row) for row in summary.itertuples()),
        table=_table(table),
        image=base64.b64encode(image.getvalue()).decode(),
        facts="\n".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()),
    )
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


def _number(row: Any) -> str:
    if pd.isna(row.linearity_db):
        value, below = "–", "no number: additivity and separation need tracks with stems"
    else:
        value = f"{_short(row.linearity_db)} dB"
        below = (
            f"{row.n_tracks} tracks"
            if pd.isna(row.low)
            else f"{_short(row.low)} to {_short(row.high)}, {row.n_tracks} tracks"
        )
    below += "" if row.counts else "; does not reconstruct, so this says nothing"
    kind = "number" if row.counts else "number grey"
    return (
        f'<div class="{kind}"><b>{value}</b><span>{html.escape(row.model)}</span><small>{below}</small></div>'
    )


def _table(table: pd.DataFrame) -> str:
    """Properties down, models across."""
    models = list(dict.fromkeys(table.model))
    head = "".join(f"<th>{html.escape(model)}</th>" for model in models)
    lines = [f"<tr><th>property</th><th>what should be equal</th>{head}</tr>"]
    for name, rows in table.groupby("name", sort=False):
        first, by_model = rows.iloc[0], rows.set_index("model")
        cells = "".join(_cell(by_model.loc[m]) if m in by_model.index else "<td>–</td>" for m in models)
        title = f"<td>{html.escape(first.property)}</td><td><code>{html.escape(first.equation)}</code></td>"
        lines.append(f'<tr id="{name}">{title}{cells}</tr>')
    return "\n".join(lines)


def _cell(row: pd.Series) -> str:
    if pd.isna(row.value):
        return "<td>–</td>"
    span = "" if pd.isna(row.low) else f"{_short(row.low)} to {_short(row.high)}"
    swap = "" if pd.isna(row.swap) else f"wrong latent {_short(row.swap)}"
    small = "; ".join(part for part in (span, swap) if part)
    kind = "" if row.counts else ' class="grey"'
    return f"<td{kind}>{_short(row.value)}<small>{small}</small></td>"


def _short(value: float) -> str:
    """One decimal; no minus before zero."""
    return f"{round(value, 1) + 0.0:.1f}"


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Linearity: $models</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem }
body { margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0 }
.number { border: 1px solid #ccc; border-radius: .4rem; padding: .6rem 1rem; min-width: 9rem }
.number b { display: block; font-size: 1.7rem } .number span { display: block }
small { color: #666; display: block } .grey, .grey * { color: #aaa }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #e4e4e4; vertical-align: top }
td:nth-child(n+3), th:nth-child(n+3) { text-align: right; white-space: nowrap }
code { font-size: .85rem } img { max-width: 100%; height: auto }
dt { font-weight: 600 } dd { margin: 0 0 .4rem }
</style>
</head>
<body>
<h1>How linear is it?</h1>
<p>$models</p>
<div class="numbers">
$numbers
</div>
<p>The number is the mean, in decibels of signal over error, of the first five rows of the table. 0 dB: the
errors are as large as the signals; 20 dB: a tenth of them; 60 dB: perfect (larger values count as 60). Only
models on the same tracks compare.</p>
<img alt="Six panels: gains, sums, stems, shifts, best linear map, and the number with its parts"
 src="data:image/png;base64,$image">
<h2>Every property</h2>
<div class="scroll"><table>
$table
</table></div>
<p>Signal over error in dB, mean over tracks; small: 95 % interval over tracks, and the same with the latent
of another track. Grey says nothing about linearity: the model does not reconstruct, or the value is no better
than that of a wrong latent (3 dB). The floor is one latent decoded with two noises.</p>
<h2>How it was measured</h2>
<dl>
$facts
<dt>best linear map</dt><dd>The stems, mixed with random signed weights: what a matrix from weights to samples
leaves unexplained of the decoded sound; fitted on half of the mixtures, tested on the other half.</dd>
<dt>best linear filter</dt><dd>The same for one filter from mixture to decode, on every other second.</dd>
<dt>shift</dt><dd>The same sound, cut elsewhere: by whole latent frames, and by parts of a frame.</dd>
</dl>
</body>
</html>
""")
