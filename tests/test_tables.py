"""Tables: means and intervals, what counts, the paper's marks."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fakes import RATE, DeafDecoder, FakeTrack, Linear, NoisyDecoder, Reworked, two_tracks
from notebook_code import defined_in

from lincae.evaluation import tables
from lincae.evaluation.evaluate import evaluate
from lincae.evaluation.protocols import EvaluationConfig
from lincae.interop.references import TanhToy

CONFIG = EvaluationConfig(window_s=0.5, overlap_s=0.125, chunk_s=1.0, gains=(0.5,))
PUBLISHED = pd.read_csv(Path(__file__).parent.parent / "data" / "paper_tables.csv")


def frame_of(*models, tracks=None):
    frames = [evaluate(m, tracks or two_tracks(), config=CONFIG, progress=False) for m in models]
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def noisy():
    return frame_of(NoisyDecoder())


def test_interval_by_hand():
    mean, low, high = tables.interval([0.0, 1.0])
    # resampled means are 0, 0.5 and 1, the outer two a quarter of the time each
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    assert tables.interval([3.0, 3.0, 3.0]) == (3.0, 3.0, 3.0)
    assert tables.interval([2.0])[0] == 2.0
    assert np.isnan(tables.interval([2.0])[1:]).all()
    assert np.isnan(tables.interval([])).all()


def test_interval_covers_the_mean_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(300):
        _, low, high = tables.interval(rng.normal(1.0, 2.0, 30))
        hits += low <= 1.0 <= high
    assert 0.9 < hits / 300 < 0.98


def test_a_track_counts_once_however_long_it_is():
    frame = pd.DataFrame(
        {"track": ["long"] * 3 + ["short", "silent"], "snr_db": [1.0, 2.0, 3.0, 10.0, np.nan]}
    )
    frame = frame.assign(dataset="d", model="m")
    (row,) = tables.summary(frame, ["model"], "snr_db").to_dict("records")
    assert row["mean"] == 6.0
    assert (row["n_tracks"], row["n_chunks"], row["n_left_out"]) == (2, 4, 1)
    assert row["low"] == 2.0
    assert row["high"] == 10.0


@pytest.mark.parametrize(
    ("name", "protocol", "comparison", "rest", "metric"),
    [
        ("bass_si_sdr", "separation", "linearity", "stem == 'bass'", "si_sdr_db"),
        ("add_enc", "encoder_additivity", "linearity", "condition == 'all'", "rel_l2"),
        ("property2_snr", "decoder_superposition", "linearity", "condition == 'all'", "snr_db"),
        ("separation_truth_si_sdr", "separation", "truth", "gain != 0", "si_sdr_db"),
    ],
)
def test_a_cell_is_the_mean_of_the_means_of_tracks(noisy, name, protocol, comparison, rest, metric):
    rows = noisy.query(f"protocol == '{protocol}' and comparison == '{comparison}' and {rest}")
    cell = tables.cells(noisy, [name]).iloc[0]
    assert cell.value == pytest.approx(rows.groupby("track")[metric].mean().mean())
    assert cell.counts


def test_what_reconstructs_counts_everywhere_and_the_toy_with_its_own_errors():
    frame = frame_of(Linear(), TanhToy(RATE, drive=1.0))
    cells = tables.cells(frame)
    assert set(cells.column) == set(tables.PAPER_COLUMNS) - {"kad"}
    assert not tables.cells(frame[frame.protocol == "separation"]).counts.any()
    assert cells.counts.all()
    assert cells[cells.model == "tanh"].set_index("column").value["add_dec_snr"] < 40


def test_a_decoder_that_ignores_its_latent_counts_nowhere():
    frame = frame_of(DeafDecoder(), Linear())
    cells = tables.cells(frame)
    deaf = cells[cells.model == "deaf"]
    assert len(deaf) == len(tables.PAPER_COLUMNS) - 1
    assert not deaf.counts.any()
    assert deaf.set_index("column").value["add_dec_snr"] > 60  # proud, and empty
    assert (tables.ranks(cells)[cells.model == "deaf"] == 0).all()
    html = tables.styled(cells).to_html()
    css = {name: style for style, names in _styles(html) for name in names}
    grey = [css.get(f"row0_col{i}", "") for i in range(18)]
    assert all(tables.GREY in style for style in grey)
    assert tables.GREY not in "".join(css.get(f"row1_col{i}", "") for i in range(18))


def _styles(html):
    """(declaration, ids) of a Styler's HTML."""
    for block in html.split("</style>")[0].split("}"):
        if "{" in block:
            ids, style = block.split("{")
            yield style, [part.strip().split("_", 2)[-1] for part in ids.split(",")]


def test_a_silent_decoder_counts_nowhere():
    cells = tables.cells(frame_of(Reworked(lambda audio: 0 * audio, "mute")))
    assert not cells.counts.any()
    assert cells.set_index("column").value[["rec_snr", "add_enc"]].tolist() == pytest.approx([0, 0], abs=1e-6)


def test_numbers_near_their_swap_row_do_not_count():
    assert tables.far_from_swap(3.0, 0.0, "snr_db")
    assert not tables.far_from_swap(2.9, 0.0, "si_sdr_db")
    assert tables.far_from_swap(1.0, 1.42, "rel_l2")
    assert not tables.far_from_swap(1.0, 1.41, "rel_l2")
    assert not tables.far_from_swap(np.nan, 0.0, "snr_db")


