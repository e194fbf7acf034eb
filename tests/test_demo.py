"""The demo page: what is in the file, and what a visitor of it does and hears, in a Chromium."""

import base64
import contextlib
import functools
import io
import json
import math
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from browser import NO_OUTPUT, PHONE, ROOT, WIDTHS, Watched, check_in_sight, violations
from fakes import RATE, FakeTrack, Linear, LouderWhenLoud, NoisyDecoder, Placer
from PIL import Image

from lincae.data.synth import STEMS
from lincae.data.tracks import Track, tracks
from lincae.interop.models import load
from lincae.interop.references import TanhToy
from lincae.listening.demo import LOUD_LU, PEAK_DBTP, TRUTH, described, encoded, write_demo
from lincae.listening.demo import Sound as DemoSound
from lincae.listening.loudness import rms_dbfs, true_peak_dbtp
from lincae.machine import generator
from lincae.metrics import snr_db
from lincae.reencoder.pairs import Source

SECONDS = 3.0


class Sweep:
    """A track whose frequency tells the time, 300 to 1500 Hz, the same in both stems at different levels."""

    dataset, sample_rate, stem_names = "fake", RATE, ("drums", "bass")
    from_hz, hz_per_s = 300.0, 400.0

    def __init__(self, name="sweep", level=0.1, seconds=SECONDS):
        self.name, self.level, self.duration_s = name, level, seconds

    def stems(self, sample_rate, start_s=0.0, seconds=None):
        t = torch.arange(round(self.duration_s * sample_rate), dtype=torch.float64) / sample_rate
        sweep = torch.sin(2 * math.pi * (self.from_hz * t + self.hz_per_s * t**2 / 2)).float()
        start = round(start_s * sample_rate)
        stop = None if seconds is None else start + round(seconds * sample_rate)
        return self.level * torch.stack([sweep, 0.5 * sweep])[:, start:stop]


class Named(Linear):
    """The linear reference under another name; `level`: of its decodes."""

    def __init__(self, name, level=1.0):
        super().__init__()
        self.name, self.level = name, level

    def decode(self, z, length=None, seed=0):
        return self.level * super().decode(z, length, seed)


def data(path):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(text.group(1))


def content(path):
    """What the page holds: track name -> row name -> source -> tile."""
    tracks = data(path)["tracks"]
    return {t["name"]: {row["name"]: row["tiles"] for row in t["rows"]} for t in tracks}


