"""How linear is an autoencoder? One report for anything that has `encode` and `decode`.

All is said in decibels of signal over error, 20 log10(1 / error) for relative errors: at 0 dB the error is as
large as what was expected. CAP_DB is perfect: from there on rounding decides. The number, `linearity_db`, is
defined and defended in docs/evaluation.md.
"""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from lincae.evaluation import plots, tables
from lincae.evaluation.evaluate import evaluate
from lincae.evaluation.protocols import SHIFTS, EvaluationConfig, Stems
from lincae.evaluation.tables import BOTH, ENCODED_SUM, SEPARATED, TRUTH, Column
from lincae.interface import AutoencoderLike
from lincae.machine.files import atomic_write

CAP_DB = 60.0
PROTOCOLS = ("reconstruction", "homogeneity", "additivity", "superposition", "separation")
PROTOCOLS += ("equivariance", "fit")
METRICS = {
    "reconstruction": "snr_db",
    "decoder_homogeneity": "snr_db",
    "decoder_additivity": "snr_db",
    "decoder_superposition": "snr_db",
    "separation": "si_sdr_db",
}
"""What a protocol is measured by; the others by `rel_l2`."""

FIT = {"protocol": "linear_fit", "metric": "db"}
"""The share that is explained needs no control: of a decoder that ignores its latent it is 0."""
CODEC = {"protocol": "reconstruction", "metric": "db"}
WHOLE = {"rows": {"condition": tuple(f"{s:g} frames" for s in SHIFTS if s == round(s))}}
PARTS = {"rows": {"condition": tuple(f"{s:g} frames" for s in SHIFTS if s != round(s))}}
MINUS = {"rows": {"condition": "grid", "gain": -1.0}}
SHIFTED = {"protocol": "decoder_equivariance"}
LATER = "Dec(Enc(later x)) = later Dec(Enc(x))"


def _in_db(title: str, equation: str, metric: str = "db", **rows: Any) -> Column:
    return Column((title, equation), metric=metric, decided_by="db", **rows)


SUMMARY = {
    "enc_homogeneity": _in_db("homogeneity, encoder", "Enc(a x) = a Enc(x)", **tables.ENCODED_SCALED),
    "dec_homogeneity": _in_db("homogeneity, decoder", "Dec(a z) = a Dec(z)", **tables.SCALED),
    "enc_additivity": _in_db("additivity, encoder", "Enc(x1 + x2 + ...) = Enc(x1) + ...", **ENCODED_SUM),
    "dec_additivity": _in_db("additivity, decoder", "Dec(Enc(x1) + ...) = Dec(Enc(x1 + ...))", **tables.SUM),
    "separation": _in_db("separation", "Dec(Enc(mix) - Enc(mix - x)) = Dec(Enc(x))", **SEPARATED),
}
SHAPE = ("superposition, decoder: shape alone", "Dec(Enc(x1) + ...) = a (Dec(Enc(x1)) + ...) + constant")
PROPERTIES = SUMMARY | {
    "superposition": _in_db("superposition, decoder", "Dec(Enc(x1) + ...) = Dec(Enc(x1)) + ...", **BOTH),
    "dec_shape": _in_db(*SHAPE, "shape_db", **BOTH),
    "sum_truth": _in_db("sum, true", "Dec(Enc(x1) + ...) = x1 + ...", **tables.SUM, **TRUTH),
    "separation_truth": _in_db("separation, true", "Dec(Enc(mix) - Enc(mix - x)) = x", **SEPARATED, **TRUTH),
    "enc_polarity": _in_db("polarity, encoder", "Enc(-x) = -Enc(x)", **tables.ENCODED_SCALED | MINUS),
    "dec_polarity": _in_db("polarity, decoder", "Dec(-z) = -Dec(z)", **tables.SCALED | MINUS),
    "enc_shift": _in_db(
        "shift by whole frames, encoder",
        "Enc(later x) = later Enc(x)",
        protocol="encoder_equivariance",
        **WHOLE,
    ),
    "dec_shift": _in_db("shift by whole frames, both", LATER, **SHIFTED, **WHOLE),
    "dec_part_shift": _in_db("shift by parts of a frame, both", LATER, **SHIFTED, **PARTS),
    "any_map": Column(
        ("best linear map", "Dec(Enc(.)) = A, any matrix"), **FIT, rows={"condition": "any map"}
    ),
    "one_filter": Column(
        ("best linear filter", "Dec(Enc(x)) = h * x"), **FIT, rows={"condition": "one filter"}
    ),
    "codec": Column(("codec: reconstruction", "Dec(Enc(x)) = x"), **CODEC, comparison="codec"),
    "floor": Column(("floor: two noises", "Dec(z) = Dec(z)"), **CODEC, comparison="floor"),
    "swap": Column(("swap: another latent", "Dec(another z) = x"), **CODEC, comparison="swap"),
}


