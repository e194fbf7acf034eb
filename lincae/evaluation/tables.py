"""From frames to the paper's Tables 1 and 2: means over tracks, bootstrap intervals, and what counts.

A cell is the mean over tracks of each track's mean over its chunks. It counts where it says something about
linearity: a decoder that ignores its latent is perfectly linear, so the model must reconstruct
(RECONSTRUCTION_MARGIN_DB), and the number be far from that of another track's latent (SWAP_MARGIN_DB).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

RECONSTRUCTION_MARGIN_DB = 1.0
"""Least SNR of Dec(Enc(x)) over that of a wrong latent, both against x. No absolute level would do: a codec
that redraws phases may have -1 dB (Music2Latent in Table 1), and a decoder that says nothing has 0."""
SWAP_MARGIN_DB = 3.0
"""Least distance of SNR or SI-SDR from the swap row; of a relative L2 error, the same as a ratio."""
N_RESAMPLES = 2000
LEVEL = 0.95
"""Draws of the bootstrap, and the share of them within an interval."""
GREY = "#767676"
"""Colour of what does not count, in tables and figures: the lightest that reads well on white."""


def select(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows of a frame whose columns have the `wanted` values; a tuple stands for any of its members."""
    mask = pd.Series(True, frame.index)
    for column, value in wanted.items():
        mask &= frame[column].isin(value if isinstance(value, tuple) else (value,))
    return frame[mask]


@dataclass(frozen=True)
class Column:
    """A column of a table or a row of a report: what it averages, and what decides whether that counts."""

    title: tuple[str, str]
    protocol: str
    metric: str
    decided_by: str = ""
    """The metric whose distance from the swap row is looked at; empty where there is no such row."""
    rows: Mapping[str, Any] = field(default_factory=dict)
    """Which rows of the protocol."""
    comparison: str = "linearity"

    @property
    def lower_is_better(self) -> bool:
        return self.metric not in ("snr_db", "si_sdr_db")

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of `frame` that this column is about, with all their controls."""
        return select(frame, protocol=self.protocol, **self.rows)

    def averaged(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of `frame` whose mean this column is."""
        return select(self.of(frame), comparison=self.comparison)


ALL = {"condition": "all"}
RANDOM = {"condition": "random"}
STEMS = ("bass", "drums", "other", "vocals")
SNR = {"metric": "snr_db", "decided_by": "snr_db"}
SI_SDR = {"metric": "si_sdr_db", "decided_by": "si_sdr_db"}
ERROR = {"metric": "rel_l2", "decided_by": "rel_l2"}
HEARD = {"metric": "mss", "decided_by": "snr_db"}
SUM = {"protocol": "decoder_additivity", "rows": ALL}
ENCODED_SUM = {"protocol": "encoder_additivity", "rows": ALL}
SCALED = {"protocol": "decoder_homogeneity", "rows": RANDOM}
ENCODED_SCALED = {"protocol": "encoder_homogeneity", "rows": RANDOM}
SEPARATED = {"protocol": "separation"}
BOTH = {"protocol": "decoder_superposition", "rows": ALL}
CODEC = {"protocol": "reconstruction", "comparison": "codec"}
TRUTH = {"comparison": "truth"}

TABLE_1 = {
    "add_dec_mss": Column(("Add. Dec", "MSS"), **SUM, **HEARD),
    "add_dec_snr": Column(("Add. Dec", "SNR"), **SUM, **SNR),
    "add_enc": Column(("Add. Enc", "error"), **ENCODED_SUM, **ERROR),
    "mix_mss": Column(("Mix", "MSS"), metric="mss", **CODEC),
    "mix_snr": Column(("Mix", "SNR"), metric="snr_db", **CODEC),
}
for _stem in STEMS:
    _rows = {**SEPARATED, "rows": {"stem": _stem}}
    _heard = {"metric": "mss", "decided_by": "si_sdr_db"}
    TABLE_1[f"{_stem}_mss"] = Column((_stem.capitalize(), "MSS"), **_rows, **_heard)
    TABLE_1[f"{_stem}_si_sdr"] = Column((_stem.capitalize(), "SI-SDR"), **_rows, **SI_SDR)