def decoded(tile):
    audio, rate = soundfile.read(io.BytesIO(base64.b64decode(tile["audio"])), dtype="float32", always_2d=True)
    return torch.from_numpy(audio.T.copy()), rate


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Models: the linear reference, and one that is ten times too loud."""
    folder = tmp_path_factory.mktemp("demo")
    music = [
        FakeTrack("one", SECONDS, seed=1),
        FakeTrack("two", SECONDS, levels=(0.1, 0.1, 0.0, 0.1), seed=2),
    ]
    return write_demo([Named("linear"), Named("loud", 10.0)], music, folder, seconds=SECONDS), music


def test_levels_are_those_of_the_sounds(written):
    """The paper's rows and more; decoded back, every tile has the level of its waveform at the gain of its
    block: nothing normalises."""
    path, tracks = written
    separated = [f"separated {stem}" for stem in ("drums", "bass", "other", "vocals")]
    for track in tracks:
        stems = track.stems(RATE, 0, SECONDS)
        mix, rows = stems.sum(0), content(path)[track.name]
        truth = {"mix": mix, "sum": mix} | {f"gain {g:g}": g * mix for g in (0.25, 2.0, -1.0)}
        truth |= {f"separated {n}": stem for n, stem in zip(track.stem_names, stems, strict=True)}
        assert list(rows) == ["mix", "sum", "gain 0.25", "gain 2", "gain -1", *separated]
        for name, tiles in rows.items():
            assert list(tiles) == [TRUTH, "linear", "loud"]
            for source, amplitude in ((TRUTH, 1.0), ("linear", 1.0), ("loud", 10.0)):
                audio, rate = decoded(tiles[source])
                assert audio.shape == (1, round(SECONDS * rate))
                expected = rms_dbfs(amplitude * truth[name][None]) + tiles[source]["gain_db"]
                if expected > -80:
                    assert rms_dbfs(audio) == pytest.approx(expected, abs=0.3)
                else:
                    assert rms_dbfs(audio) < -70


def test_numbers_and_one_gain_a_block_that_keeps_the_true_peak_safe(written):
    rows = content(written[0])["one"]
    for stems in (False, True):
        tiles = [t for name in rows if name.startswith("separated") == stems for t in rows[name].values()]
        (gain_db,) = {tile["gain_db"] for tile in tiles}
        loudest = max(tile["numbers"]["true_peak_dbtp"] for tile in tiles)
        assert gain_db == pytest.approx(
            PEAK_DBTP - loudest, abs=0.02
        )  # the loud model peaks beyond full scale
        assert max(true_peak_dbtp(decoded(tile)[0]) for tile in tiles) < 0
    frame = pd.read_csv(written[0].parent / "demo.csv").set_index(["track", "operation", "sound"])
    for name, tiles in rows.items():
        linear, loud = tiles["linear"]["numbers"], tiles["loud"]["numbers"]
        assert linear["snr_db"] > 60
        assert loud["snr_db"] == pytest.approx(-19.08, abs=0.01)  # 20 log10(1 / 9)
        assert loud["louder_lu"] == pytest.approx(20, abs=0.01)
        assert loud["louder_lu"] > LOUD_LU > linear["louder_lu"]
        if name != "mix":
            assert linear["linearity_snr_db"] > 60
            assert loud["linearity_snr_db"] > 60  # ten times too loud, and linear
        assert frame.snr_db["one", name, "loud"] == pytest.approx(loud["snr_db"], abs=0.01)


def test_linearity_is_against_the_same_operation_on_decoded_sound(tmp_path):
    """A decoder that doubles what is loud: the latent scaled by 2 is loud, the scaled decode is not."""
    model = LouderWhenLoud(decoder_error=1.0, threshold=0.15)
    page = write_demo([model], [FakeTrack(levels=(0.05,) * 4)], tmp_path, seconds=2.0)
    rows = content(page)["track"]
    assert rows["gain 2"]["louder"]["numbers"]["linearity_snr_db"] == pytest.approx(0, abs=0.01)
    assert rows["gain 0.25"]["louder"]["numbers"]["linearity_snr_db"] > 60


@pytest.mark.parametrize(("rate", "expected_rate"), [(16000, 16000), (44100, 48000)])
def test_audio_is_opus_without_lag(rate, expected_rate):
    def tone(sample_rate):
        t = torch.arange(2 * sample_rate) / sample_rate
        return 0.3 * torch.sin(2 * math.pi * 440 * t) * torch.hann_window(2 * sample_rate)

    file = io.BytesIO(encoded(DemoSound(tone(rate)[None], rate, {})))
    audio, opus_rate = soundfile.read(file, dtype="float32")
    assert opus_rate == expected_rate
    assert len(audio) == 2 * opus_rate
    assert snr_db(torch.from_numpy(audio)[None], tone(opus_rate)[None]).item() > 20


def test_excerpt_is_where_the_stems_sound_and_silence_has_no_numbers(tmp_path):
    class Late(FakeTrack):
        def stems(self, sample_rate, start_s=0.0, seconds=None):
            stems = super().stems(sample_rate, 0.0, 10.0)
            stems[:, : 6 * sample_rate] = 0
            start = round(start_s * sample_rate)
            return stems[:, start : None if seconds is None else start + round(seconds * sample_rate)]

    late = Late("test_007", 10.0, levels=(0.1, 0.1, 0.0, 0.0))
    page = write_demo([Named("linear")], [late], tmp_path, seconds=2.0)
    assert set(pd.read_csv(tmp_path / "demo.csv").start_s) <= {6.0, 7.0, 8.0}
    assert data(page)["tracks"][0]["title"] == "Song 1: drums, bass"  # by what sounds in it
    numbers = content(page)["test_007"]["separated vocals"]["linear"]["numbers"]
    assert (numbers["snr_db"], numbers["lufs"]) == (None, None)


def test_columns_are_named_by_what_they_are():
    trained = ("study/listen", "desk/lin-cae", "desk/m2l", "desk/no-additivity", "desk/vae")
    names = (*trained, "pca-32x", "resample-32x")
    models = [load(name, "cpu") for name in names]
    columns = described([*models, NoisyDecoder(), TanhToy()])
    assert [column["title"] for column in columns.values()] == [
        TRUTH, "linear (ours)", "linear, the paper's way", "same network, not linear", "scales, does not add",
        "not linear",
        "linear reference: pca-32x", "linear reference: resample-32x", "linear reference: noisy", "tanh",
    ]  # fmt: skip
    assert all(column["about"] for column in columns.values())


def test_a_song_without_stems_has_what_needs_none(tmp_path):
    """The folder that README names: every file is a track with the one stem "mixture"."""
    noise = 0.1 * torch.randn(RATE, generator=generator(1))
    soundfile.write(tmp_path / "song.wav", noise.numpy(), RATE)
    page = write_demo([Named("linear")], tracks(tmp_path), tmp_path / "page", seconds=1.0, gains=[0.5])
    rows = content(page)["song"]
    assert list(rows) == ["mix", "gain 0.5"]
    assert {tile["gain_db"] for tiles in rows.values() for tile in tiles.values()} == {0.0}  # all are quiet
    assert rows["gain 0.5"]["linear"]["numbers"]["linearity_snr_db"] > 60


def test_a_folder_for_a_host(tmp_path):
    """Sounds as files, twice, a card for previews, the page in one file; all equal when written again, also
    where a name is not UTF-8."""
    contents = []
    site = tmp_path / "site"
    two = [Sweep("caf\udce9"), Sweep("two")]
    for folder, music in ((site, two), (site, two[:1]), (tmp_path / "another", two[:1])):
        write_demo([Named("linear")], music, folder, 1.0, hosted=True, url="https://example.org/page/")
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        contents.append({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
    assert contents[1] == contents[2]
    tiles = [tile for tiles in content(site / "index.html")["caf\udce9"].values() for tile in tiles.values()]
    sounds = {f"{tile['audio']}.{kind}" for tile in tiles for kind in ("ogg", "flac")}
    assert set(contents[1]) == {"index.html", "demo.html", "demo.csv", "card.png", *sounds}
    assert b'"og:image" content="https://example.org/page/card.png"' in contents[1]["index.html"]
    assert Image.open(site / "card.png").size == (1200, 630)
    opus, flac = (soundfile.read(site / f"{tiles[1]['audio']}.{kind}")[0] for kind in ("ogg", "flac"))
    assert snr_db(torch.from_numpy(opus)[None], torch.from_numpy(flac)[None]).item() > 20

    for place in ("diary.txt", "sounds/my.wav", "live/notes.txt", "index.html"):
        mine = site / place
        before = mine.read_bytes() if mine.exists() else None
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("not to be published, nor lost")
        with pytest.raises(FileExistsError, match=re.escape(str(mine))):
            write_demo([Named("linear")], two, site, 1.0, hosted=True)
        assert mine.read_text() == "not to be published, nor lost"
        assert (site / sorted(sounds)[0]).is_file()
        mine.unlink() if before is None else mine.write_bytes(before)
    write_demo([Named("linear")], two, site, 1.0, hosted=True)


CLIP, MUSDB = (
    Track("Falcon", dataset, ("drums",), RATE, 1.0, lambda start, seconds: torch.zeros(1, RATE))
    for dataset in ("clip", "musdb")
)
REAL = Source("Falcon", lambda rate: torch.zeros(2, rate), "clip")
MONO = Source("m", lambda rate: torch.zeros(1, rate))


@pytest.mark.parametrize(
    ("models", "music", "options", "named"),
    [
        ("", "t", {}, r"model.* \[\]"),
        ("a", "", {}, r"track.* \[\]"),
        ("aa", "t", {}, r"models \['a', 'a'\]"),
        ("a", "tt", {}, r"tracks \['t', 't'\]"),
        ("a", "t", {"gains": [math.inf]}, r"gains .* \(inf,\)"),
        ("a", [CLIP], {}, r"'Falcon' is CC BY-NC-SA 3\.0"),
        ("a", [MUSDB], {}, "'Falcon' is of MUSDB18, .* academic use only"),
        ("a", "t", {"stereo": [REAL]}, r"'Falcon' is CC BY-NC-SA 3\.0"),
        ("a", "t", {"modules": {"b": Placer(Named("b"))}}, "'b'"),
        ("a", "t", {"modules": {"a": Placer(Named("a"), task="bandwidth")}}, "a .* 'bandwidth'"),
        ("a", "t", {"modules": {"a": Placer(Named("a"))}, "stereo": [MONO]}, r"m: .* \(2, T\)"),
        ("a", "t", {"modules": {"a": Placer(Linear())}}, "another model: stft .*, not of a "),
    ],
)
def test_what_cannot_be_a_page_is_named(tmp_path, models, music, options, named):
    tracks = [FakeTrack(name) for name in music] if isinstance(music, str) else music
    with pytest.raises(ValueError, match=named):
        write_demo([Named(name) for name in models], tracks, tmp_path / "page", **options)
    assert not (tmp_path / "page").exists()


def off_centre(rate):
    """Three seconds of noise, 6 dB louder on the left, with a side of its own."""
    mid, side = 0.1 * torch.randn(2, 3 * rate, generator=generator(3))
    return torch.stack([2 * mid + side, mid - side])


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """Two models, the first with a module; two seconds of a source. The page, the module and the truth."""
    folder, module = tmp_path_factory.mktemp("placed"), Placer(Named("linear"))
    models, tracks = [Named("linear"), Named("loud", 10.0)], [FakeTrack("one", seed=1), FakeTrack("two")]
    page = write_demo(
        models, tracks, folder, seconds=2.0, gains=(0.5, 2.0), seed=4, modules={"linear": module},
        stereo=[Source("three", off_centre)],
    )  # fmt: skip
    return page, module, off_centre(RATE)[:, : 2 * RATE]


def test_stereo_sounds_are_those_of_the_module(placed):
    """Each channel at its level: the truth, and (1 + p) and (1 - p) of mono for a module that is a gain p."""
    page, module, truth = placed
    mono, rows = truth.mean(0, keepdim=True), content(page)["three in stereo"]
    assert list(rows) == ["mono", "stereo", "oracle c", "random c"]
    assert all(list(tiles) == [TRUTH, "linear"] for tiles in rows.values())
    oracle = torch.tanh(module.oracle(Named("linear").encode(truth)[None])[0, 0]).item()
    drawn = module.place(0, 4)
    assert abs(oracle - drawn) > 0.1
    expected = {"mono": mono, "stereo": truth}
    for name, p in (("oracle c", oracle), ("random c", drawn)):
        expected[name] = torch.tensor([[1 + p], [1 - p]]) * mono
        numbers = rows[name]["linear"]["numbers"]
        assert numbers["balance_db"] == pytest.approx(20 * math.log10((1 + p) / (1 - p)), abs=0.02)
        assert numbers["side_db"] == pytest.approx(20 * math.log10(abs(p)), abs=0.02)
    (gain_db,) = {tile["gain_db"] for tiles in rows.values() for tile in tiles.values()}
    for name, tiles in rows.items():
        for source, tile in tiles.items():
            audio, _ = decoded(tile)
            should = expected[name] if source != TRUTH or name == "mono" else truth
            assert audio.shape == should.shape
            for channel, wanted in zip(audio, should, strict=True):
                assert rms_dbfs(channel) == pytest.approx(rms_dbfs(wanted) + gain_db, abs=0.3)
    assert rows["stereo"]["linear"]["numbers"]["snr_db"] > 60
    of_oracle = snr_db(expected["oracle c"], truth).mean().item()
    assert rows["oracle c"]["linear"]["numbers"]["snr_db"] == pytest.approx(of_oracle, abs=0.02)
    assert "snr_db" not in rows["random c"]["linear"]["numbers"]  # of another place than the truth's
    assert rows["mono"]["linear"]["numbers"]["balance_db"] == 0
    assert rows["mono"][TRUTH]["numbers"]["side_db"] is None


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    models = [Named("model A"), NoisyDecoder()]
    tracks = [Sweep(), Sweep("short", 0.2, seconds=2.0)]
    return write_demo(models, tracks, tmp_path_factory.mktemp("sweeps"), seconds=SECONDS)


class DemoPage(Watched):
    """What a visitor of the demo page does and hears."""

    clock = "[window.demo.position(), window.demo.context.currentTime]"

    def __init__(self, chromium, address, viewport=None):
        super().__init__(chromium, viewport)
        self.page.goto(address)

    def tile(self, row, source):
        return self.page.locator(f'.tile[data-row="{row}"][data-source="{source}"]')

    def ask(self, expression):
        return self.page.evaluate(expression)

    def shows_a_row(self):
        """The first row is above the player, which is in sight."""
        row, player = (self.page.locator(css).first.bounding_box() for css in (".row", "#player"))
        return row["y"] + row["height"] < player["y"] < self.page.viewport_size["height"]

    def play(self, row, source):
        self.tile(row, source).click()
        self.page.wait_for_function("window.demo.playing && window.demo.position() > 0.1")

    def chosen(self):
        """Row and source of the tile that is pressed."""
        tile = self.page.locator('.tile[aria-pressed="true"]')
        return int(tile.get_attribute("data-row")), tile.get_attribute("data-source")

    def record(self):
        """From now on keep what leaves the page, sample by sample, on the clock of the audio."""
        self.page.evaluate(RECORD)

    def heard(self):
        """Rows of a time on the audio clock in seconds, and where in the sweep the sound was then."""
        record, rate = self.ask("[window.record, window.demo.context.sampleRate]")
        times = [(first + np.arange(len(samples))) / rate for first, samples in record]
        return positions(np.concatenate(times), np.concatenate([samples for _, samples in record]))

    def heard_apart(self, seconds=SECONDS):
        """How far the sounds since `record` were from where the page was."""
        position, at = self.ask(self.clock)
        heard = self.heard()
        assert len(heard) > 2
        return max(apart(place, position + t - at, seconds) for t, place in heard)


RECORD = """async () => {
  const { analyser, context } = window.demo;
  const code = `registerProcessor("recorder", class extends AudioWorkletProcessor {
    process([[samples]]) {
      if (samples) this.port.postMessage([currentFrame, Array.from(samples)]);
      return true;
    }
  })`;
  await context.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  const recorder = new AudioWorkletNode(context, "recorder");
  window.record = [];
  recorder.port.onmessage = ({ data }) => window.record.push(data);
  analyser.connect(recorder);
}"""


def positions(times, samples, window=1600):
    """Where in the sweep the sound is, by its frequency, in the middle of windows that hold one sound alone:
    those in which a switch or the turn of the loop falls are left out, their frequency is not one line."""
    found = []
    for start in range(0, len(samples) - window, window // 2):
        x, t = samples[start : start + window], times[start : start + window]
        gap = t[-1] - t[0] > 1.001 * (window - 1) * (t[1] - t[0])  # a busy machine skips blocks
        if gap or np.sqrt(np.mean(x**2)) < 1e-3:
            continue
        up = np.flatnonzero((x[:-1] < 0) & (x[1:] >= 0))
        crossings = t[up] - x[up] / (x[up + 1] - x[up]) * (t[1] - t[0])
        if len(crossings) < 6:
            continue
        periods = np.diff(crossings)
        hz, middle = 1 / periods, (crossings[1:] + crossings[:-1]) / 2
        slope, height = np.polyfit(middle - middle.mean(), hz, 1)
        residual = np.abs(hz - height - slope * (middle - middle.mean())).max()
        if residual < 8:
            found.append((middle.mean(), (height - Sweep.from_hz) / Sweep.hz_per_s))
    return np.array(found)


@contextlib.contextmanager
def served(folder):
    """A folder on this machine: a file may not load other files, nor the worklet that records."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


