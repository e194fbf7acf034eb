"""Evaluation over tracks: the frame, resuming, what is encoded how often, and unexpected input."""

import re

import pandas as pd
import pytest
import torch
from fakes import RATE, STEMS, FakeTrack, Linear, Reworked, two_tracks
from notebook_code import defined_in
from pandas.testing import assert_frame_equal

from lincae.evaluation.clap import kad
from lincae.evaluation.evaluate import (
    COLUMNS,
    KNOWN,
    check_stems,
    chunks,
    evaluate,
    evaluate_models,
    read_frame,
)
from lincae.evaluation.protocols import PROTOCOLS, Chunk, EvaluationConfig
from lincae.evaluation.report import Report

CONFIG = EvaluationConfig(window_s=0.5, overlap_s=0.125, chunk_s=1.0, gains=(0.5,))


def run(model, tracks, protocols=tuple(PROTOCOLS), config=CONFIG, store=None):
    return evaluate(model, tracks, protocols, config, store, progress=False)


def test_frame_is_long_and_complete():
    frame = run(Linear(), two_tracks(seconds=2.3))
    assert list(frame.columns) == list(COLUMNS)
    key = ["model", "track", "chunk", "protocol", "stem", "condition", "gain", "comparison"]
    assert not frame.duplicated(key).any()
    assert sorted(frame.chunk.unique()) == [0, 1]  # the rest of 0.3 s belongs to the second chunk
    assert frame.groupby("chunk").start_s.first().tolist() == [0, 1]
    assert set(frame.protocol.str.split("_").str[-1]) == set(PROTOCOLS)
    assert (frame.status == "ok").all()
    measured = frame[["snr_db", "rel_l2", "value"]].notna().any(axis=1)
    assert measured.all()
    with_audio = ~frame.protocol.isin(["latents", "encoder_homogeneity", "encoder_additivity"])
    assert frame.loc[with_audio, ["snr_db", "si_sdr_db", "mss", "mss_log", "rel_l2"]].notna().all(axis=None)


@pytest.mark.parametrize(
    ("seconds", "limit", "expected"),
    [
        (2.49, None, [(0, 16000), (16000, 23840)]),
        (2.5, None, [(0, 16000), (16000, 16000), (32000, 8000)]),
        (0.2, None, [(0, 3200)]),
        (9.0, 1.7, [(0, 16000), (16000, 11200)]),
    ],
)
def test_chunks_cover_the_track(seconds, limit, expected):
    config = EvaluationConfig(**vars(CONFIG) | {"seconds": limit})
    found = chunks(Linear(), [FakeTrack(seconds=seconds)], config)
    assert [(chunk.start, chunk.n_samples) for _, _, chunk in found] == expected


def test_frames_survive_their_file(tmp_path):
    frame = run(Linear(), [FakeTrack("NA"), FakeTrack("null", seed=3)], ["separation", "latents"])
    frame.to_csv(tmp_path / "frame.csv", index=False)
    assert_frame_equal(read_frame(tmp_path / "frame.csv"), frame)
    only_latents = run(Linear(), [FakeTrack()], ["latents"])  # numbers stay numbers where all are missing
    assert only_latents.snr_db.dtype == pd.concat([only_latents, frame]).gain.dtype == float


def test_strangers_are_not_computed_again():
    model, alone = Linear(), Linear()
    protocols = ["additivity", "separation"]
    run(model, [*two_tracks(), FakeTrack("three", seed=3)], protocols)
    run(alone, [FakeTrack()], protocols)
    n_windows = 2 * len(Chunk(model, FakeTrack(), 0, RATE, CONFIG).starts)
    assert model.encoded == 3 * (9 + 5) * n_windows
    assert model.decoded == 3 * alone.decoded - 2 * 5 * n_windows  # a mixture and four stems of each stranger