def linearity_report(
    model: AutoencoderLike,
    tracks: Sequence[Stems],
    config: EvaluationConfig | None = None,
    store: str | Path | None = None,
    progress: bool = True,
) -> "Report":
    """Measure a model on tracks; arguments and errors as of `lincae.evaluation.evaluate`.

    Tracks without stems have no additivity and no separation, and so no summary. Raises TypeError for a model
    that is no `AutoencoderLike`.
    """
    wanted = ("name", "sample_rate", "latent_rate", "encode", "decode")
    if lacks := [name for name in wanted if not hasattr(model, name)]:
        has = f"{type(model).__name__} has no {', '.join(lacks)}"
        raise TypeError(f"{has}: lincae.interop.adapters.adapt(model, sample_rate=...) gives these to it")
    config = config or EvaluationConfig()
    return Report(evaluate(model, tracks, PROTOCOLS, config, store, progress), config)


def decibels(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame with the column `db`, signal over error of each row within CAP_DB, and `shape_db`, the same of
    the shape of the error alone."""
    exact = 10 ** (-2 * CAP_DB / 20)
    db = -20 * np.log10(frame.rel_l2.clip(lower=exact))
    for protocol, measured in METRICS.items():
        db = db.where(frame.protocol != protocol, frame[measured])
    shape_db = -20 * np.log10(frame.shape_rel_l2.clip(lower=exact))
    return frame.assign(db=db.clip(-CAP_DB, CAP_DB), shape_db=shape_db.clip(-CAP_DB, CAP_DB))


ROW = ("model", "name", "property", "equation", "value", "low", "high", "error", "swap", "counts")
ROW += ("n_tracks", "n_left_out")
"""Columns of a report's table."""


@dataclass(frozen=True)
class Report:
    """What was measured of one model or of several: `frame`, rows of `lincae.evaluation.COLUMNS`.

    `config`: how, where it is known (a frame that was read from a file does not say it).
    """

    frame: pd.DataFrame
    config: EvaluationConfig | None = None

    @property
    def models(self) -> list[str]:
        return list(self.frame.model.unique())

    @staticmethod
    def join(reports: Sequence["Report"]) -> "Report":
        """Models side by side. ValueError for none, two of one name, other tracks or configurations."""
        names = [name for report in reports for name in report.models]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a report joins models of different names, one or more, got {names}")
        if len({frozenset(zip(r.frame.dataset, r.frame.track, strict=True)) for r in reports}) > 1:
            raise ValueError(f"the reports of {', '.join(names)} are about different tracks")
        if len({report.config for report in reports}) > 1:
            raise ValueError(f"the reports of {', '.join(names)} were measured with different configurations")
        return Report(pd.concat([report.frame for report in reports], ignore_index=True), reports[0].config)

    def table(self) -> pd.DataFrame:
        """A row for each model and property: `value` in dB and its interval `low`, `high` over tracks;
        `error` = 10^(-dB / 20); `swap`, the same with a wrong latent; `counts`, as in `tables.py`."""
        table = tables.cells(decibels(self.frame), tuple(PROPERTIES), PROPERTIES)
        titles = [PROPERTIES[name].title for name in table.column]
        table[["property", "equation"]] = titles
        table["error"] = 10 ** (-table.value / 20)
        return table.rename(columns={"column": "name"})[list(ROW)]

    def styled(self) -> Styler:
        """`table` as properties down and models across, as HTML; what does not count is grey."""
        table = self.table()
        table["title"] = table.property + "<br><code>" + table.equation + "</code>"
        css = table.counts.map({True: "", False: f"color: {tables.GREY}"})
        text = tables.spread(table, "title", "model", [_cell(row) for row in table.itertuples()])
        css = tables.spread(table, "title", "model", css)
        return tables.marked(text.rename_axis(None), css.rename_axis(None), text.columns.rename(None))

    def per_track(self) -> pd.DataFrame:
        """`linearity_db` and its parts for every (model, dataset, track); NaN where a part is missing."""
        key = ["model", "dataset", "track"]
        found = {}
        frame = decibels(self.frame)
        for name, column in SUMMARY.items():
            found[name] = tables.per_track(column.averaged(frame), ["model"], "db").set_index(key).db
        table = pd.DataFrame(found, index=self.frame.drop_duplicates(key).set_index(key).index)
        return table.assign(linearity_db=table.mean(axis=1, skipna=False)).reset_index()

    def linearity(self) -> pd.DataFrame:
        """The number: mean over tracks of `linearity_db`, its interval `low`, `high`, whether it `counts`."""
        good = tables.reconstructs(self.frame)
        table = tables.summary(self.per_track(), ["model"], "linearity_db").drop(columns="n_chunks")
        table = table.rename(columns={"mean": "linearity_db"})
        return table.assign(counts=[good[model] for model in table.model])

    def figure(self) -> Figure:
        """Six panels: gains, sums, stems, shifts, best linear map, and the number with its parts."""
        return drawn(decibels(self.frame), self.per_track(), tables.reconstructs(self.frame))

    def html(self, path: str | Path) -> Path:
        """Write one page that holds everything, and needs nothing beside it; returns its path."""
        return write_page(path, self.linearity(), self.styled(), self.figure(), self._facts())

    def _facts(self) -> dict[str, str]:
        """What was measured on, for the page."""
        tracks = self.frame.drop_duplicates(["dataset", "track"])
        kinds = ", ".join(
            f"{n} of {dataset}" for dataset, n in tracks.groupby("dataset", sort=False).size().items()
        )
        gains = self.frame[self.frame.condition == "random"].gain
        status = self.frame.status.value_counts().drop("ok", errors="ignore")
        facts = {"tracks": f"{kinds}: {', '.join(tracks.track)}"}
        if len(gains):
            facts["gains of the number"] = f"{gains.min():.2f} to {gains.max():.2f}, one a track"
        facts["rows without a value"] = ", ".join(f"{n} {kind}" for kind, n in status.items()) or "none"
        if self.config:
            how = f"{self.config.window_s:g} s, overlapping by {self.config.overlap_s:g} s"
            facts["windows"] = f"{how}; metrics of {self.config.chunk_s:g} s"
            facts["noise of the two sides of a comparison"] = self.config.noise
        return facts


def _cell(row: Any) -> str:
    """Value, and below it the interval and the swap row, as HTML; empty for a value that is missing."""
    text = tables.with_interval(row, tables.decibel)
    if text and not pd.isna(row.swap):
        text += f"<br><small>wrong latent {tables.decibel(row.swap)}</small>"
    return text


# ---------------------------------------------------------------- as a figure, and as a page

SHORT = {
    "enc_homogeneity": "hom.\nEnc",
    "dec_homogeneity": "hom.\nDec",
    "enc_additivity": "add.\nEnc",
    "dec_additivity": "add.\nDec",
    "separation": "sep.",
    "linearity_db": "mean",
}


def drawn(rows: pd.DataFrame, per_track: pd.DataFrame, good: Mapping[str, bool]) -> Figure:
    """Six panels of rows with the column `db`; models that are not `good` are grey."""
    parts = rows.assign(part=rows.protocol.str.split("_").str[0], counts=rows.model.map(good))
    colours = plots.model_colours(list(good))
    colours = {model: colour if good[model] else tables.GREY for model, colour in colours.items()}
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(10, 6))
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
        plots.model_legend(figure, colours, styles, title=plots.DOTS)
    return figure


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
    path: str | Path, summary: pd.DataFrame, properties: Styler, figure: Figure, facts: Mapping[str, str]
) -> Path:
    """One HTML file with numbers, figure and definitions; the figure is closed. Returns the path."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)

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


# ---------------------------------------------------------------- claims

COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "at least": lambda ours, other: ours,
    "at most": lambda ours, other: ours,
    "times lower": lambda ours, other: other / ours,
    "dB higher": lambda ours, other: ours - other,
    "ratio at most": lambda ours, other: ours / other,
}
"""What is bounded of a model, or of how it stands to another, by the end of a claim."""
CLAIMED = {
    "encoder additivity error": tables.COLUMNS["add_enc"],
    "encoder homogeneity error": tables.COLUMNS["hom_enc"],
    "decoder additivity MSS": tables.COLUMNS["add_dec_mss"],
    "decoder additivity SNR": tables.COLUMNS["add_dec_snr"],
    "decoder homogeneity SNR": tables.COLUMNS["hom_dec_snr"],
    "decoder superposition SNR": tables.COLUMNS["property2_snr"],
    "separation SI-SDR": tables.COLUMNS["separation_si_sdr"],
    "separation SI-SDR against truth": tables.COLUMNS["separation_truth_si_sdr"],
    **{f"{stem} SI-SDR": tables.COLUMNS[f"{stem}_si_sdr"] for stem in tables.STEMS},
    "reconstruction MSS": tables.COLUMNS["rec_mss"],
    "reconstruction SNR": tables.COLUMNS["rec_snr"],
}
"""What claims are about."""
for _gain in (0.1, 0.3, 3.0, -1.0):
    _rows = {"condition": "grid", "gain": _gain}
    CLAIMED[f"decoder homogeneity SNR at {_gain:g}"] = Column(
        ("Dec-Hom.", f"SNR at {_gain:g}"), "decoder_homogeneity", rows=_rows, **tables.SNR
    )


def claims(frame: pd.DataFrame, goals: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """What models reach of `goals`, as `claim`, `goal`, `value`, `low`, `high`, `met`.

    `goals` has columns `claim`, one of CLAIMED and one of COMPARED such as "reconstruction MSS, ratio at
    most", `goal`, the bound, `model`, and `other`, the model to compare with, or "". `value` is of means over
    tracks; its interval (95 %) is from a bootstrap that draws the same tracks for both models. `met` is said
    of the value. Where no track has a value for both (silence) a claim is NaN, and not met. Raises ValueError
    for a model without rows.
    """
    if absent := {*goals.model, *goals.other} - {*frame.model, ""}:
        raise ValueError(f"no rows of {sorted(absent)}: the frame is about {sorted(set(frame.model))}")
    rows = []
    for asked in goals.itertuples():
        about, how = asked.claim.split(", ")
        column = CLAIMED[about]
        means = tables.per_track(column.averaged(frame), ["model"], column.metric)
        means = means.pivot_table(
            index=["dataset", "track"], columns="model", values=column.metric, sort=False
        )
        both = means.reindex(columns=[asked.model, asked.other or asked.model]).dropna().to_numpy()

        def compared(draws: np.ndarray, compare: Callable = COMPARED[how]) -> np.ndarray:
            return compare(*draws.mean(1).T)

        value, low, high = tables.interval(both, seed, compared)
        met = bool(value <= asked.goal if how.endswith("at most") else value >= asked.goal)
        than = f", {asked.other}" if asked.other else ""
        rows.append([f"{asked.claim}: {asked.model}{than}", asked.goal, value, low, high, met])
    return pd.DataFrame(rows, columns=["claim", "goal", "value", "low", "high", "met"])


def advantage(
    frame: pd.DataFrame, linear: str, plain: str, goals: Mapping[str, float], seed: int = 0
) -> pd.DataFrame:
    """`claims` about one model against another, by claim and bound."""
    asked = pd.DataFrame({"claim": list(goals), "goal": list(goals.values())})
    return claims(frame, asked.assign(model=linear, other=plain), seed)
