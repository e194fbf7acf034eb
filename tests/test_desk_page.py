"""The page of `lincae desk`, driven in a Chromium, against the same mix computed here."""

import base64
import contextlib
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from browser import NO_OUTPUT, WIDTHS, Watched, browser, check_in_sight, served, violations
from fakes import FakeTrack, NoisyDecoder

import lincae
from lincae.data.tracks import tracks, write_synthetic
from lincae.listening import asset
from lincae.listening.desk import Desk
from lincae.listening.loudness import loudness_lufs, rms_dbfs
from lincae.listening.mixer import Mixer, Strip
from lincae.metrics import snr_db
from lincae.reencoder.module import ReEncoder, stereo_modules

pytestmark = pytest.mark.page

SECONDS = 2.0
STILL = 'document.querySelector(".lc-progress").style.visibility === "hidden"'
CLOCK = "[player.position(), player.clock, player.playing]"


class DeskPage(Watched):
    """What a visitor of the desk does and hears."""

    player = 'document.querySelector(".lincae-desk").player'

    def open(self, address: str):
        self.page.goto(address, timeout=240_000)
        self.page.wait_for_selector(".lincae-desk", timeout=240_000)
        self.page.wait_for_function(f"{self.player}.sounds.decoded && {STILL}", timeout=240_000)
        return self

    def ask(self, expression: str):
        return self.page.evaluate(f"() => {{ const player = {self.player}; return {expression}; }}")

    @contextlib.contextmanager
    def change(self):
        """Wait, after what is done inside, until the new mix is decoded and compared."""
        before = self.ask("player.swaps")
        yield
        self.settle(before)

    def settle(self, before: int = -1) -> None:
        until, still_since = time.monotonic() + 240, time.monotonic()
        while self.ask("player.swaps") == before or time.monotonic() - still_since < 0.7:
            assert time.monotonic() < until, self.page.inner_text(".lc-status")
            if not self.page.evaluate(STILL):
                still_since = time.monotonic()
            time.sleep(0.05)

    def until(self, holds) -> None:
        """Wait for a mix of which `holds()`: several presses are several changes.
        Returns after four minutes at the latest, for the assertion to say what is wrong."""
        end = time.monotonic() + 240
        while not holds() and time.monotonic() < end:
            time.sleep(0.2)

    def samples(self, key: str = "latent") -> torch.Tensor:
        return torch.tensor(self.ask(f"player.sounds.{key}.channels.map(c => Array.from(c))"))

    def fader(self, index: int):
        return self.page.locator(".lc-slider").nth(index)

    def push(self, index: int, key: str, times: int):
        self.fader(index).focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def press(self, css: str, index: int = 0):
        self.page.locator(css).nth(index).click()

    def choose(self, select: str, option: str):
        self.page.locator(f"select.lc-{select}").select_option(option)


# ---------------------------------------------------------------- without a kernel