def test_protocols_share_decodes():
    model = Linear()
    run(model, [FakeTrack(seconds=1.0)])
    # mixture, its floor and swap; gains 0.5 and the random one; sums: 4 + 4 + 1, accompaniments and their
    # floors, estimates, stems, their floors and swaps; upside down: mixture, gains, sum, estimates, stems
    windows = len(Chunk(model, FakeTrack(), 0, RATE, CONFIG).starts)
    assert model.decoded == windows * (3 + 2 + 9 + 8 + 16 + (1 + 2 + 1 + 4 + 4))


class Interrupted(Linear):
    def __init__(self, after):
        super().__init__()
        self.after = after

    def decode(self, z, length=None, seed=0):
        if self.decoded >= self.after:
            raise KeyboardInterrupt
        return super().decode(z, length, seed)


def test_an_interrupted_run_continues_where_it_stopped(tmp_path):
    tracks = two_tracks()
    whole = Linear()
    expected = run(whole, tracks)
    stopped = Interrupted(after=whole.decoded * 5 // 8)  # in the third chunk of four
    with pytest.raises(KeyboardInterrupt):
        run(stopped, tracks, store=tmp_path)
    rest = Linear()
    frame = run(rest, tracks, store=tmp_path)
    assert_frame_equal(frame.reset_index(drop=True), expected, check_dtype=False)
    probe = 2  # decodes of each call
    of_strangers = 2 * 5 * len(Chunk(rest, tracks[1], 0, RATE, CONFIG).starts)
    assert rest.decoded == (whole.decoded + of_strangers) // 2 + probe
    again = Reworked(lambda audio: audio * (1 + 1e-5))  # rounding, as of other threads, is no other model
    assert_frame_equal(run(again, tracks, store=tmp_path), frame)
    assert again.decoded == probe


def test_only_missing_protocols_are_computed(tmp_path):
    tracks = two_tracks()
    run(Linear(), tracks, ["separation"], store=tmp_path)
    second, all_at_once = Linear(), Linear()
    frame = run(second, tracks, store=tmp_path)
    assert_frame_equal(frame.reset_index(drop=True), run(all_at_once, tracks), check_dtype=False)
    assert second.decoded < all_at_once.decoded
    assert set(run(Linear(), tracks, ["separation"], store=tmp_path).protocol) == {"separation"}


class Other(Linear):
    """Another encoder of the same name and fingerprint."""

    def encode(self, audio):
        return 1.1 * super().encode(audio)


class Renamed(Linear):
    """The same to the ear, with other weights."""

    def fingerprint(self):
        return "other weights"


class Tail(FakeTrack):
    """Another sound from 1 s on."""

    def stems(self, sample_rate, start_s, seconds):
        return super().stems(sample_rate, start_s, seconds) * (0.5 if start_s >= 1 else 1.0)


@pytest.mark.parametrize(
    ("model", "tracks", "config"),
    [
        (Other(), two_tracks(), CONFIG),
        (Reworked(lambda audio: audio.clamp(-0.5, 0.5)), two_tracks(), CONFIG),
        (Renamed(), two_tracks(), CONFIG),
        (Linear(), [FakeTrack("one", seed=5), FakeTrack("two", seed=2)], CONFIG),
        (Linear(), [Tail("one", seed=1), FakeTrack("two", seed=2)], CONFIG),
        (Linear(), [FakeTrack("one", seed=1), FakeTrack("two", seed=9)], CONFIG),
        (Linear(), [FakeTrack("one", seed=1, stem_names=STEMS[::-1]), FakeTrack("two", seed=2)], CONFIG),
        (Linear(), two_tracks(), EvaluationConfig(**vars(CONFIG) | {"seed": 1})),
    ],
    ids=["encoder", "decoder", "fingerprint", "sound", "later sound", "stranger", "stems", "settings"],
)
def test_what_has_changed_is_computed_anew(tmp_path, model, tracks, config):
    """Nothing of the store is served for another model, sound, neighbour's sound or configuration."""
    protocols = ["reconstruction", "homogeneity", "separation"]
    run(Linear(), two_tracks(), protocols, store=tmp_path)
    frame = run(model, tracks, protocols, config, tmp_path)
    assert_frame_equal(frame, run(model, tracks, protocols, config))


def test_a_decoder_that_differs_on_differences_alone_is_another(tmp_path):
    def silent_without_bass(audio):
        smoothness = (audio[:, 1:] * audio[:, :-1]).sum() / audio.square().sum()
        return audio * (smoothness > -0.1)

    for model in (Linear(), Reworked(silent_without_bass)):
        run(model, [FakeTrack()], ["latents"], store=tmp_path)
    assert len(list(tmp_path.glob("stft-*"))) == 2


def test_a_damaged_store_is_named(tmp_path):
    run(Linear(), [FakeTrack()], ["latents"], store=tmp_path)
    (path,) = tmp_path.glob("stft-*/model.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        run(Linear(), [FakeTrack()], ["latents"], store=tmp_path)


def test_names_that_no_file_can_hold(tmp_path):
    """Not UTF-8, or longer than a file's name may be: rows come back as they were written."""
    tracks = [FakeTrack("caf\udce9"), FakeTrack("x" * 255, seed=2), FakeTrack("ä" * 127, seed=3)]
    first = run(Linear(), tracks, KNOWN, store=tmp_path)
    again = run(Linear(), tracks, KNOWN, store=tmp_path)
    assert_frame_equal(first, again)
    assert first.track.unique().tolist() == ["caf\\xe9", "x" * 255, "ä" * 127]
    Report(first).html(tmp_path / "page.html")


class Header(FakeTrack):
    """A file whose header states nearly 2^36 samples."""

    duration_s = 2e14

    def stems(self, sample_rate, start_s, seconds):
        return super().stems(sample_rate, start_s, seconds)


METRICS = ["snr_db", "mss", "rel_l2", "si_sdr_db"]


def test_silent_stems_are_left_out_and_counted():
    frame = run(Linear(), [FakeTrack(levels=(0.1, 0.0, 0.1, 0.1))])
    silent = frame[frame.status == "silent"]
    assert set(silent.stem) == {"bass"}
    assert (frame[frame.status == "ok"].stem != "bass").all()
    alone = frame[frame.status == "alone"]  # one audible sound in a sum of two is no sum
    assert set(alone.condition) == {"bass and the rest"}
    assert pd.concat([silent, alone])[METRICS].isna().all(axis=None)
    added = frame[(frame.protocol == "encoder_additivity") & (frame.status == "ok")]
    assert added.rel_l2.notna().all()
    assert set(added.n_sources) == {2, 3, 4}


def test_one_audible_stem_is_neither_added_nor_separated_and_none_is_silent():
    frame = run(Linear(), [FakeTrack(levels=(0.1, 0.0, 0.0, 0.0))])
    sums = frame[frame.protocol.isin(["encoder_additivity", "decoder_additivity", "separation"])]
    assert set(sums.status) == {"alone", "silent"}
    assert sums[METRICS].isna().all(axis=None)
    assert (frame[frame.protocol.isin(["reconstruction", "decoder_homogeneity"])].status == "ok").all()
    assert (run(Linear(), [FakeTrack(levels=(0.0,) * 4)]).status == "silent").all()


def test_a_decoder_that_falls_silent():
    frame = run(Reworked(lambda audio: 0 * audio), [FakeTrack()])
    linear = frame[frame.comparison == "linearity"]
    assert set(linear.status[linear.protocol == "separation"]) == {"silent decode"}
    codec = frame[(frame.comparison == "codec") & (frame.protocol == "reconstruction")]
    assert codec.snr_db.abs().max() < 1e-6


def test_a_missing_stem_is_named_skipped_and_counted(caplog):
    tracks = [FakeTrack("whole"), FakeTrack("instrumental", stem_names=STEMS[:3], seed=4)]
    frame = run(Linear(), tracks)
    assert "track 'instrumental' has no vocals" in caplog.text
    missing = frame[frame.status == "missing"]
    assert missing[["track", "stem"]].drop_duplicates().values.tolist() == [["instrumental", "vocals"]]
    assert len(missing) == 2  # one a chunk
    others = frame[(frame.track == "instrumental") & (frame.comparison == "linearity")]
    assert set(others.n_sources.dropna()) == {2, 3}
    assert others.snr_db.min() > 60


def test_tracks_without_stems_have_no_additivity(caplog):
    tracks = [FakeTrack("a", stem_names=("mixture",)), FakeTrack("b", stem_names=("mixture",), seed=1)]
    frame = run(Linear(), tracks)
    assert "additivity and separation have no rows" in caplog.text
    assert set(frame.protocol) == {"reconstruction", "decoder_homogeneity", "encoder_homogeneity", "latents"}


class Flat(Linear):
    name = "flat"

    def encode(self, audio):
        return super().encode(audio).flatten(1)


MUTE = FakeTrack(stem_names=("mixture",))
SHORT = Reworked(lambda audio: audio[:, 1:], "short")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: run(Linear(), []), "one or more"),
        (lambda: run(Linear(), [FakeTrack(), FakeTrack()]), "different names"),
        (lambda: run(Linear(), [FakeTrack(seconds=0.05)]), "'track' lasts 0.050 s"),
        (lambda: run(Linear(), [FakeTrack()], ["magic"]), "['magic']"),
        (lambda: run(Linear(), [Header()]), "'track' is said to last 2e+14 s, and its sound ends at 2.000 s"),
        (lambda: run(SHORT, [FakeTrack()]), "7999) for length=8000"),
        (lambda: run(SHORT, [FakeTrack()], ["fit"]), "short: decode returned"),
        (lambda: run(Flat(), [FakeTrack()]), "flat: encode returned"),
        (lambda: check_stems([MUTE, FakeTrack(stem_names=("bass",))]), "fake has no track with two stems"),
        (lambda: evaluate_models(["stft", "stft"], [FakeTrack()], ["latents"], CONFIG), "'stft'"),
    ],
)
def test_refusals(call, named):
    check_stems([MUTE, FakeTrack()])
    with pytest.raises(ValueError, match=re.escape(named)):
        call()


