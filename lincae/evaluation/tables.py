"""From frames to the paper's Tables 1 and 2: means over tracks, bootstrap intervals, and what counts.

The value of a cell is the mean over tracks of each track's mean over its chunks: a track counts once. Chunks
whose metric is NaN (silent, missing) are left out, and counted in `n_left_out`.

A number counts only where it says something about linearity. A decoder that ignores its latent is perfectly
linear, and decodes another track's latent as well as any: so the model must reconstruct, better than from
another track's latent by RECONSTRUCTION_MARGIN_DB, and the number must be far from its swap row
(SWAP_MARGIN_DB).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
GREY = "#999999"
"""Colour of what does not count, in tables and figures."""


def select(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows of a frame whose columns have the `wanted` values; a tuple stands for any of its members."""
    mask = pd.Series(True, frame.index)
    for column, value in wanted.items():
        mask &= frame[column].isin(value if isinstance(value, tuple) else (value,))
    return frame[mask]


@dataclass(frozen=True)
class Column:
    """A column of a table: the rows that it averages, and what decides whether the mean counts."""

    table: int
    """Its number in the paper; 3: our own."""
    title: tuple[str, str]
    metric: str
    protocol: str
    rows: Mapping[str, Any] = field(default_factory=dict)
    decided_by: str = ""
    """The metric whose distance from the swap row is looked at; empty for reconstruction, which has none."""
    comparison: str = "linearity"

    @property
    def lower_is_better(self) -> bool:
        return self.metric not in ("snr_db", "si_sdr_db")

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of `frame` that this column is about, with all their controls."""
        return select(frame, protocol=self.protocol, **self.rows)


ALL = {"condition": "all"}
RANDOM = {"condition": "random"}
STEMS = ("bass", "drums", "other", "vocals")
SNR = {"metric": "snr_db", "decided_by": "snr_db"}
SI_SDR = {"metric": "si_sdr_db", "decided_by": "si_sdr_db"}
ERROR = {"metric": "rel_l2", "decided_by": "rel_l2"}
HEARD = {"metric": "mss", "decided_by": "snr_db"}
SUM = {"protocol": "decoder_additivity", "rows": ALL}
SCALED = {"protocol": "decoder_homogeneity", "rows": RANDOM}
CODEC = {"protocol": "reconstruction", "comparison": "codec"}


def _stem_columns() -> dict[str, Column]:
    columns = {}
    for stem in STEMS:
        rows = {"protocol": "separation", "rows": {"stem": stem}}
        columns[f"{stem}_mss"] = Column(
            1, (stem.capitalize(), "MSS"), **rows, metric="mss", decided_by="si_sdr_db"
        )
        columns[f"{stem}_si_sdr"] = Column(1, (stem.capitalize(), "SI-SDR"), **rows, **SI_SDR)
    return columns


PAPER_COLUMNS = {
    "add_dec_mss": Column(1, ("Add. Dec", "MSS"), **SUM, **HEARD),
    "add_dec_snr": Column(1, ("Add. Dec", "SNR"), **SUM, **SNR),
    "add_enc": Column(1, ("Add. Enc", "error"), protocol="encoder_additivity", rows=ALL, **ERROR),
    "mix_mss": Column(1, ("Mix", "MSS"), "mss", **CODEC),
    "mix_snr": Column(1, ("Mix", "SNR"), "snr_db", **CODEC),
    **_stem_columns(),
    "rec_mss": Column(2, ("Reconstruction", "MSS"), "mss", **CODEC),
    "rec_snr": Column(2, ("Reconstruction", "SNR"), "snr_db", **CODEC),
    "hom_dec_mss": Column(2, ("Dec-Hom.", "MSS"), **SCALED, **HEARD),
    "hom_dec_snr": Column(2, ("Dec-Hom.", "SNR"), **SCALED, **SNR),
    "hom_enc": Column(2, ("Enc-Hom.", "error"), protocol="encoder_homogeneity", rows=RANDOM, **ERROR),
    "kad": Column(2, ("KAD", "x 100"), "value", "kad", comparison="codec"),
}
SEPARATED = {"protocol": "separation"}
BOTH = {"protocol": "decoder_superposition", "rows": ALL}
TRUTH = {"comparison": "truth"}
OWN_COLUMNS = {
    "property2_snr": Column(3, ("Property 2", "SNR"), **BOTH, **SNR),
    "property2_si_sdr": Column(3, ("Property 2", "SI-SDR"), **BOTH, **SI_SDR),
    "add_dec_si_sdr": Column(3, ("Add. Dec", "SI-SDR"), **SUM, **SI_SDR),
    "hom_dec_si_sdr": Column(3, ("Dec-Hom.", "SI-SDR"), **SCALED, **SI_SDR),
    "separation_si_sdr": Column(3, ("Separation", "SI-SDR"), **SEPARATED, **SI_SDR),
    "sum_truth_snr": Column(3, ("Sum, true", "SNR"), **SUM, **SNR, **TRUTH),
    "sum_truth_si_sdr": Column(3, ("Sum, true", "SI-SDR"), **SUM, **SI_SDR, **TRUTH),
    "separation_truth_snr": Column(3, ("Separation, true", "SNR"), **SEPARATED, **SNR, **TRUTH),
    "separation_truth_si_sdr": Column(3, ("Separation, true", "SI-SDR"), **SEPARATED, **SI_SDR, **TRUTH),
}
"""Columns beside the paper's: Property 2 as it stands, SI-SDR beside SNR, and sums and separated stems
against the true sounds."""
COLUMNS = PAPER_COLUMNS | OWN_COLUMNS


def _mean(draws: np.ndarray) -> np.ndarray:
    return draws.mean(1)


def interval(
    per_track: Sequence[float] | np.ndarray,
    seed: int = 0,
    statistic: Callable[[np.ndarray], np.ndarray] = _mean,
) -> tuple[float, float, float]:
    """A statistic of tracks, and the ends of its 95 % bootstrap interval (percentiles).

    `per_track` has a value or a row of values for each track, (tracks, ...); `statistic` takes draws of them,
    (draws, tracks, ...), to one number a draw; by default it is the mean. The ends are NaN for a single
    track, the statistic for none.
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