@pytest.fixture(scope="module")
def address(sweeps):
    with served(sweeps.parent) as address:
        yield address


@pytest.fixture
def visit(chromium):
    """Opens a page; at the end there was no error, and no other host was asked."""
    visits = []

    def open_page(address, viewport=None):
        visits.append(DemoPage(chromium, address, viewport))
        return visits[-1]

    yield open_page
    for visited in visits:
        assert visited.errors == []
        assert visited.outside == []
        visited.context.close()


@pytest.fixture
def page(visit, address):
    return visit(address)


PEAK = """() => {
  const samples = new Float32Array(2048);
  window.demo.analyser.getFloatTimeDomainData(samples);
  return Math.max(...samples.map(Math.abs));
}"""


def apart(a, b, seconds=SECONDS):
    return min((a - b) % seconds, (b - a) % seconds)


def test_switching_keeps_the_position_of_the_sound(page):
    """Within 20 ms, by the frequency of all that is heard, from source to source and from row to row."""
    page.play(0, TRUTH)
    page.record()
    for row, source in ((0, "model A"), (0, "noisy"), (1, TRUTH), (3, "model A"), (4, "model A"), (0, TRUTH)):
        before = page.ask(page.clock)
        page.tile(row, source).click()
        page.page.wait_for_timeout(300)
        after = page.ask(page.clock)
        assert apart(after[0] - before[0], after[1] - before[1]) < 0.02
        assert page.chosen() == (row, source)
    assert page.heard_apart() < 0.02