def test_missing_and_silent_stems_are_counted():
    tracks = [FakeTrack("a"), FakeTrack("b", stem_names=("drums", "bass", "other"), seed=1)]
    tracks += [FakeTrack("c", levels=(0.1, 0.1, 0.1, 0.0), seed=2)]
    cells = tables.cells(frame_of(Linear(), tracks=tracks)).set_index("column")
    assert cells.n_left_out["vocals_si_sdr"] == 4  # two chunks of two tracks
    assert cells.n_tracks["vocals_si_sdr"] == 1
    assert cells.n_left_out["bass_si_sdr"] == 0


def test_orderings_against_the_published():
    names = {"itertools": itertools, "pd": pd, "tables": tables}
    orderings = defined_in("06_ablations", "orderings", names)["orderings"]
    names = {"ours": "Lin-CAE", "plain": "M2L", "half": "no-additivity"}
    rows = [("ours", "add_enc", 0.2), ("plain", "add_enc", 0.9), ("half", "add_enc", 1.5)]
    rows += [("ours", "vocals_si_sdr", 9.0), ("plain", "vocals_si_sdr", 2.0), ("stft", "vocals_si_sdr", 99.0)]
    table = pd.DataFrame(rows, columns=["model", "column", "value"])
    found = orderings(table, PUBLISHED, names).set_index(["column", "better", "worse"])
    # published: add_enc 0.60, 2.07 (no-additivity), 2.73 (M2L); vocals -1.18 and -12.56
    assert found.agrees.to_dict() == {
        ("add_enc", "ours", "plain"): True,
        ("add_enc", "ours", "half"): True,
        ("add_enc", "half", "plain"): False,
        ("vocals_si_sdr", "ours", "plain"): True,
    }
    row = found.loc["add_enc", "half", "plain"]
    assert [row.better_value, row.worse_value] == [1.5, 0.9]
    assert [row.better_published, row.worse_published] == [2.07, 2.73]
    itself = PUBLISHED[PUBLISHED.table.isin([1, 2])]
    same = {name: name for name in ("Lin-CAE", "M2L", "no-additivity", "no-homogeneity")}
    assert orderings(itself, itself, same).agrees.all()


def test_marks_are_those_of_the_paper():
    published = PUBLISHED.assign(counts=True)
    rank = tables.ranks(published)
    bold = published[rank == 1].set_index("column").model.to_dict()
    expected = dict.fromkeys(tables.PAPER_COLUMNS, "Lin-CAE")
    expected |= dict.fromkeys(("mix_mss", "mix_snr", "rec_mss", "rec_snr"), "SA-VAE") | {"kad": "M2L-Pub"}
    assert bold == expected
    second = published[rank == 2].set_index("column").model.to_dict()
    # as underlined in the paper; its SI-SDR columns and Dec-Hom. SNR have no second mark
    underlined = {"add_dec_mss": "no-additivity", "add_dec_snr": "no-additivity", "add_enc": "no-homogeneity"}
    underlined |= dict.fromkeys(("mix_mss", "mix_snr", "other_mss"), "no-homogeneity")
    underlined |= dict.fromkeys(("bass_mss", "drums_mss", "vocals_mss"), "no-additivity")
    underlined |= {"rec_mss": "M2L", "rec_snr": "Lin-CAE", "hom_dec_mss": "M2L", "kad": "Lin-CAE"}
    assert {name: second[name] for name in underlined} == underlined


def test_styled_shows_values_marks_and_intervals():
    nan = np.nan
    rows = [("a", "add_enc", 1.0, 0.5, 1.5, True), ("b", "add_enc", 2.0, nan, nan, True)]
    rows += [("c", "add_enc", 0.1, nan, nan, False), ("a", "add_dec_mss", 2e-6, 0, 3e-6, True)]
    rows += [("c", "kad", nan, nan, nan, True)]
    table = pd.DataFrame(rows, columns=["model", "column", "value", "low", "high", "counts"])
    html = tables.styled(table).to_html()
    assert "1.00<br><small>0.50 to 1.50</small>" in html
    assert "2e-06<br><small>0.00 to 3e-06</small>" in html
    assert all(text in html for text in ("error ↓", "–", "text-decoration: underline", "font-weight: bold"))
    assert tables.ranks(table).tolist() == [1, 2, 0, 1, 0]
    assert tables.ranks(table, references=["a"]).tolist() == [0, 1, 0, 0, 0]


# ---------------------------------------------------------------- as readers of a notebook see them


def test_claims_are_grouped_whole_and_in_words():
    claim = [
        "a long claim of which nothing is cut off, in dB higher: one, two",
        "less: three",
        "more: one, two",
    ]
    table = pd.DataFrame({"claim": claim, "goal": 1.0, "value": [0.5, 2.0, 1.0], "low": np.nan, "high": 3.0})
    shown = tables.claims(table.assign(met=[False, True, True]))
    assert [group for group, _ in shown.index] == ["one against two"] * 2 + ["three"]
    assert shown.index[0][1] == claim[0].split(":")[0]
    assert shown.data[""].tolist() == ["not met", "met", "met"]
    assert shown.to_html().count("<b>not met</b>") == 1
    twice = pd.concat([table, table], ignore_index=True).assign(met=True)
    assert tables.claims(twice).to_html().count(">met<") == 6  # the same claim, with another goal


def test_shown_tables_have_units_and_words():
    table = pd.DataFrame({"model": ["m"], "snr_db": [1.26], "counts": [True]})
    html = tables.shown(table, 1, counts="reconstructs").to_html()
    assert all(word in html for word in ("SNR [dB]", "reconstructs", ">1.3<", ">yes<"))
    assert "row_heading" not in html
