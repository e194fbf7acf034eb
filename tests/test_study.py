"""Claims of the study and its figure, on values that are set by hand."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from fakes import FakeTrack

from lincae.evaluation.evaluate import evaluate
from lincae.evaluation.protocols import PROTOCOLS, EvaluationConfig
from lincae.evaluation.study import GOALS, Goal, claimed, draw_quality, octave_levels_db, quality, rate_goals
from lincae.interop.models import load


@pytest.fixture(scope="module")
def frame():
    tracks = [FakeTrack(str(i), 2.0, levels=(0.1,) * 4, seed=i) for i in range(3)]
    config = EvaluationConfig(seconds=2.0, chunk_s=2.0)
    model = load("resample-8x")
    exact = evaluate(model, tracks, tuple(PROTOCOLS), config, progress=False)
    worse = exact.assign(model="worse", snr_db=exact.snr_db - 3, mss=exact.mss * 2)
    return pd.concat([exact, worse], ignore_index=True)


def test_claims_by_hand(frame):
    goals = [
        Goal("worse", "rec_snr", "higher by", -2.0, "resample-8x"),
        Goal("resample-8x", "rec_snr", "higher by", 3.0 - 1e-6, "worse"),
        Goal("worse", "rec_mss", "share at most", 1.9, "resample-8x"),
        Goal("resample-8x", "property2_snr", "at least", 60.0),
        Goal("resample-8x", "add_enc", "at most", 0.03),
        Goal("resample-8x", "dec_hom_snr at -1", "at least", 25.0),
        Goal("unknown", "rec_snr", "at least", 0.0),
    ]
    claims = claimed(frame, goals)
    assert claims.met.tolist() == [False, True, False, True, True, True]
    assert claims.value[:3].tolist() == pytest.approx([-3.0, 3.0, 2.0])
    assert claims.low[0] == pytest.approx(-3.0)
    assert claimed(frame, GOALS).empty


def test_goals_of_a_rate_name_its_linear_codecs():
    assert [goal.other for goal in rate_goals({"a": 32.0})] == ["pca-32x", "resample+noise-32x"]


def test_levels_of_octaves():
    levels = octave_levels_db(load("resample-8x"), [FakeTrack("a", 2.0)], [100, 900, 2000, 4000], 2.0)
    assert levels.from_hz.tolist() == [100, 900, 2000]
    assert abs(levels.level_db[0]) < 0.5
    assert levels.level_db[2] < -40


def test_every_model_is_a_point(frame):
    table = quality(frame)
    assert table.model.tolist() == ["resample-8x", "worse"]
    assert torch.tensor(table.drop(columns="model").to_numpy()).isfinite().all()
    figure, axes = plt.subplots(1, 2)
    draw_quality(axes, table, references=["resample-8x"])
    for axis in axes:
        assert [text.get_text().split(" ")[0] for text in axis.texts] == ["resample-8x", "worse"]
    plt.close(figure)