def test_loop(page):
    page.play(0, "model A")
    page.record()
    page.page.wait_for_function("window.demo.position() > 2.5")
    page.page.wait_for_function("window.demo.position() < 1 && window.demo.position() > 0.3")
    assert page.heard()[:, 1].max() > 2
    assert page.heard_apart() < 0.03
    assert page.ask("window.demo.playing")
    page.page.uncheck("#loop")  # the round that runs is played to its end
    page.page.wait_for_function("!window.demo.playing", timeout=10_000)
    assert page.heard()[-1, 1] > SECONDS - 0.3
    assert page.ask("window.demo.position()") == 0


def test_level_heard_is_the_level_of_the_file(page):
    """Buffers are the file's samples, and what leaves the page is the sweep at the volume that is shown."""
    rms = """async () => { const buffer = await window.demo.buffer(window.demo.current());
      const x = buffer.getChannelData(0); return Math.sqrt(x.reduce((s, v) => s + v * v, 0) / x.length); }"""
    for row, amplitude in ((0, 0.15), (2, 0.25 * 0.15), (4, 0.05)):
        for source in (TRUTH, "model A"):
            page.play(row, source)
            assert page.ask(rms) == pytest.approx(amplitude / math.sqrt(2), rel=0.03)
            page.page.wait_for_timeout(100)
            assert page.ask(PEAK) == pytest.approx(amplitude * 10 ** (-9 / 20), rel=0.1)
            page.page.keyboard.press("Escape")