def summary(frame: pd.DataFrame, by: Sequence[str], metric: str, seed: int = 0) -> pd.DataFrame:
    """Mean of a metric for every group of `by`, over tracks, with its 95 % interval `low`, `high`.

    Columns: those of `by`, `mean`, `low`, `high`, `n_tracks`, `n_chunks`, `n_left_out`.
    """
    rows = []
    for key, group in frame.groupby(list(by), sort=False, dropna=False):
        values = per_track(group, [], metric)[metric]
        mean, low, high = interval(values, seed)
        n_chunks = int(group[metric].notna().sum())
        row = {"mean": mean, "low": low, "high": high, "n_tracks": len(values), "n_chunks": n_chunks}
        row["n_left_out"] = len(group) - n_chunks
        rows.append(dict(zip(by, key, strict=True)) | row)
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n_tracks", "n_chunks", "n_left_out"])


def reconstructs(frame: pd.DataFrame) -> dict[str, bool]:
    """For every model, whether it reconstructs (RECONSTRUCTION_MARGIN_DB). False without such rows."""
    rows = select(frame, protocol="reconstruction")
    snr_db = summary(rows, ["model", "comparison"], "snr_db").set_index(["model", "comparison"])["mean"]
    good = {}
    for model in frame.model.unique():
        margin = snr_db.get((model, "codec"), np.nan) - snr_db.get((model, "swap"), np.nan)
        good[model] = bool(margin >= RECONSTRUCTION_MARGIN_DB)
    return good


def far_from_swap(value: float, swap: float, metric: str) -> bool:
    """Whether a mean is better than its swap row by SWAP_MARGIN_DB. False for NaN."""
    if metric == "rel_l2":
        return bool(value * 10 ** (SWAP_MARGIN_DB / 20) <= swap)
    return bool(value - swap >= SWAP_MARGIN_DB)


def judged(
    rows: pd.DataFrame,
    by: Sequence[str],
    metric: str,
    decided_by: str,
    good: Mapping[str, bool],
    comparison: str = "linearity",
) -> pd.DataFrame:
    """`summary` of one comparison among `rows`, with `swap` and `counts`; `by` contains "model".

    `decided_by`: the metric whose distance from the swap row decides, and whose mean is `swap`; `good`: what
    `reconstructs` says of the models.
    """
    linear = select(rows, comparison=comparison)
    table = summary(linear, by, metric)
    groups = pd.MultiIndex.from_frame(table[list(by)])

    def means(part: pd.DataFrame) -> np.ndarray:
        return summary(part, by, decided_by).set_index(list(by))["mean"].reindex(groups).to_numpy()

    decided = means(linear)
    swap = means(select(rows, comparison="swap"))
    counts = []
    for model, value, control in zip(table.model, decided, swap, strict=True):
        counts.append(good[model] and far_from_swap(value, control, decided_by))
    return table.assign(swap=swap, counts=counts)


def unjudged(rows: pd.DataFrame, metric: str, good: Mapping[str, bool]) -> pd.DataFrame:
    """`summary` of each model's `rows` that have no swap row: they count where the model is `good`."""
    table = summary(rows, ["model"], metric)
    return table.assign(swap=np.nan, counts=[good[model] for model in table.model])