# The desk's own module, with a model that keeps what is set: what is moved is heard by no kernel.
ALONE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Latent mixing desk</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>/*CSS*/</style></head><body><main><h1>Latent mixing desk</h1><div id="desk"></div></main>
<script type="application/json" id="state">/*STATE*/</script><script type="module">/*CODE*/
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const revived = (_, value) => (value?.base64 ? bytes(value.base64) : value);
const state = JSON.parse(document.getElementById("state").textContent, revived);
const heard = {};
window.model = {
  get: (name) => state[name], save_changes() {}, send() {}, off() {},
  set(name, value) { state[name] = value; for (const hear of heard[`change:${name}`] ?? []) hear(); },
  on(name, hear) { (heard[name] ??= []).push(hear); },
};
render({ model, el: document.getElementById("desk") });
</script></body></html>"""


@pytest.fixture(scope="module")
def address_alone(tmp_path_factory):
    """A page with a desk of four stems, the last one silent, that no kernel answers."""
    song = FakeTrack("A song", 4.0, levels=(0.2, 0.1, 0.05, 0.0))
    with ThreadPoolExecutor() as thread:  # Playwright's event loop runs in this one
        desk = thread.submit(Desk, [NoisyDecoder(), "desk/m2l"], [song], seconds=3.0, device="cpu").result()
    shown = [name for name, trait in type(desk).class_traits(sync=True).items() if trait.this_class is Desk]
    state = {name: getattr(desk, name) for name in shown}
    text = json.dumps(state, default=lambda value: {"base64": base64.b64encode(value).decode()})
    code = "\n".join(asset(name) for name in ("parts.js", "strip.js", "player.js", "desk.js"))
    page = ALONE.replace("/*CSS*/", asset("desk.css")).replace("/*STATE*/", text.replace("</", "<\\/"))
    path = tmp_path_factory.mktemp("alone") / "desk.html"
    path.write_text(page.replace("/*CODE*/", code.replace("export default { render };", "")))
    return path.as_uri()


@pytest.fixture
def alone(chromium, address_alone):
    visit = DeskPage(chromium)
    visit.page.goto(address_alone)
    yield visit
    assert visit.errors == []
    visit.context.close()


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


def test_faders(alone):
    """A detent at 0 dB, double click, wheel, keys, and levels that are typed."""
    fader, text = alone.fader(1), alone.page.locator(".lc-db").nth(1)

    def level():
        return alone.page.evaluate("model.get('strips')[1].gain_db")

    for key, expected in (
        ("ArrowDown", -0.5), ("PageDown", -3.5), ("Shift+ArrowUp", -0.5),
        ("Home", None), ("ArrowUp", -59.5), ("End", 12),
    ):  # fmt: skip
        fader.press(key)
        assert level() == expected
    fader.dblclick()
    assert level() == 0
    fader.hover()
    alone.page.mouse.wheel(0, 120)
    alone.page.wait_for_function("model.get('strips')[1].gain_db === -0.5")
    for position, expected in ((765, 0), (800, 2.5)):  # the first is held by the detent
        alone.page.evaluate(
            "([node, at]) => { node.value = at; node.dispatchEvent(new Event('input')); }",
            [fader.element_handle(), position],
        )
        assert level() == pytest.approx(expected, abs=0.5)
    for typed, expected in (("−6.5", -6.5), ("-20 dB", -20), ("-inf", None), ("99", 12), ("loud", 12)):
        text.fill(typed)
        text.press("Enter")
        assert level() == expected
    assert text.input_value() == "12.0"
    assert fader.get_attribute("aria-valuetext") == "12.0 dB"
    alone.page.locator(".lc-slider").last.press("Home")
    assert alone.page.evaluate("model.get('master_db')") is None
    alone.page.get_by_role("button", name="Reset faders").click()
    assert (level(), alone.page.evaluate("model.get('master_db')")) == (0, 0)


def test_space_plays_and_meters_have_numbers(alone):
    levels = alone.page.locator(".lc-level").all_inner_texts()
    assert (levels[0], levels[3]) == ("−14.0", "−∞")
    assert "vocals is silent here" in alone.page.inner_text(".lc-status")
    alone.fader(0).press("Space")
    alone.page.wait_for_function(f"{alone.player}.playing")
    alone.page.locator(".lc-db").first.press("Space")
    assert alone.ask("player.playing")
    alone.page.locator(".lc-db").first.blur()
    alone.page.keyboard.press("Space")
    alone.page.wait_for_function(f"!{alone.player}.playing")


@pytest.mark.parametrize("refusal", NO_OUTPUT.values(), ids=list(NO_OUTPUT))
def test_a_browser_that_refuses_sound_is_said_to(chromium, address_alone, refusal):
    visit = DeskPage(chromium)
    visit.page.add_init_script(refusal)
    visit.page.goto(address_alone)
    visit.press(".lc-play")
    refused = visit.page.get_by_text("The browser gives no sound output")
    refused.wait_for()
    assert not visit.ask("player.playing")
    assert visit.page.locator(".lc-play").inner_text().endswith("Play")
    check_in_sight(visit.page, refused)
    assert visit.errors == []
    visit.context.close()


def test_a_kernel_that_is_gone_is_said_in_sight(chromium, address_alone):
    visit = DeskPage(chromium)
    page = visit.page
    page.clock.install()
    page.goto(address_alone)
    visit.push(0, "ArrowDown", 1)
    page.clock.fast_forward(11_000)
    lost = page.get_by_text("No answer from the kernel")
    lost.wait_for()
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    check_in_sight(page, lost)
    assert visit.errors == []
    visit.context.close()


@pytest.mark.parametrize("viewport", WIDTHS, ids=lambda viewport: f"{viewport['width']}px")
def test_it_fits_and_anybody_can_use_it(alone, viewport):
    """Transport on top, the master in sight wherever the strips are scrolled to, nothing for axe-core."""
    page = alone.page
    page.set_viewport_size(viewport)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    play, first = (page.locator(css).first.bounding_box() for css in (".lc-play", ".lc-strip"))
    assert play["y"] + play["height"] <= first["y"]
    if viewport["width"] < 700:
        assert play["y"] < page.locator(".lc-models").bounding_box()["y"]
    for scroll in (0, 1000):
        page.locator(".lc-strips").evaluate("(strips, left) => { strips.scrollLeft = left; }", scroll)
        master = page.locator(".lc-master").bounding_box()
        assert 0 <= master["x"] <= viewport["width"] - master["width"]
    controls = page.locator(".lincae-desk :is(button, input, select):visible").all()
    boxes = [control.bounding_box() for control in controls]
    assert min(min(box["width"], box["height"]) for box in boxes) >= 24
    page.locator(".lc-own").evaluate("own => { own.open = true; }")
    assert violations(page) == []


# ---------------------------------------------------------------- by Voila


@pytest.fixture(scope="module")
def track(tmp_path_factory):
    root = write_synthetic(tmp_path_factory.mktemp("data") / "songs", 0, 1, 4.0, 16000, seed=3, workers=1)
    (song,) = tracks(root / "test")
    return root / "test", song


@pytest.fixture(scope="module")
def page(chromium, track, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    kernels = {"cull_idle_timeout": 8, "cull_interval": 2}
    (folder / "voila.json").write_text(json.dumps({"MappingKernelManager": kernels}))
    words = ["desk/lin-cae", "stft", "no-such-model", "--data", str(track[0]), "--device", "cpu"]
    words += ["--seconds", str(SECONDS)]
    with served(words, folder / "log", JUPYTER_CONFIG_PATH=str(folder)) as (address, _):
        yield chromium, address, folder / "log"


@pytest.fixture(scope="module")
def visit(page):
    return DeskPage(page[0]).open(page[1])


@pytest.fixture(scope="module")
def mixer(track):
    model = lincae.load("desk/lin-cae", "cpu")
    return Mixer(model, track[1].stems(model.sample_rate, 0, SECONDS), track[1].stem_names)


@pytest.fixture
def fresh(visit):
    """The desk as it opens, whatever the test before did."""
    visit.page.check(".lc-loop")
    visit.page.get_by_role("radio", name="latent mix").click()
    if visit.ask("player.playing"):
        visit.press(".lc-play")
    if visit.page.locator("select.lc-models").input_value() != "desk/lin-cae":
        with visit.change():
            visit.choose("models", "desk/lin-cae")
    visit.page.get_by_role("button", name="Reset faders").click()
    visit.settle()
    return visit


def loud_stem(mixer) -> int:
    return int(mixer.stems.square().mean(1).argmax())


def test_it_opens_with_the_mix_of_the_stems(fresh, mixer):
    strips = [Strip()] * len(mixer.names)
    for key in ("latent", "waveform", "decoded"):
        assert snr_db(fresh.samples(key), getattr(mixer, f"{key}_mix")(strips)).item() > 60
    assert fresh.page.locator(".lc-strip").count() == len(mixer.names) + 1


def test_fader(fresh, mixer):
    """24 presses of half a dB: the level falls as that of the same mix here does, within 0.5 dB."""
    index = loud_stem(mixer)
    strips = [Strip(solo=k == index) for k in range(len(mixer.names))]
    with fresh.change():
        fresh.press(".lc-solo", index)
    before = fresh.samples()
    moved = [Strip(-12.0, solo=True) if k == index else strip for k, strip in enumerate(strips)]
    fallen = rms_dbfs(mixer.latent_mix(moved)) - rms_dbfs(mixer.latent_mix(strips))
    waveform = pytest.approx(rms_dbfs(mixer.waveform_mix(moved)), abs=0.01)
    with fresh.change():
        fresh.push(index, "ArrowDown", 24)
    fresh.until(lambda: rms_dbfs(fresh.samples("waveform")) == waveform)
    assert rms_dbfs(fresh.samples("waveform")) == waveform
    assert rms_dbfs(fresh.samples()) - rms_dbfs(before) == pytest.approx(fallen, abs=0.5)
    assert fresh.page.locator(".lc-db").nth(index).input_value() == "−12.0"


def test_mute_and_solo_and_polarity(fresh, mixer):
    index, n = loud_stem(mixer), len(mixer.names)
    for setting in ("mute", "solo", "inverted"):
        strips = [Strip(**{setting: k == index}) for k in range(n)]
        with fresh.change():
            fresh.press(f".lc-{setting}", index)
        assert snr_db(fresh.samples(), mixer.latent_mix(strips)).item() > 60
        with fresh.change():
            fresh.press(f".lc-{setting}", index)


def test_ab_is_at_equal_loudness(fresh, mixer):
    fresh.press(".lc-play")
    fresh.page.wait_for_function(f"{fresh.player}.playing && {fresh.player}.position() > 0.1")
    for key in ("waveform", "decoded", "latent"):
        fresh.page.locator(f'.lc-choices [data-sound="{key}"]').click()
        assert fresh.ask("player.heard") == key
        loudness = [
            loudness_lufs(fresh.samples(k) * fresh.ask(f"player.sounds.{k}.gain"), mixer.sample_rate)
            for k in ("latent", key)
        ]
        assert loudness[1] == pytest.approx(loudness[0], abs=0.1)
    assert fresh.ask("player.playing")


def heard_rms(visit, key: str) -> float:
    """Of what leaves the page over two rounds of the loop: the mean of many short windows."""
    script = """async (key) => {
      document.querySelector(`.lc-choices [data-sound="${key}"]`).click();
      await new Promise(resolve => setTimeout(resolve, 200));
      const player = document.querySelector(".lincae-desk").player, powers = [];
      const window = new Float32Array(player.analyser.fftSize);
      while (powers.length < 200) {
        player.analyser.getFloatTimeDomainData(window);
        powers.push(window.reduce((sum, x) => sum + x * x, 0) / window.length);
        await new Promise(resolve => setTimeout(resolve, 20));
      }
      return Math.sqrt(powers.reduce((sum, x) => sum + x, 0) / powers.length);
    }"""
    return visit.page.evaluate(script, key)


def test_what_leaves_the_page_is_the_mix_at_the_monitor_level(fresh, mixer):
    strips = [Strip()] * len(mixer.names)
    fresh.press(".lc-play")
    fresh.page.wait_for_function(f"{fresh.player}.playing")
    for key, mix in (("latent", mixer.latent_mix(strips)), ("waveform", mixer.waveform_mix(strips))):
        gain_db = 20 * np.log10(fresh.ask(f"player.sounds.{key}.gain")) - 6  # of the monitor
        assert 20 * np.log10(heard_rms(fresh, key)) == pytest.approx(rms_dbfs(mix) + gain_db, abs=1.0)


def test_the_position_survives_a_new_mix(fresh):
    fresh.press(".lc-play")
    fresh.page.wait_for_function(f"{fresh.player}.position() > 0.2")
    position, at, _ = fresh.ask(CLOCK)
    with fresh.change():
        fresh.push(0, "ArrowDown", 2)
    later, then, playing = fresh.ask(CLOCK)
    assert playing
    error = (later - position - (then - at)) % SECONDS
    assert min(error, SECONDS - error) < 0.02


def test_the_last_round_of_a_loop_is_played_to_its_end(fresh):
    fresh.press(".lc-play")
    fresh.page.wait_for_function(f"{fresh.player}.position() > {SECONDS - 0.3}")
    fresh.page.wait_for_function(f"{fresh.player}.position() < {SECONDS / 2}")
    position, at, _ = fresh.ask(CLOCK)
    fresh.page.uncheck(".lc-loop")
    later, then, playing = fresh.ask(CLOCK)
    assert playing
    assert abs(later - position - (then - at)) < 0.02
    fresh.page.wait_for_function(f"!{fresh.player}.playing")
    assert fresh.ask("player.position()") == 0


def test_another_model(fresh, track):
    """The linear reference: the latent mix is the waveform mix."""
    with fresh.change():
        fresh.choose("models", "stft")
    stems = track[1].stems(44100, 0, SECONDS)
    torch.testing.assert_close(fresh.samples(), stems.sum(0, keepdim=True), atol=1e-5, rtol=0)


def test_stems_placed_by_the_re_encoder(fresh, mixer):
    """Offered where the model has a module: two channels, another image by number, and back to pan."""
    (name, path), *_ = stereo_modules(mixer.model).items()
    mixer.place_by(ReEncoder.load(path, "cpu"))
    choice, image = fresh.page.locator("select.lc-stereo"), fresh.page.locator(".lc-image-number")
    assert not image.is_visible()
    with fresh.change():
        choice.select_option(f"Re-Encoder {name}")
    with fresh.change():
        image.fill("3")
        image.press("Enter")
    strips = [Strip(image=3)] * len(mixer.names)
    fresh.until(lambda: fresh.ask("player.sounds.decoded.channels.length") == 2)
    for key, mix in (("latent", mixer.latent_mix), ("decoded", mixer.decoded_mix)):
        assert fresh.samples(key).shape[0] == 2
        assert snr_db(fresh.samples(key), mix(strips)).min().item() > 60
    assert "the waveform mix stays in the centre" in fresh.page.inner_text(".lc-status")
    assert fresh.page.locator(".lc-pan:disabled").count() == len(mixer.names)
    with fresh.change():
        fresh.page.get_by_role("button", name="Reset faders").click()
    assert fresh.samples().shape[0] == 1
    with fresh.change():
        fresh.choose("models", "stft")
    assert not choice.is_visible()


def test_a_model_that_fails_to_load(fresh):
    fresh.choose("models", "no-such-model")
    fresh.page.wait_for_selector(".lc-error:not(:empty)")
    assert "unknown model" in fresh.page.inner_text(".lc-error:not(:empty)")
    assert fresh.page.locator("select.lc-models").input_value() == "desk/lin-cae"


def test_a_level_that_clips_is_shown(fresh):
    with fresh.change():
        fresh.push(fresh.page.locator(".lc-slider").count() - 1, "End", 1)  # master, +12 dB
    volume = fresh.page.locator(".lc-volume")
    volume.fill("0")
    peak = fresh.samples().abs().max().item()
    said = fresh.page.inner_text(".lc-lamp")
    assert (f"clips by {20 * np.log10(peak):.1f} dB" in said) if peak > 1 else said == ""
    volume.fill("-6")


def test_download(fresh, mixer, tmp_path):
    with fresh.page.expect_download() as download:
        fresh.press(".lc-download")
    download.value.save_as(tmp_path / "mix.wav")
    assert download.value.suggested_filename.endswith("_latent.wav")
    audio, rate = soundfile.read(tmp_path / "mix.wav", dtype="float32", always_2d=True)
    assert rate == mixer.sample_rate
    assert torch.equal(torch.from_numpy(audio.T.copy()), fresh.samples())
    assert soundfile.info(tmp_path / "mix.wav").subtype == "FLOAT"


def test_the_page_is_its_own(fresh):
    assert fresh.page.title() == "Latent mixing desk"
    assert fresh.page.locator("h1").all_inner_texts() == ["Latent mixing desk"]
    assert violations(fresh.page) == []
    assert fresh.errors == []
    assert fresh.outside == []


def test_an_upload_of_more_than_a_message_holds(page, tmp_path):
    """A minute of stereo: servers close the connection on messages above 10 MB."""
    visit = DeskPage(page[0]).open(page[1])
    rate, files = 44100, [tmp_path / "loud.wav", tmp_path / "quiet.wav"]
    for path, level in zip(files, (0.2, 0.02), strict=True):
        noise = level * np.random.default_rng(0).standard_normal((60 * rate, 2)).astype(np.float32)
        soundfile.write(path, noise, rate)
    assert files[0].stat().st_size > 10 * 2**20
    visit.page.get_by_text("Stems of your own").click()
    with visit.change():
        visit.page.locator("input[type=file]").set_input_files(files)
        visit.page.get_by_text("quiet.wav has 2 channels: heard as mono").wait_for(timeout=240_000)
    assert visit.page.locator(".lc-name").all_inner_texts()[:2] == ["loud", "quiet"]
    expected = soundfile.read(files[0], frames=2 * rate)[0].mean(1)
    expected += soundfile.read(files[1], frames=2 * rate)[0].mean(1)
    with visit.change():
        visit.choose("models", "stft")
    heard = visit.samples("waveform")
    assert snr_db(heard, torch.tensor(expected, dtype=torch.float32)[None]).item() > 40
    assert visit.errors == []
    visit.context.close()


def test_an_upload_that_is_too_much_is_refused_before_it_is_sent(fresh, tmp_path):
    files = [tmp_path / f"{number}.wav" for number in range(9)]
    for path in files:
        soundfile.write(path, np.zeros(800), 8000)
    fresh.page.get_by_text("Stems of your own").click()
    fresh.page.locator("input[type=file]").set_input_files(files)
    fresh.page.get_by_text("a desk takes 1 to 8 stems, got 9: nothing was sent").wait_for()
    fresh.page.get_by_text("Stems of your own").click()


@pytest.mark.parametrize("fate", ["kernel", "server"])
def test_a_lost_connection_is_said(page, track, tmp_path, fate):
    """Faders still move on a page that nobody listens to."""
    words = ["stft", "--data", str(track[0]), "--seconds", "1"]
    with served(words, tmp_path / "log") as (address, process):
        visit = DeskPage(page[0]).open(address)
        with visit.change():
            visit.push(0, "ArrowDown", 1)
        assert visit.page.locator(".lc-lost").inner_text() == ""
        if fate == "kernel":
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for child in children:  # the kernel hangs
                os.kill(int(child), signal.SIGSTOP)
        else:
            process.kill()
        visit.push(0, "ArrowDown", 1)
        said = "document.querySelector('.lc-lost').textContent"
        visit.page.wait_for_function(f"{said}.includes('connection may be lost')", timeout=240_000)
        if fate == "kernel":
            for child in children:
                os.kill(int(child), signal.SIGCONT)
            visit.page.wait_for_function(f"{said} === ''", timeout=240_000)
        visit.context.close()


def test_closing_the_page_while_decoding(page):
    """Its kernel ends; that of the page which is still open stays."""
    chromium, address, log = page
    visit = DeskPage(chromium).open(address)
    visit.push(0, "ArrowDown", 1)
    visit.page.wait_for_function(f"!({STILL})")
    visit.page.close(run_before_unload=True)
    until = time.monotonic() + 240
    while log.read_text().count("Kernel started") - log.read_text().count("Kernel shutdown") > 1:
        assert time.monotonic() < until, log.read_text()[-2000:]
        time.sleep(0.2)
    assert "Traceback" not in log.read_text()