def test_keys_and_a_click_on_the_spectrogram(page):
    press = page.page.keyboard.press
    press("Space")
    page.page.wait_for_function("window.demo.playing")
    for key, row, source in (
        ("d", 0, "model A"), ("2", 0, "model A"), ("3", 0, "noisy"), ("d", 0, TRUTH),
        ("a", 0, "noisy"), ("s", 1, "noisy"), ("w", 0, "noisy"), ("w", 6, "noisy"),
    ):  # fmt: skip
        press(key)
        assert page.chosen() == (row, source)
    press("l")
    assert not page.page.is_checked("#loop")
    press("-")
    assert page.page.inner_text("#level") == "−12 dB"
    press("Space")
    page.page.wait_for_function("!window.demo.playing")
    at = page.ask("window.demo.position()")
    press(".")
    assert page.ask("window.demo.position()") == pytest.approx(min(at + 1, SECONDS - 0.01), abs=0.05)
    page.play(2, TRUTH)
    page.page.click("#stop")
    assert page.ask("[window.demo.playing, window.demo.position(), window.demo.voice]") == [False, 0, None]
    page.page.wait_for_timeout(200)
    assert page.ask(PEAK) < 1e-4
    assert page.page.inner_text("#play").endswith("Play")

    box = page.page.locator("#picture").bounding_box()
    page.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    assert page.ask("window.demo.position()") == pytest.approx(SECONDS / 2, abs=0.02)
    cursor = page.page.locator("#picture .cursor").bounding_box()
    assert cursor["x"] == pytest.approx(box["x"] + box["width"] / 2, abs=3)


