"""Songs of a soundfont's instruments, where the extra is installed, and what is said where it is not."""

import importlib.util

import numpy as np
import pytest
import torch

from lincae.data import sampled
from lincae.data.sampled import render_sampled_song
from lincae.data.synth import STEMS, render_song
from lincae.data.tracks import tracks, write_synthetic

INSTALLED = all(importlib.util.find_spec(name) for name in ("tinysoundfont", "pretty_midi"))
needs_soundfont = pytest.mark.skipif(not INSTALLED, reason=f"the extra is not installed: {sampled.INSTALL}")


@needs_soundfont
def test_a_song_is_a_function_of_its_seed_with_the_stems_of_the_same_song_by_wavetables():
    stems = render_sampled_song(3, 6.0, 16000)
    assert np.array_equal(stems, render_sampled_song(3, 6.0, 16000))
    composed = render_song(3, 6.0, 16000)
    assert stems.shape == composed.shape
    assert np.array_equal(stems.any(1), composed.any(1))
    assert 0.29 < np.abs(stems.sum(0)).max() <= 0.95
    # They are played at the same times, by other instruments.
    heard = np.abs(composed).max(1) > 0
    assert np.abs(stems - composed)[heard].max() > 0.05


@needs_soundfont
def test_tracks_are_written_once_and_refuse_those_of_wavetables(tmp_path):
    write_synthetic(tmp_path / "own", n_train=0, n_test=1, seconds=2.0, sample_rate=16000, sampled=True)
    (track,) = tracks("sampled", root=tmp_path / "own")
    assert (track.dataset, track.stem_names, track.duration_s) == ("sampled", STEMS, 2.0)
    assert track.stems().shape == (4, 32000)
    assert torch.isfinite(track.stems()).all()

    settings = {"n_train": 0, "n_test": 1, "seconds": 2.0, "sample_rate": 16000}
    write_synthetic(tmp_path / "wavetables", **settings)
    with pytest.raises(ValueError, match="soundfont"):
        write_synthetic(tmp_path / "wavetables", **settings, sampled=True)


@pytest.mark.parametrize("missing", ["tinysoundfont", "pretty_midi"])
def test_a_missing_package_is_named_with_what_to_install(missing, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in (missing, "pretty_midi") else found("json")
    )
    sampled.soundfont.cache_clear()
    sampled.soundfont_hash.cache_clear()
    with pytest.raises(ImportError, match=rf"{missing}.*lincae\[sampled\]"):
        tracks("sampled", root=tmp_path)
    assert not list(tmp_path.iterdir())
    sampled.soundfont.cache_clear()
