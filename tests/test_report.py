"""The linearity report: perfect where the model is linear, bad by the computed amount where it is not."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import Watched, violations
from fakes import RATE, STEMS, DeafDecoder, FakeTrack, Linear, LouderWhenLoud, NoisyDecoder, two_tracks
from notebook_code import defined_in

from lincae.evaluation.evaluate import evaluate
from lincae.evaluation.protocols import EvaluationConfig
from lincae.evaluation.report import (
    CAP_DB,
    CLAIMED,
    COMPARED,
    PROPERTIES,
    SUMMARY,
    Report,
    advantage,
    claims,
    linearity_report,
)
from lincae.evaluation.tables import GREY
from lincae.interop.references import TanhToy

ROOT = Path(__file__).parent.parent
CONFIG = EvaluationConfig(window_s=1.0, overlap_s=0.25, chunk_s=2.0, gains=(-1.0, 0.5, 3.0))
STEM = 0.3  # RMS of each of four stems of noise: the toy is far from linear


def measured(model, tracks=None, config=CONFIG):
    return linearity_report(model, tracks or two_tracks(seconds=2.0), config, progress=False)


@pytest.fixture(scope="module")
def reports():
    loud = two_tracks(seconds=2.0, levels=(STEM,) * 4)
    models = {"stft": Linear(), "tanh": TanhToy(RATE), "deaf": DeafDecoder(), "noisy": NoisyDecoder()}
    return {name: measured(model, loud) for name, model in models.items()}


@pytest.fixture(scope="module")
def joined(reports):
    return Report.join(list(reports.values()))


def values(table):
    return table.set_index("name").value


def test_the_linear_reference_is_perfect(reports):
    number = reports["stft"].linearity().iloc[0]
    assert number.linearity_db == CAP_DB
    assert (number.low, number.high, number.n_tracks, number.n_left_out) == (CAP_DB, CAP_DB, 2, 0)
    assert number.counts
    table = reports["stft"].table()
    assert table.name.tolist() == list(PROPERTIES)
    assert (values(table).drop("swap") == CAP_DB).all()
    assert table.counts.all()
    assert values(table)["swap"] == pytest.approx(-3, abs=0.2)  # noise against other noise: sqrt(2)


def tanh_errors(part, n=400_000):
    """Relative L2 errors of tanh(u) and of tanh(tanh(u)) for normal u, by sampling, as they are defined."""
    rng = np.random.default_rng(0)
    stems = STEM * rng.normal(size=(4, n))
    mix, norm = stems.sum(0), np.linalg.norm
    if part == "enc_additivity":
        return norm(np.tanh(stems).sum(0) - np.tanh(mix)) / norm(np.tanh(mix))
    own = np.tanh(np.tanh(mix))
    return norm(np.tanh(np.tanh(stems).sum(0)) - own) / norm(own)


def test_the_tanh_toy_is_bad_by_the_computed_amount(reports):
    table = reports["tanh"].table().set_index("name")
    for part in ("enc_additivity", "dec_additivity"):
        assert table.error[part] == pytest.approx(tanh_errors(part), rel=0.02)
    assert table.value["enc_polarity"] == table.value["dec_polarity"] == CAP_DB  # tanh is odd
    assert table.value["enc_shift"] == table.value["dec_part_shift"] == CAP_DB  # and memoryless
    assert table.value["one_filter"] < 20
    number = reports["tanh"].linearity().iloc[0]
    parts = table.value[list(SUMMARY)]
    assert number.linearity_db == pytest.approx(parts.mean(), abs=1e-6)
    assert 5 < number.linearity_db < 25


def test_a_decoder_that_ignores_its_latent_does_not_count(reports):
    number = reports["deaf"].linearity().iloc[0]
    assert number.linearity_db > 40
    assert not number.counts
    table = reports["deaf"].table().set_index("name")
    assert not table.counts.any()
    assert table.value["any_map"] < 1


def test_the_floor_is_that_of_the_noise(reports):
    """Two noises differ by sqrt(2) of their level; in cross-fades, a quarter of the track, by less."""
    floor = values(reports["noisy"].table())["floor"]
    signal_to_noise = math.hypot(2 * STEM, NoisyDecoder.level) / NoisyDecoder.level
    faded = 1 - 1 / 4 * 1 / 3
    assert floor == pytest.approx(20 * math.log10(signal_to_noise) - 10 * math.log10(2 * faded), abs=0.1)


def test_without_stems_there_is_no_number(tmp_path):
    tracks = [FakeTrack(str(i), 2.0, ("mixture",), (0.3,), seed=i) for i in range(2)]
    found = measured(Linear(), tracks)
    number = found.linearity().iloc[0]
    assert math.isnan(number.linearity_db)
    assert values(found.table())["enc_homogeneity"] == CAP_DB
    page = found.html(tmp_path / "page.html").read_text()
    assert "additivity and separation need tracks with stems" in page


@pytest.fixture(scope="module")
def published():
    return pd.read_csv(ROOT / "data" / "paper_tables.csv")


@pytest.fixture(scope="module")
def published_linearity():
    names = {"np": np, "pd": pd, "CAP_DB": CAP_DB}
    return defined_in("07_any_autoencoder", "published_linearity", names)["published_linearity"]


LINEARITY_COLUMNS = ("add_dec_mss", "add_dec_snr", "add_enc", "hom_dec_mss", "hom_dec_snr", "hom_enc")
LINEARITY_COLUMNS += tuple(f"{stem}_{m}" for stem in STEMS for m in ("mss", "si_sdr"))


def votes(published, columns):
    """For every pair of models (a, b): in how many columns a is better, and in how many b is."""
    wide = published.pivot_table(index="model", columns="column", values="value", sort=False)[list(columns)]
    wide = wide.dropna()
    better = wide.mul([-1 if c.endswith(("mss", "enc")) else 1 for c in wide.columns])
    return {
        (a, b): (int((better.loc[a] > better.loc[b]).sum()), int((better.loc[a] < better.loc[b]).sum()))
        for a in wide.index
        for b in wide.index
        if a != b
    }


TABLE_1_PARTS = ("enc_additivity", "dec_additivity", "separation")


@pytest.mark.parametrize(("table", "n_models"), [(1, 6), (2, 4)])
def test_the_number_orders_the_published_models_as_the_tables_do(
    published, published_linearity, table, n_models
):
    """Every pair: the majority of the linearity columns decides, spectral distances included. Six models
    stand in Table 1, the four that are no ablations in both."""
    if table == 1:
        columns = [c for c in LINEARITY_COLUMNS if not c.startswith("hom")]
        number = published_linearity(published[published.table == 1], TABLE_1_PARTS)
    else:
        columns = LINEARITY_COLUMNS
        number = published_linearity(published)
    pairs = votes(published, columns)
    assert len(pairs) == n_models * (n_models - 1)
    assert number.notna().sum() == n_models
    for (a, b), (for_a, for_b) in pairs.items():
        assert for_a != for_b
        assert (number[a] > number[b]) == (for_a > for_b), f"{a}, {b}: {for_a} columns to {for_b}"
    assert number.idxmax() == "Lin-CAE"
    parts = [-20 * math.log10(0.69), 0.86, -20 * math.log10(0.60), 1.22, (-0.59 - 0.28 - 1.82 - 1.18) / 4]
    assert published_linearity(published)["Lin-CAE"] == pytest.approx(sum(parts) / 5)  # by hand


def test_reports_join_on_equal_terms(reports):
    stft = reports["stft"]
    elsewhere = Report(reports["noisy"].frame.assign(track="three"), CONFIG)
    otherwise = Report(reports["tanh"].frame, EvaluationConfig(seed=1))
    for joined, named in (
        ([stft, stft], r"different names, one or more, got \['stft', 'stft'\]"),
        ([], "one or more"),
        ([stft, elsewhere], "stft, noisy are about different tracks"),
        ([stft, otherwise], "different configurations"),
    ):
        with pytest.raises(ValueError, match=named):
            Report.join(joined)


def test_figure_shows_every_model(joined):
    figure = joined.figure()
    assert len(figure.axes) == 6
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "stft",
        "tanh",
        "deaf",
        "noisy",
        "decoder",
        "encoder",
        "95 % interval",
        "does not count",
    ]
    assert figure.legends[0].get_lines()[2].get_color() == GREY  # as its marks are
    assert all(axis.lines or axis.collections for axis in figure.axes)


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.rows, self.stack = [], 0, []

    def handle_starttag(self, tag, attributes):
        self.found += [value for key, value in attributes if key in ("src", "href")]
        self.rows += tag == "tr"
        if tag not in ("meta", "img", "link", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def test_the_page_needs_nothing_else(joined, tmp_path):
    named = joined.frame.replace({"model": {"tanh": "<b>tanh & co</b>"}})
    page = Report(named, CONFIG).html(tmp_path / "sub" / "page.html").read_text()
    links = Links()
    links.feed(page)
    assert links.stack == []
    assert [link.partition(",")[0] for link in links.found] == ["data:image/png;base64"]
    assert not re.search(r"https?://|@import|url\(", page)
    assert links.rows == 1 + len(PROPERTIES)
    assert "<b>tanh" not in page
    assert "&lt;b&gt;tanh &amp; co" in page
    assert f"{CAP_DB:.1f} dB" in page
    assert "does not reconstruct" in page  # the deaf decoder


def test_a_browser_shows_any_number_of_models(joined, chromium, tmp_path):
    """On a phone and on a desktop: what is wide scrolls inside, by keys too, and axe-core finds nothing."""
    copies = [joined.frame.assign(model=joined.frame.model + f"/of-a-rather-long-name-{k}") for k in range(3)]
    path = Report(pd.concat(copies, ignore_index=True), CONFIG).html(tmp_path / "page.html")
    for width in (320, 390, 1200):
        shown = Watched(chromium, {"width": width, "height": 844})
        shown.page.goto(path.as_uri())
        assert shown.page.get_by_role("heading", level=1).inner_text() == "How linear is it?"
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
        table = shown.page.get_by_role("region", name="Table of all properties")
        table.focus()
        shown.page.keyboard.press("ArrowRight")
        shown.page.wait_for_function("document.activeElement.scrollLeft > 0")
        assert violations(shown.page) == []
        assert (shown.errors, shown.outside) == ([], [])


def test_advantage_by_hand():
    tracks = [FakeTrack(str(i), 2.0, levels=(0.1,) * 4, seed=i) for i in range(4)]
    protocols = ("reconstruction", "homogeneity", "additivity", "separation")
    plain, linear = LouderWhenLoud(encoder_error=0.4), LouderWhenLoud(encoder_error=0.1)
    plain.name, linear.name = "plain", "linear"
    frame = pd.concat(evaluate(m, tracks, protocols, CONFIG, progress=False) for m in (plain, linear))
    goals = {"encoder additivity error, times lower": 3.0, "reconstruction SNR, dB higher": 0.0}
    goals |= {"reconstruction MSS, ratio at most": 1.05}
    claims = advantage(frame, "linear", "plain", goals)
    claims = claims.set_index(claims.claim.str.split(":").str[0])
    row = claims.loc["encoder additivity error, times lower"]
    expected = (0.4 / 1.4) / (0.1 / 1.1)
    assert (row.goal, row.met) == (3.0, True)
    assert row.value == pytest.approx(expected, rel=1e-3)
    assert row.low == pytest.approx(expected, rel=1e-3)
    assert row.claim.endswith(": linear, plain")
    assert claims.value["reconstruction SNR, dB higher"] == pytest.approx(20 * math.log10(4), rel=1e-3)
    # the distance of a sound that is louder by e: e + log(1 + e)
    ratio = (0.1 + math.log(1.1)) / (0.4 + math.log(1.4))
    assert claims.value["reconstruction MSS, ratio at most"] == pytest.approx(ratio, rel=0.01)
    assert claims.met.all()
    back = advantage(frame, "plain", "linear", goals)
    assert back.value[0] == pytest.approx(1 / expected, rel=1e-3)
    assert not back.met.any()
    with pytest.raises(ValueError, match=r"no rows of \['vae'\]: the frame is about \['linear', 'plain'\]"):
        advantage(frame, "vae", "plain", goals)


def test_claims_by_hand_and_the_goals_of_the_study():
    rows = {"dataset": "d", "track": ["a", "b"] * 2, "model": ["ours"] * 2 + ["other"] * 2}
    frame = pd.DataFrame(rows | {"protocol": "reconstruction", "comparison": "codec"})
    frame = frame.assign(snr_db=[4.0, 6.0, 1.0, 2.0], mss=[1.0, 1.0, 2.0, 3.0])
    goals = pd.DataFrame(
        [
            ("reconstruction SNR, at least", 5.0, "ours", ""),
            ("reconstruction MSS, at most", 2.0, "other", ""),
            ("reconstruction SNR, dB higher", 3.6, "ours", "other"),
        ],
        columns=["claim", "goal", "model", "other"],
    )
    found = claims(frame, goals)
    assert found.value.tolist() == [5.0, 2.5, 3.5]
    assert found.met.tolist() == [True, False, False]
    assert (found.low[2], found.high[2]) == (3.0, 4.0)  # the same tracks are drawn for both
    assert found.claim[2] == "reconstruction SNR, dB higher: ours, other"
    study = pd.read_csv(ROOT / "data" / "study_goals.csv", keep_default_na=False)
    about, how = study.claim.str.split(", ", expand=True).T.to_numpy()
    assert set(about) <= set(CLAIMED)
    assert set(how) <= set(COMPARED)
    assert not study.duplicated().any()