def test_another_track(page, sweeps):
    """From its start, with its own length, spectrogram and numbers, where row and column stay the same."""
    page.play(2, "model A")
    page.page.get_by_role("tab").nth(1).click()
    page.page.wait_for_function("window.demo.playing && window.demo.position() > 0.2")
    page.record()
    page.page.wait_for_timeout(500)
    assert page.heard_apart(2.0) < 0.02
    assert "2.0" in page.page.inner_text("#time")
    tile = content(sweeps)["short"]["gain 0.25"]["model A"]
    shown = page.page.inner_text("#numbers").replace("−", "-")
    for name in ("snr_db", "si_sdr_db", "linearity_snr_db", "lufs", "true_peak_dbtp"):
        assert f"{tile['numbers'][name]:.1f}" in shown
    assert page.page.locator("#picture img").get_attribute("src").partition(",")[2] == tile["image"]


def test_from_disk(visit, written):
    """Opened as a file it plays and asks nobody for anything; what is loud is marked."""
    page = visit(written[0].as_uri())
    page.play(1, "linear")
    assert page.ask(PEAK) > 0.01
    assert {address.partition(":")[0] for address in page.addresses} <= {"file", "data", "blob"}
    assert page.page.locator(".tile .loud").all_text_contents() == ["loud: +20 LU"] * 9
    assert "safety gain −" in page.page.inner_text("#board")
    assert "Turn the volume down first" in page.page.inner_text(".warning")
    assert f"{written[0].stat().st_size / 1e6:.1f} MB" in page.page.inner_text("footer")