TABLE_2 = {
    "rec_mss": Column(("Reconstruction", "MSS"), metric="mss", **CODEC),
    "rec_snr": Column(("Reconstruction", "SNR"), metric="snr_db", **CODEC),
    "hom_dec_mss": Column(("Dec-Hom.", "MSS"), **SCALED, **HEARD),
    "hom_dec_snr": Column(("Dec-Hom.", "SNR"), **SCALED, **SNR),
    "hom_enc": Column(("Enc-Hom.", "error"), **ENCODED_SCALED, **ERROR),
    "kad": Column(("KAD", "x 100"), "kad", "value", comparison="codec"),
}
PAPER_COLUMNS = TABLE_1 | TABLE_2
OWN_COLUMNS = {
    "property2_snr": Column(("Property 2", "SNR"), **BOTH, **SNR),
    "property2_si_sdr": Column(("Property 2", "SI-SDR"), **BOTH, **SI_SDR),
    "add_dec_si_sdr": Column(("Add. Dec", "SI-SDR"), **SUM, **SI_SDR),
    "hom_dec_si_sdr": Column(("Dec-Hom.", "SI-SDR"), **SCALED, **SI_SDR),
    "separation_si_sdr": Column(("Separation", "SI-SDR"), **SEPARATED, **SI_SDR),
    "sum_truth_snr": Column(("Sum, true", "SNR"), **SUM, **SNR, **TRUTH),
    "sum_truth_si_sdr": Column(("Sum, true", "SI-SDR"), **SUM, **SI_SDR, **TRUTH),
    "separation_truth_snr": Column(("Separation, true", "SNR"), **SEPARATED, **SNR, **TRUTH),
    "separation_truth_si_sdr": Column(("Separation, true", "SI-SDR"), **SEPARATED, **SI_SDR, **TRUTH),
}
"""Columns beside the paper's: Property 2 as it stands, SI-SDR beside SNR, and sums and separated stems
against the true sounds."""
COLUMNS = PAPER_COLUMNS | OWN_COLUMNS


# ---------------------------------------------------------------- means and intervals


_mean = partial(np.mean, axis=1)