CELL = ("model", "column", "value", "low", "high", "n_tracks", "n_chunks", "n_left_out", "swap", "counts")


def stacked(tables: Sequence[pd.DataFrame], models: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Tables of `summary` under each other, in the order of `models`; their `mean` becomes `value`."""
    table = pd.concat(tables, ignore_index=True).rename(columns={"mean": "value"})
    rank = {model: place for place, model in enumerate(models)}
    table = table.sort_values("model", key=lambda names: names.map(rank), kind="stable", ignore_index=True)
    return table[list(columns)].astype({"counts": bool})


def cells(frame: pd.DataFrame, columns: Sequence[str] = tuple(PAPER_COLUMNS)) -> pd.DataFrame:
    """Cells of COLUMNS, by default the paper's, as a table of CELL.

    There is a row for each model and column that `frame` has rows for. `swap` is the mean of the control, in
    the metric that decides whether the cell counts.
    """
    good = reconstructs(frame)
    found = []
    for name in columns:
        column = COLUMNS[name]
        rows = column.of(frame)
        if column.decided_by:
            decided = {"decided_by": column.decided_by, "good": good, "comparison": column.comparison}
            table = judged(rows, ["model"], column.metric, **decided)
        else:
            table = unjudged(select(rows, comparison=column.comparison), column.metric, good)
        found.append(table.assign(column=name))
    return stacked(found, frame.model.unique(), CELL)


def ranks(table: pd.DataFrame, references: Sequence[str] = ()) -> pd.Series:
    """1 for the best and 2 for the second best of each column of `cells`, among those that count; else 0.

    `references`: models out of competition.
    """
    sign = table.column.map({name: 1 if c.lower_is_better else -1 for name, c in COLUMNS.items()})
    ranked = table.counts & ~table.model.isin(references)
    rank = (sign * table.value).where(ranked).groupby(table.column).rank(method="min")
    return rank.where(rank <= 2, 0).fillna(0).astype(int)


MARKS = {0: "", 1: "font-weight: bold", 2: "text-decoration: underline"}


def spread(table: pd.DataFrame, rows: Sequence[str], column: str, values: Sequence[str]) -> pd.DataFrame:
    """`values` of a long `table`, one for each of its rows, as a grid in the order of `table`; "" where none.

    `rows`: the columns of `table` that name a row of the grid; `column`: the one that names its columns.
    """
    wide = table.assign(_cell=list(values)).pivot(index=list(rows), columns=column, values="_cell")
    order = table.drop_duplicates(list(rows)).set_index(list(rows)).index
    return wide.reindex(order)[list(dict.fromkeys(table[column]))].fillna("")


def marked(text: pd.DataFrame, css: pd.DataFrame) -> Styler:
    """A grid of `text` (HTML) with the CSS of the grid `css`, a cell on one line."""
    styler = text.replace("", "–").style.apply(lambda _: css, axis=None)
    return styler.set_properties(**{"white-space": "nowrap"})


def styled(
    table: pd.DataFrame, columns: Sequence[str] = tuple(COLUMNS), references: Sequence[str] = ()
) -> Styler:
    """`cells` as the paper prints them: best in bold, second best underlined; what does not count is grey.

    Ranks are among the rows of `table` but for `references`; 95 % intervals stand below the values.
    """
    css = ranks(table, references).map(MARKS).where(table.counts, f"color: {GREY}")
    names = [name for name in columns if (table.column == name).any()]
    text = spread(table, ["model"], "column", [_value_and_span(cell) for cell in table.itertuples()])[names]
    css = spread(table, ["model"], "column", css)[names]
    titles = []
    for name in names:
        group, title = COLUMNS[name].title
        arrow = "↓" if COLUMNS[name].lower_is_better else "↑"
        titles.append((group, f"{title} {arrow}"))
    text.columns = css.columns = pd.MultiIndex.from_tuples(titles)
    return marked(text, css)


def _value_and_span(cell: Any) -> str:
    if pd.isna(cell.value):
        return ""
    if pd.isna(cell.low):
        return _short(cell.value)
    return f"{_short(cell.value)}<br><small>{_short(cell.low)} to {_short(cell.high)}</small>"


def _short(value: float) -> str:
    """Two decimals, as the paper, or a power of ten where those would be zeros."""
    return f"{value:.0e}" if 0 < abs(value) < 0.005 else f"{value:.2f}"


def decibel(value: float) -> str:
    """One decimal, and no minus before zero."""
    return f"{round(value, 1) + 0.0:.1f}"