def test_the_stereo_section_is_heard_in_both_channels(visit, placed):
    page = visit(placed[0].as_uri())
    page.page.get_by_role("tab", name="three in stereo").click()
    assert "notebook 10 measures" in page.page.inner_text("#board")
    assert page.page.locator(".tile").count() == 8
    page.play(3, "linear")
    channels = """async () => { const buffer = await window.demo.buffer(window.demo.current());
      return [0, 1].map(k => Math.hypot(...buffer.getChannelData(k))); }"""
    left, right = page.ask(channels)
    balance_db = content(placed[0])["three in stereo"]["random c"]["linear"]["numbers"]["balance_db"]
    assert 20 * math.log10(left / right) == pytest.approx(balance_db, abs=0.3)
    shown = page.page.inner_text("#numbers").replace("−", "-")
    assert f"Left - right\t{balance_db:.1f} dB" in shown
    tile = page.tile(3, "linear").inner_text().replace("−", "-")
    assert f"left - right {balance_db:.1f} dB" in tile


@pytest.mark.parametrize("viewport", WIDTHS, ids=lambda viewport: f"{viewport['width']}px")
def test_anybody_can_use_it(visit, placed, viewport):
    """By axe-core, by keys alone, and at first sight; nothing that has the focus is covered."""
    page = visit(placed[0].as_uri(), viewport)
    if viewport["width"] >= 390:
        assert page.shows_a_row()
    press = page.page.keyboard.press
    page.page.get_by_role("tab").first.focus()
    for key, chosen in (("ArrowRight", "two"), ("End", "three in stereo"), ("ArrowRight", "one")):
        press(key)
        assert page.page.locator(":focus").inner_text() == chosen
        assert page.page.locator('[role="tab"][aria-selected="true"]').inner_text() == chosen
        assert page.ask("document.documentElement.scrollWidth") <= viewport["width"]
        page.ask("document.querySelectorAll(':is(main, footer) details').forEach(d => { d.open = true; })")
        if chosen != "two":
            assert violations(page.page) == []
    tiles = page.page.locator(".tile").count()
    seen = 0
    for _ in range(tiles + 6):
        box = page.ask(COVERED)
        if box:
            seen += 1
            assert box["ceiling"] <= box["top"] + 1
            assert box["bottom"] <= box["floor"] + 1
        press("Tab")
    assert seen == tiles


