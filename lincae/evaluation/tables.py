"""From frames to the paper's Tables 1 and 2: means over tracks, bootstrap intervals, and what counts.

The value of a cell is the mean over tracks of each track's mean over its chunks: a track counts once. Chunks
whose metric is NaN (silent, missing) are left out, and counted in `n_left_out`.

A number counts only where it says something about linearity. A decoder that ignores its latent is perfectly
linear, and decodes another track's latent as well as any: so the model must reconstruct, better than from
another track's latent by RECONSTRUCTION_MARGIN_DB, and the number must be far from its swap row
(SWAP_MARGIN_DB).
"""

import itertools
from collections.abc import Mapping, Sequence
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
N_RESAMPLES, LEVEL = 2000, 0.95  # of the bootstrap


@dataclass(frozen=True)
class Column:
    """A column of the paper's tables: the rows that it averages, and what decides whether the mean counts."""

    table: int
    title: tuple[str, str]
    metric: str
    protocol: str
    rows: Mapping[str, Any] = field(default_factory=dict)
    decided_by: str = ""
    """Linearity columns: the metric whose distance from the swap row is looked at. Others are codec rows."""

    @property
    def lower_is_better(self) -> bool:
        return self.metric not in ("snr_db", "si_sdr_db")

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of `frame` that this column is about, with all their controls."""
        mask = frame.protocol == self.protocol
        for name, value in self.rows.items():
            mask &= frame[name] == value
        return frame[mask]


ALL, RANDOM = {"condition": "all"}, {"condition": "random"}
PAPER_COLUMNS = {
    "add_dec_mss": Column(1, ("Add. Dec", "MSS"), "mss", "decoder_additivity", ALL, decided_by="snr_db"),
    "add_dec_snr": Column(1, ("Add. Dec", "SNR"), "snr_db", "decoder_additivity", ALL, decided_by="snr_db"),
    "add_enc": Column(1, ("Add. Enc", "error"), "rel_l2", "encoder_additivity", ALL, decided_by="rel_l2"),
    "mix_mss": Column(1, ("Mix", "MSS"), "mss", "reconstruction"),
    "mix_snr": Column(1, ("Mix", "SNR"), "snr_db", "reconstruction"),
    **{
        f"{stem}_{metric.removesuffix('_db')}": Column(
            1, (stem.capitalize(), title), metric, "separation", {"stem": stem}, decided_by="si_sdr_db"
        )
        for stem in ("bass", "drums", "other", "vocals")
        for metric, title in (("mss", "MSS"), ("si_sdr_db", "SI-SDR"))
    },
    "rec_mss": Column(2, ("Reconstruction", "MSS"), "mss", "reconstruction"),
    "rec_snr": Column(2, ("Reconstruction", "SNR"), "snr_db", "reconstruction"),
    "hom_dec_mss": Column(2, ("Dec-Hom.", "MSS"), "mss", "decoder_homogeneity", RANDOM, decided_by="snr_db"),
    "hom_dec_snr": Column(
        2, ("Dec-Hom.", "SNR"), "snr_db", "decoder_homogeneity", RANDOM, decided_by="snr_db"
    ),
    "hom_enc": Column(2, ("Enc-Hom.", "error"), "rel_l2", "encoder_homogeneity", RANDOM, decided_by="rel_l2"),
    "kad": Column(2, ("KAD", "x 100"), "value", "kad"),
}


def interval(per_track: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % bootstrap interval over tracks (percentiles); NaN for a single track."""
    values = np.asarray(per_track, dtype=float)
    if len(values) < 2:
        return (float(values.mean()) if len(values) else np.nan), np.nan, np.nan
    resampled = np.random.default_rng(seed).choice(values, (N_RESAMPLES, len(values))).mean(1)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(values.mean()), float(low), float(high)


def summary(frame: pd.DataFrame, by: Sequence[str], metric: str, seed: int = 0) -> pd.DataFrame:
    """Mean of a metric for every group of `by`, over tracks, with its 95 % interval `low`, `high`.

    Columns: those of `by`, `mean`, `low`, `high`, `n_tracks`, `n_chunks`, `n_left_out`.
    """
    rows = []
    for key, group in frame.groupby(list(by), sort=False, dropna=False):
        used = group.dropna(subset=[metric])
        per_track = used.groupby(["dataset", "track"], sort=False)[metric].mean()
        row = dict(zip(["mean", "low", "high"], interval(per_track, seed), strict=True))
        row |= {"n_tracks": len(per_track), "n_chunks": len(used), "n_left_out": len(group) - len(used)}
        rows.append(dict(zip(by, key, strict=True)) | row)
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n_tracks", "n_chunks", "n_left_out"])


def reconstructs(frame: pd.DataFrame) -> dict[str, bool]:
    """For every model, whether it reconstructs (RECONSTRUCTION_MARGIN_DB). False without such rows."""
    rows = frame[frame.protocol == "reconstruction"]
    snr_db = summary(rows, ["model", "comparison"], "snr_db").set_index(["model", "comparison"])["mean"]
    margins = {
        model: snr_db.get((model, "codec"), np.nan) - snr_db.get((model, "swap"), np.nan)
        for model in frame.model.unique()
    }
    return {model: bool(margin >= RECONSTRUCTION_MARGIN_DB) for model, margin in margins.items()}


def far_from_swap(value: float, swap: float, metric: str) -> bool:
    """Whether a mean is better than its swap row by SWAP_MARGIN_DB. False for NaN."""
    if metric == "rel_l2":
        return bool(value * 10 ** (SWAP_MARGIN_DB / 20) <= swap)
    return bool(value - swap >= SWAP_MARGIN_DB)


