"""What the study asks of its models, as claims, and where they stand between linearity and quality.

    claims = claimed(frame[frame.dataset == "pairs"], (*GOALS, *rate_goals({"study/m2l": 32})))
    table = quality(frame)
    draw_quality(axes, table, references=["pca-32x", "resample+noise-32x"])

A model without rows leaves out the goals that it appears in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from torch import fft

from lincae.evaluation import tables
from lincae.evaluation.plots import GREY, model_colours
from lincae.evaluation.protocols import Stems
from lincae.interface import AutoencoderLike

OWN, LINEAR, PLAIN = "study/lin-bypass-code", "study/lin-cae", "study/m2l"
LISTEN = "study/listen"
CAP_DB = 60.0
"""Where figures end: what is exact lies far above."""

GAINS = (0.1, 0.3, 3.0, -1.0)
SCALED = {
    f"dec_hom_snr at {gain:g}": tables.Column(
        title=("Dec-Hom.", f"SNR at {gain:g}"),
        protocol="decoder_homogeneity",
        rows={"condition": "grid", "gain": gain},
        **tables.SNR,
    )
    for gain in GAINS
}
COLUMNS = tables.COLUMNS | SCALED


@dataclass(frozen=True)
class Goal:
    """A bound on the mean over tracks of a column of a model, or on how it stands to that of `other`.

    `kind`: "at least" and "at most" bound the value, "higher by" the difference to `other`, "share at most"
    the ratio.
    """

    model: str
    column: str
    kind: str
    bound: float
    other: str = ""

    @property
    def claim(self) -> str:
        than = f", {self.other}" if self.other else ""
        return f"{self.column} {self.kind}: {self.model}{than}"

    def of(self, values: np.ndarray) -> np.ndarray:
        """Means `(..., 1 or 2)` to what is bounded, `(...)`."""
        if self.kind == "higher by":
            return values[..., 0] - values[..., 1]
        if self.kind == "share at most":
            return values[..., 0] / values[..., 1]
        return values[..., 0]

    def met(self, value: float) -> bool:
        return bool(value <= self.bound if self.kind.endswith("at most") else value >= self.bound)


def own_goals(own: str = OWN, linear: str = LINEAR, rate: str = "32x") -> list[Goal]:
    """Those of the study's own model, against the linear codecs of its rate and the paper's model."""
    return [
        Goal(own, "rec_snr", "higher by", -0.3, f"pca-{rate}"),
        Goal(own, "rec_mss", "share at most", 0.75, f"resample+noise-{rate}"),
        Goal(own, "add_dec_snr", "at least", 30.0),
        Goal(own, "add_dec_snr", "higher by", 12.0, linear),
        Goal(own, "separation_si_sdr", "at least", 25.0),
        Goal(own, "separation_si_sdr", "higher by", 12.0, linear),
        Goal(own, "property2_snr", "at least", 20.0),
        Goal(own, "property2_snr", "higher by", 5.0, linear),
        Goal(own, "separation_truth_si_sdr", "higher by", 1.5, linear),
        Goal(own, "separation_truth_si_sdr", "higher by", 0.0, f"pca-{rate}"),
        Goal(own, "add_enc", "at most", 0.03),
        Goal(own, "hom_enc", "at most", 0.03),
        *(Goal(own, column, "at least", 25.0) for column in SCALED),
    ]


PAPER_GOALS = [
    Goal(LINEAR, "add_dec_snr", "higher by", 10.0, PLAIN),
    Goal(LINEAR, "hom_dec_snr", "higher by", 10.0, PLAIN),
    Goal(LINEAR, "separation_si_sdr", "higher by", 6.0, PLAIN),
    Goal(LINEAR, "rec_mss", "share at most", 1.03, PLAIN),
    Goal(LINEAR, "rec_mss", "share at most", 1.0, "resample+noise-32x"),
]
LISTENING_GOALS = [
    Goal(LISTEN, "rec_snr", "higher by", 0.0, "resample-8x"),
    Goal(LISTEN, "rec_mss", "share at most", 0.75, "resample+noise-8x"),
    Goal(LISTEN, "separation_si_sdr", "at least", 20.0),
]
GOALS = (*own_goals(), *PAPER_GOALS, *LISTENING_GOALS)


def rate_goals(compression: Mapping[str, float]) -> list[Goal]:
    """For every model (name -> samples per latent number): does it beat the linear codecs of its rate?"""
    goals = []
    for model, rate in compression.items():
        goals.append(Goal(model, "rec_snr", "higher by", 0.0, f"pca-{rate:g}x"))
        goals.append(Goal(model, "rec_mss", "share at most", 1.0, f"resample+noise-{rate:g}x"))
    return goals


def claimed(frame: pd.DataFrame, goals: Sequence[Goal] = GOALS, seed: int = 0) -> pd.DataFrame:
    """`claim`, `goal`, `value`, `low`, `high`, `met` of each goal whose models have rows in `frame`.

    The interval (95 %) is from a bootstrap over tracks that draws the same ones for both models; `met` is
    said of the value. Where no track has a value for both, a claim is NaN and not met.
    """
    known = set(frame.model)
    rows: list[dict[str, Any]] = []
    for goal in goals:
        names = [goal.model, goal.other] if goal.other else [goal.model]
        if not known.issuperset(names):
            continue
        column = COLUMNS[goal.column]
        means = tables.per_track(column.averaged(frame), ["model"], column.metric)
        means = means.pivot_table(
            index=["dataset", "track"], columns="model", values=column.metric, sort=False
        )
        both = means.reindex(columns=names).dropna().to_numpy()
        value, low, high = tables.interval(both, seed, lambda draws, goal=goal: goal.of(draws.mean(1)))
        row = {"claim": goal.claim, "goal": goal.bound, "value": value, "low": low, "high": high}
        rows.append(row | {"met": goal.met(value)})
    return pd.DataFrame(rows, columns=["claim", "goal", "value", "low", "high", "met"])


def octave_levels_db(
    model: AutoencoderLike, music: Sequence[Stems], edges_hz: Sequence[float], seconds: float = 6.0
) -> pd.DataFrame:
    """Energy of what is decoded over that of the mixture, in each band between `edges_hz`, a row a track."""
    rows = []
    for track in music:
        audio = track.stems(model.sample_rate, 0.0, seconds).sum(0, keepdim=True)
        decoded = model.decode(model.encode(audio), length=audio.shape[1]).cpu()
        frequency_hz = fft.rfftfreq(audio.shape[1], 1 / model.sample_rate)
        for low_hz, high_hz in pairwise(edges_hz):
            band = (frequency_hz >= low_hz) & (frequency_hz < high_hz)
            ours, theirs = (fft.rfft(x)[:, band].abs().square().sum() for x in (decoded, audio))
            level_db = 10 * (ours / theirs.clamp_min(1e-12)).log10().item()
            rows.append({"model": model.name, "track": track.name, "from_hz": low_hz, "level_db": level_db})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- linearity against quality

SHOWN = {
    ("rec_mss", "property2_snr"): ("reconstruction, MSS", "Property 2, SNR [dB]"),
    ("rec_snr", "separation_truth_si_sdr"): ("reconstruction, SNR [dB]", "true separation, SI-SDR [dB]"),
}
"""Columns across and up of each panel, with their labels; better is to the right and up."""


def quality(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over tracks of the columns of SHOWN, a row a model."""
    cells = tables.cells(frame, list(dict.fromkeys(name for pair in SHOWN for name in pair)))
    table = cells.pivot_table(index="model", columns="column", values="value", sort=False)
    return table.reset_index().rename_axis(columns=None)


def draw_quality(axes: Sequence[Axes], table: pd.DataFrame, references: Sequence[str] = ()) -> None:
    """One point a model, a panel for each of SHOWN; `references` are grey crosses, named like the others."""
    colours = model_colours([name for name in table.model if name not in references])
    for axis, (columns, labels) in zip(axes, SHOWN.items(), strict=True):
        across, up = columns
        for row in table.to_dict("records"):
            linear = row["model"] in references
            place = row[across], min(row[up], CAP_DB)
            style = {"color": GREY, "marker": "x"} if linear else {"color": colours[row["model"]]}
            axis.scatter(*place, **style)
            exact = " (exact)" if row[up] > CAP_DB else ""
            axis.annotate(
                row["model"] + exact, place, xytext=(4, 3), textcoords="offset points", fontsize="xx-small"
            )
        axis.set(xlabel=labels[0], ylabel=labels[1])
        if tables.COLUMNS[across].lower_is_better:
            axis.invert_xaxis()