def test_the_committed_page_at_first_sight(visit):
    """On a phone a row is in sight; rows are those of the paper's page, other multiples are folded away."""
    page = visit((ROOT / "figures" / "demo" / "index.html").as_uri(), PHONE)
    assert page.shows_a_row()
    separated = [f"Separated {stem}" for stem in STEMS]
    rows = page.page.locator("#board > .row h2").all_text_contents()
    assert rows == ["Autoencoded mix", "Latent addition", "Scaled by 0.25", *separated]
    assert page.page.locator(".fold .row h2").all_text_contents() == ["Scaled by 2", "Polarity inverted"]
    assert not page.page.locator(".fold .row").first.is_visible()


COVERED = """() => {
  const place = (node) => node.getBoundingClientRect(), tile = document.activeElement;
  const floor = place(document.querySelector("#player")).top;
  const ceiling = place(document.querySelector(".heads")).bottom;
  return tile.matches(".tile") ? { top: place(tile).top, bottom: place(tile).bottom, floor, ceiling } : null;
}"""


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (NO_OUTPUT["no audio"], "no sound output"),
        (NO_OUTPUT["no device"], "loudspeaker"),
        ("BaseAudioContext.prototype.decodeAudioData = async () => { throw new Error('no'); }", "Ogg Opus"),
    ],
    ids=["no audio", "no device", "no opus"],
)  # fmt: skip
def test_a_browser_without_sound_is_told_so(visit, sweeps, without, said):
    page = visit("about:blank")
    page.page.add_init_script(without)
    page.page.goto(sweeps.as_uri())
    page.tile(0, TRUTH).click()
    page.page.wait_for_function(f"document.querySelector('#said').textContent.includes('{said}')")
    assert not page.ask("window.demo.playing")
    check_in_sight(page.page, page.page.locator("#said"))


def test_a_hosted_page_plays_opus_or_flac_and_says_what_is_missing(visit, tmp_path):
    folder = tmp_path / "site"
    write_demo([Named("model A")], [Sweep()], folder, seconds=SECONDS, hosted=True)
    with served(folder) as address:
        page = visit(address)
        page.play(1, "model A")
        asked = [place.rpartition(".")[2] for place in page.addresses if "/sounds/" in place]
        assert asked == ["ogg"]
        page.page.evaluate("""() => {
          const decode = BaseAudioContext.prototype.decodeAudioData;
          BaseAudioContext.prototype.decodeAudioData = async function (bytes) {
            if (new TextDecoder().decode(bytes.slice(0, 4)) === "OggS") throw new Error("as in Safari 17");
            return decode.call(this, bytes);
          }; }""")
        with page.page.expect_response(lambda answer: answer.url.endswith(".flac")):
            page.tile(2, "model A").click()
        page.page.wait_for_function("window.demo.playing")
        assert page.page.inner_text("#said") == ""
        (folder / "sounds").rename(folder / "elsewhere")
        page.tile(0, TRUTH).click()
        page.page.wait_for_function("document.querySelector('#said').textContent.includes('(404)')")
        page.errors.clear()
    page = visit((folder / "index.html").as_uri())
    page.tile(0, TRUTH).click()
    page.page.wait_for_function("document.querySelector('#said').textContent.includes('open demo.html')")
    page.errors.clear()