def test_kernel_distance_compares_what_it_says():
    def embed(audio, sample_rate):
        assert sample_rate == RATE
        return torch.stack([audio[0, :2], audio[0, 2:4]]).double()

    names = {"pd": pd, "torch": torch, "kad": kad, "chunks": chunks, "MIXTURE": "mixture"}
    kernel_distance = defined_in("02_reconstruction", "kernel_distance", names | {"config": CONFIG})
    kernel_distance = kernel_distance["kernel_distance"]
    noisy = Reworked(lambda audio: audio + 0.05 * torch.cos(torch.arange(audio.shape[1])), "noisy")
    tracks = [FakeTrack(str(i), seconds=1.0, seed=i) for i in range(4)]
    frame = kernel_distance(noisy, tracks, embed).set_index("comparison").value
    cuts = [Chunk(noisy, track, 0, RATE, CONFIG) for track in tracks]
    true = [embed(chunk.signal("mixture")[None], RATE) for chunk in cuts]
    decoded = [embed(chunk.decoded("mixture")[None], RATE) for chunk in cuts]
    assert frame["floor"] == pytest.approx(kad(torch.cat(true[::2]), torch.cat(true[1::2])))
    assert frame["halves"] == pytest.approx(kad(torch.cat(decoded[::2]), torch.cat(decoded[1::2])))
    assert frame["codec"] == pytest.approx(kad(torch.cat(true), torch.cat(decoded)), abs=1e-6)
    with pytest.raises(ValueError, match="needs two or more, got 1"):
        kernel_distance(noisy, tracks[:1], embed)