CELL = ("model", "column", "value", "low", "high", "n_tracks", "n_chunks", "n_left_out", "swap", "counts")


def judged(
    rows: pd.DataFrame, by: Sequence[str], metric: str, decided_by: str, good: Mapping[str, bool]
) -> pd.DataFrame:
    """`summary` of the "linearity" among `rows`, with `swap` and `counts`; `by` begins with "model".

    `decided_by`: the metric whose distance from the swap row decides, and whose mean is `swap`; `good`: what
    `reconstructs` says of the models.
    """
    linear, swap = rows[rows.comparison == "linearity"], rows[rows.comparison == "swap"]
    table = summary(linear, by, metric)
    decided, control = (
        summary(part, by, decided_by).set_index(list(by))["mean"].reindex(pd.MultiIndex.from_frame(table[by]))
        for part in (linear, swap)
    )
    far = [far_from_swap(*pair, decided_by) for pair in zip(decided, control, strict=True)]
    counts = [good[model] and is_far for model, is_far in zip(table.model, far, strict=True)]
    return table.assign(swap=control.to_numpy(), counts=counts)


def cells(frame: pd.DataFrame, columns: Sequence[str] = tuple(PAPER_COLUMNS)) -> pd.DataFrame:
    """Cells of the paper's tables, of CELL: a row for each model and column that `frame` has rows for.

    `swap` is the mean of the control, in the metric that decides whether the cell counts.
    """
    good, found = reconstructs(frame), []
    for name in columns:
        column = PAPER_COLUMNS[name]
        if column.decided_by:
            table = judged(column.of(frame), ["model"], column.metric, column.decided_by, good)
        else:
            rows = column.of(frame)
            table = summary(rows[rows.comparison == "codec"], ["model"], column.metric)
            table = table.assign(swap=np.nan, counts=[good[model] for model in table.model])
        found.append(table.rename(columns={"mean": "value"}).assign(column=name))
    order = {model: i for i, model in enumerate(frame.model.unique())}
    table = pd.concat(found, ignore_index=True)[list(CELL)].astype({"counts": bool})
    return table.sort_values("model", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def orderings(table: pd.DataFrame, published: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Whether our models stand in the published order, in every column that both `cells` hold.

    `names`: our model -> the published one. One row for each column and pair of models: `column`, `better`,
    `worse` (our names, ordered as published), their values here and there, `agrees`. Pairs that are equal
    as published say nothing and are left out.
    """
    values = [rows.set_index(["model", "column"]).value for rows in (table, published)]
    rows = []
    for column in [name for name in PAPER_COLUMNS if (table.column == name).any()]:
        present = [
            m for m in names if all((k, column) in v for k, v in zip((m, names[m]), values, strict=True))
        ]
        for pair in itertools.combinations(present, 2):
            lower = PAPER_COLUMNS[column].lower_is_better
            better, worse = sorted(pair, key=lambda m: values[1][names[m], column], reverse=not lower)
            theirs = [values[1][names[m], column] for m in (better, worse)]
            if theirs[0] == theirs[1]:
                continue
            ours = [values[0][m, column] for m in (better, worse)]
            row = {"column": column, "better": better, "worse": worse}
            row |= dict(zip(("better_value", "worse_value"), ours, strict=True))
            row |= dict(zip(("better_published", "worse_published"), theirs, strict=True))
            rows.append(row | {"agrees": bool(ours[0] < ours[1] if lower else ours[0] > ours[1])})
    return pd.DataFrame(rows)


def ranks(table: pd.DataFrame, references: Sequence[str] = ()) -> pd.Series:
    """1 for the best and 2 for the second best of each column of `cells`, among those that count; else 0.

    `references`: models out of competition.
    """
    sign = table.column.map({name: 1 if c.lower_is_better else -1 for name, c in PAPER_COLUMNS.items()})
    ranked = table.counts & ~table.model.isin(references)
    rank = (sign * table.value).where(ranked).groupby(table.column).rank(method="min")
    return rank.where(rank <= 2, 0).fillna(0).astype(int)


MARKS = {1: "font-weight: bold", 2: "text-decoration: underline"}


def styled(
    table: pd.DataFrame, columns: Sequence[str] = tuple(PAPER_COLUMNS), references: Sequence[str] = ()
) -> Styler:
    """`cells` as the paper prints them: best in bold, second best underlined; what does not count is grey.

    Ranks are among the rows of `table` but for `references`; 95 % intervals stand below the values.
    """
    names = [name for name in columns if (table.column == name).any()]
    text = pd.DataFrame("", list(dict.fromkeys(table.model)), names)
    css = text.copy()
    for row, rank in zip(table.itertuples(), ranks(table, references), strict=True):
        if row.column in names:
            span = "" if pd.isna(row.low) else f"<br><small>{_short(row.low)} to {_short(row.high)}</small>"
            text.at[row.model, row.column] = "–" if pd.isna(row.value) else f"{_short(row.value)}{span}"
            css.at[row.model, row.column] = MARKS.get(rank, "") if row.counts else "color: #aaaaaa"
    titles = []
    for name in names:
        group, title = PAPER_COLUMNS[name].title
        titles.append((group, title + (" ↓" if PAPER_COLUMNS[name].lower_is_better else " ↑")))
    text.columns = css.columns = pd.MultiIndex.from_tuples(titles)
    return text.style.apply(lambda _: css, axis=None).set_properties(**{"white-space": "nowrap"})


def _short(value: float) -> str:
    """Two decimals, as the paper, or a power of ten where those would be zeros."""
    return f"{value:.0e}" if 0 < abs(value) < 0.005 else f"{value:.2f}"