def interval(
    per_track: Sequence[float] | np.ndarray,
    seed: int = 0,
    statistic: Callable[[np.ndarray], np.ndarray] = _mean,
) -> tuple[float, float, float]:
    """A statistic of tracks, and the ends of its 95 % bootstrap interval (percentiles).

    `per_track`: a value or a row of values for each track, (tracks, ...); `statistic`: from draws of them,
    (draws, tracks, ...), to one number a draw. The ends are NaN for a single track, the statistic for none.
    """
    values = np.asarray(per_track, dtype=float)
    estimate = float(statistic(values[None])[0]) if len(values) else np.nan
    if len(values) < 2:
        return estimate, np.nan, np.nan
    draws = np.random.default_rng(seed).integers(len(values), size=(N_RESAMPLES, len(values)))
    low, high = np.nanquantile(statistic(values[draws]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return estimate, float(low), float(high)


def per_track(frame: pd.DataFrame, by: Sequence[str], metric: str) -> pd.DataFrame:
    """Mean of a metric over the chunks of every track, for every group of `by`: the values that intervals
    and figures are made of. Columns: those of `by`, `dataset`, `track` and the metric."""
    used = frame.dropna(subset=[metric])
    keys = list(dict.fromkeys([*by, "dataset", "track"]))
    return used.groupby(keys, sort=False, dropna=False)[metric].mean().reset_index()


def summary(frame: pd.DataFrame, by: Sequence[str], metric: str) -> pd.DataFrame:
    """Mean of a metric for every group of `by`, over tracks, with its 95 % interval `low`, `high`.

    Columns: those of `by`, `mean`, `low`, `high`, `n_tracks`, `n_chunks`, `n_left_out`.
    """
    rows = []
    for key, group in frame.groupby(list(by), sort=False, dropna=False):
        values = per_track(group, [], metric)[metric]
        n_chunks = int(group[metric].notna().sum())
        rows.append([*key, *interval(values), len(values), n_chunks, len(group) - n_chunks])
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n_tracks", "n_chunks", "n_left_out"])


# ---------------------------------------------------------------- what counts


def reconstructs(frame: pd.DataFrame) -> dict[str, bool]:
    """For every model, whether it reconstructs (RECONSTRUCTION_MARGIN_DB). False without such rows."""
    rows = select(frame, protocol="reconstruction")
    snr_db = summary(rows, ["model", "comparison"], "snr_db").set_index(["model", "comparison"])["mean"]
    good = {}
    for model in frame.model.unique():
        margin = snr_db.get((model, "codec"), np.nan) - snr_db.get((model, "swap"), np.nan)
        good[model] = bool(margin >= RECONSTRUCTION_MARGIN_DB)
    return good


def far_from_swap(value: Any, swap: Any, metric: str) -> Any:
    """Whether means are better than those of their swap rows by SWAP_MARGIN_DB. False for NaN."""
    if metric == "rel_l2":
        return value * 10 ** (SWAP_MARGIN_DB / 20) <= swap
    return value - swap >= SWAP_MARGIN_DB


def judged(
    rows: pd.DataFrame,
    by: Sequence[str],
    metric: str,
    decided_by: str,
    good: Mapping[str, bool],
    comparison: str = "linearity",
) -> pd.DataFrame:
    """`summary` of one comparison among `rows`, with `swap` and `counts`; `by` contains "model".

    `good`: as `reconstructs` returns. `decided_by`: the metric whose distance from the swap row decides too,
    and whose mean is `swap`, or "".
    """
    compared = select(rows, comparison=comparison)
    table = summary(compared, by, metric)
    table = table.assign(swap=np.nan, counts=table.model.map(good).astype(bool))
    if decided_by:
        groups = pd.MultiIndex.from_frame(table[list(by)])

        def means(part: pd.DataFrame) -> np.ndarray:
            return summary(part, by, decided_by).set_index(list(by))["mean"].reindex(groups).to_numpy()

        table["swap"] = means(select(rows, comparison="swap"))
        table["counts"] &= far_from_swap(means(compared), table.swap, decided_by)
    return table


CELL = ("model", "column", "value", "low", "high", "n_tracks", "n_chunks", "n_left_out", "swap", "counts")


def cells(
    frame: pd.DataFrame,
    columns: Sequence[str] = tuple(PAPER_COLUMNS),
    known: Mapping[str, Column] = COLUMNS,
) -> pd.DataFrame:
    """A table of CELL: a row for each model and each of some `known` columns that `frame` has rows for.

    `swap` is the mean of the control, in the metric that decides whether the cell counts.
    """
    good = reconstructs(frame)
    found = []
    for name in columns:
        column = known[name]
        how = (column.metric, column.decided_by, good, column.comparison)
        found.append(judged(column.of(frame), ["model"], *how).assign(column=name))
    table = pd.concat(found, ignore_index=True).rename(columns={"mean": "value"})
    rank = {model: place for place, model in enumerate(frame.model.unique())}
    table = table.sort_values("model", key=lambda names: names.map(rank), kind="stable", ignore_index=True)
    return table[list(CELL)]


# ---------------------------------------------------------------- as the paper prints them


def ranks(table: pd.DataFrame, references: Sequence[str] = ()) -> pd.Series:
    """1 for the best and 2 for the second best of each column of `cells`, among those that count; else 0.

    `references`: models out of competition.
    """
    sign = table.column.map({name: 1 if c.lower_is_better else -1 for name, c in COLUMNS.items()})
    ranked = table.counts & ~table.model.isin(references)
    rank = (sign * table.value).where(ranked).groupby(table.column).rank(method="min")
    return rank.where(rank <= 2, 0).fillna(0).astype(int)


MARKS = {0: "", 1: "font-weight: bold", 2: "text-decoration: underline"}


def styled(
    table: pd.DataFrame, columns: Sequence[str] = tuple(COLUMNS), references: Sequence[str] = ()
) -> Styler:
    """`cells` as the paper prints them: best in bold, second best underlined; what does not count is grey.

    Ranks are among the rows of `table` but for `references`; 95 % intervals stand below the values.
    """
    css = ranks(table, references).map(MARKS).where(table.counts, f"color: {GREY}")
    names = [name for name in columns if (table.column == name).any()]
    text = spread(table, "model", "column", [with_interval(cell, _short) for cell in table.itertuples()])
    titles = []
    for name in names:
        group, title = COLUMNS[name].title
        arrow = "↓" if COLUMNS[name].lower_is_better else "↑"
        titles.append((group, f"{title} {arrow}"))
    return marked(
        text[names], spread(table, "model", "column", css)[names], pd.MultiIndex.from_tuples(titles)
    )


def spread(table: pd.DataFrame, row: str, column: str, values: Sequence[str]) -> pd.DataFrame:
    """`values` of a long `table`, one for each of its rows, as a grid in the order of `table`; "" where none.

    `row`, `column`: the columns of `table` that name the rows and columns of the grid.
    """
    wide = table.assign(_cell=list(values)).pivot(index=row, columns=column, values="_cell")
    return wide.reindex(table[row].unique())[list(table[column].unique())].fillna("")


def marked(text: pd.DataFrame, css: pd.DataFrame, titles: pd.Index) -> Styler:
    """A grid of `text` (HTML) with the CSS of the grid `css` under `titles`, a cell on one line."""
    text = text.replace("", "–").set_axis(titles, axis=1)
    styler = text.style.apply(lambda _: css.set_axis(titles, axis=1), axis=None)
    return styler.set_properties(**{"white-space": "nowrap"})


def with_interval(cell: Any, text: Callable[[float], str]) -> str:
    """Value, and below it the interval, as HTML; empty for a value that is missing."""
    if pd.isna(cell.value):
        return ""
    if pd.isna(cell.low):
        return text(cell.value)
    return f"{text(cell.value)}<br><small>{text(cell.low)} to {text(cell.high)}</small>"


def _short(value: float) -> str:
    """Two decimals, as the paper, or a power of ten where those would be zeros."""
    return f"{value:.0e}" if 0 < abs(value) < 0.005 else f"{value:.2f}"


def decibel(value: float) -> str:
    """One decimal, and no minus before zero."""
    return f"{round(value, 1) + 0.0:.1f}"


# ---------------------------------------------------------------- as readers of a notebook see them


TITLES = {
    "snr_db": "SNR [dB]",
    "si_sdr_db": "SI-SDR [dB]",
    "mss": "MSS",
    "mss_log": "MSS, log-mel alone",
    "rel_l2": "relative L2 error",
    "stft_d": "STFT-D",
    "mel_d": "mel-D",
    "linearity_db": "linearity [dB]",
    "low": "from",
    "high": "to",
    "n_tracks": "tracks",
    "n_left_out": "left out",
    "n_sources": "sources",
}
"""Names of columns, and what stands above them."""


def shown(table: pd.DataFrame, digits: int = 2, **titles: str) -> Styler:
    """A table for a reader: columns under TITLES and `titles`, numbers to `digits`, yes and no in words."""
    numbers = {label: f"{label:g}" for label in table.columns if isinstance(label, float)}
    known = TITLES | titles | numbers
    names = {"index": lambda name: known.get(name, name), "columns": lambda name: known.get(name, name)}
    numbered = isinstance(table.index, pd.RangeIndex)
    for column in table.select_dtypes(bool):
        table = table.assign(**{column: table[column].map({True: "yes", False: "no"})})
    styler = table.rename(columns=known).rename_axis(**names).style.format(precision=digits, na_rep="–")
    return styler.hide(axis="index") if numbered else styler


def claims(table: pd.DataFrame, digits: int = 2) -> Styler:
    """Claims (`claim`, `goal`, `value`, `low`, `high`, `met`) grouped by what stands behind their colon, the
    models that they are about; "not met" is bold."""
    parts = table.claim.str.partition(": ")
    groups = parts[2].str.replace(", ", " against ")
    order = groups.map({group: place for place, group in enumerate(groups.unique())})
    intervals = [
        "–" if pd.isna(row.low) else f"{row.low:.{digits}f} to {row.high:.{digits}f}"
        for row in table.itertuples()
    ]
    verdicts = table.met.map({True: "met", False: "not met"}).rename("")
    rows = table[["goal", "value"]].assign(**{"95 % interval": intervals, "": verdicts})
    rows = rows.set_index([groups.rename("of"), parts[0].rename("claim")]).iloc[order.argsort(kind="stable")]
    left = [{"selector": "th", "props": "text-align: left; font-weight: normal; vertical-align: top"}]
    styler = rows.style.format(precision=digits, na_rep="–").set_table_styles(left)
    # A claim may stand there twice, with two goals: pandas formats cells of such a table, but styles none.
    return styler.format(lambda verdict: "<b>not met</b>" if verdict == "not met" else verdict, subset=[""])
