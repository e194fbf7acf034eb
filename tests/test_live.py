"""Live arithmetic on the demo page: the browser decodes what PyTorch does, and says what is in its way."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from browser import NO_OUTPUT, PHONE, WIDTHS, Watched, browser, find_chromium, violations
from fakes import FakeTrack, relative
from test_demo import served
from test_onnx import MODELS, random_model

from lincae.interop.references import StftAutoencoder
from lincae.listening import live
from lincae.listening.demo import write_demo

SECONDS = 0.25  # a GPU in software takes a minute for it
SAID = "#live-said"
DECODED = "window.live.decoded && !window.live.busy"


def tiny():
    kind, config = MODELS["bands"]
    return random_model(kind, replace(config, latent_scale=3.0))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A page of a tiny model with two pieces of music; its address, folder and model."""
    folder = tmp_path_factory.mktemp("live")
    try:
        live.fetch_runtime(folder)
    except (OSError, ImportError) as error:
        pytest.skip(f"the page's decoder cannot be had: {error}")
    model = tiny()
    model.config = replace(model.config, window_frames=400)
    music = [FakeTrack("one", SECONDS), FakeTrack("single", SECONDS, stem_names=("mixture",))]
    page = write_demo([model], music, folder / "site", seconds=SECONDS, hosted=True, live=True)
    others = [path.name for path in (folder / "site" / "live").iterdir()]
    assert all(re.fullmatch(live.LIVE_FILE, name) for name in others)  # else none could be written over it
    with served(page.parent) as address:
        yield address, page.parent, model


@pytest.fixture(scope="module")
def chromium(site):
    with browser() as started:
        yield started


@pytest.fixture
def visited(site, chromium):
    visit = Watched(chromium)
    visit.page.set_default_timeout(600_000)
    yield visit
    visit.context.close()


def error_of_decode(page, site) -> float:
    """Of what the page decoded, relative to PyTorch's decode of the same latents."""
    _, folder, model = site
    gains = torch.tensor(page.evaluate("window.live.gains()"), dtype=torch.float32)
    halves = np.fromfile(folder / "live" / "0-latents.f16", dtype=np.float16).astype(np.float32)
    stems = torch.from_numpy(halves).reshape(4, model.config.network.latent_channels, -1)
    mixed = torch.einsum("s,scl->cl", gains, stems)[None]
    heard = torch.tensor(page.evaluate("Array.from(window.live.decoded.audio)"))
    wanted = model.decode(mixed, length=len(heard))[0]
    assert len(heard) == round(SECONDS * model.sample_rate)
    return relative(heard - wanted, wanted)


def test_the_mix_of_latents_is_what_pytorch_decodes(site, visited):
    page = visited.page
    page.goto(site[0])
    assert "MB" in page.inner_text("#live-start")
    assert not any(".wasm" in asked for asked in visited.addresses)  # nothing is loaded unasked
    page.focus("#live-start")
    page.keyboard.press("Enter")
    page.wait_for_function(DECODED)

    strips = page.locator("#live .strip")
    assert strips.count() == 4
    strips.nth(0).locator("input").focus()
    page.keyboard.press("ArrowLeft")
    for strip, name in ((1, "Mute"), (2, "Invert")):
        strips.nth(strip).get_by_text(name).focus()
        page.keyboard.press("Enter")
    page.wait_for_function(DECODED)
    assert page.evaluate("window.live.gains()") == pytest.approx([10 ** (-1 / 20), 0, -1, 1])
    assert error_of_decode(page, site) < 1e-3  # 60 dB

    page.click("#live-play")
    page.wait_for_function("window.live.sounding")
    page.click("#play")
    page.wait_for_function("!window.live.sounding && window.demo.playing")  # one of the two is heard
    for width in WIDTHS:
        page.set_viewport_size(width)
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width["width"]
    page.set_viewport_size(PHONE)
    for strip in range(4):
        strips.nth(strip).locator("input").focus()
        page.wait_for_function(
            "document.activeElement.getBoundingClientRect().bottom"
            " <= document.getElementById('player').getBoundingClientRect().top"
        )
    assert visited.errors == []
    assert visited.outside == []


@pytest.mark.parametrize("refusal", NO_OUTPUT.values(), ids=list(NO_OUTPUT))
def test_a_browser_that_refuses_sound_is_said_to(site, visited, refusal):
    """Beside the button, on a phone; what was decoded stays."""
    page = visited.page
    page.set_viewport_size(PHONE)
    page.add_init_script(refusal)
    page.goto(site[0])
    page.click("#live-start")
    page.wait_for_function(DECODED)
    page.click("#live-play")
    page.wait_for_function(f"/sound output/.test(document.querySelector('{SAID}').textContent)")
    said, button = (page.locator(css).bounding_box() for css in (SAID, "#live-play"))
    assert 0 <= said["y"] < button["y"] < PHONE["height"]
    assert page.evaluate("Boolean(window.live.decoded) && !window.live.sounding")
    assert (violations(page), visited.errors) == ([], [])


WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
ADAPTER = "async () => Boolean(await navigator.gpu?.requestAdapter())"
PRETENDED = "navigator.gpu.requestAdapter = async () => ({})"  # in the page, but not in its worker


@pytest.mark.parametrize(
    ("switches", "script", "decoder", "asked"),
    [(WEBGPU, "", "webgpu", {"gpu.wasm"}), ((), PRETENDED, "wasm", {"gpu.wasm", "ort.wasm"})],
    ids=["a GPU", "a GPU that is refused"],
)
def test_a_gpu_decodes_where_there_is_one(site, chromium, switches, script, decoder, asked):
    """Else WebAssembly does, in its place."""
    started = chromium.browser_type.launch(executable_path=find_chromium(), args=["--no-sandbox", *switches])
    with started as another:
        visit = Watched(another)
        visit.page.set_default_timeout(600_000)
        visit.page.add_init_script(script)
        visit.page.goto(site[0])
        if decoder == "webgpu" and not visit.page.evaluate(ADAPTER):
            pytest.skip("this Chromium has no WebGPU, not even in software")
        shown = visit.page.inner_text("#live-start")
        visit.page.click("#live-start")
        visit.page.wait_for_function(DECODED)
        assert visit.page.evaluate("window.live.decoded.provider") == decoder
        assert {address.rpartition("/")[2] for address in visit.addresses if ".wasm" in address} == asked
        assert error_of_decode(visit.page, site) < 1e-3
        size = sum(
            (site[1] / "live" / name).stat().st_size for name in ("gpu.wasm", "gpu.js", "decoder.onnx")
        )
        assert float(shown.partition("(")[2].split()[0]) == pytest.approx(size / 1e6, abs=0.2)


def test_a_blocked_download_and_a_browser_without_simd_are_said(site, visited):
    page = visited.page
    page.route("**/live/ort.wasm", lambda route: route.abort())
    page.goto(site[0])
    page.click("#live-start")
    page.wait_for_function("document.querySelector('#live-said').textContent.includes('ort.wasm')")
    assert page.is_enabled("#live-start")

    page.add_init_script("WebAssembly.validate = () => false")
    page.goto(site[0])
    assert "SIMD" in page.inner_text(SAID)
    assert page.is_disabled("#live-start")


def test_refused(monkeypatch, tmp_path):
    model = tiny()
    for changed, music, message in (
        (StftAutoencoder(), FakeTrack(), "StftAutoencoder"),
        (model, FakeTrack(stem_names=("mixture",)), "none of these has more than one"),
        (model, FakeTrack(seconds=61.0), "last 61 s: a page adds 60 s at most"),
        (model, FakeTrack(seconds=30.0), "latent frames: the export of tiny decodes 40 at once"),
    ):
        with pytest.raises(ValueError, match=message):
            live.check_live(changed, [music], seconds=90.0)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OSError, match="npm, which fetches it, is not installed"):
        live.fetch_runtime(tmp_path)
