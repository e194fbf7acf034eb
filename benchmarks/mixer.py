"""How long a visitor waits for sound: of the latent mixing desk, and of the live arithmetic of the demo page.

    python benchmarks/mixer.py  # 5 minutes -> mixer.csv

All in a page of Chromium, by medians and least times of some rounds (ours), against a goal (peer), in
seconds; ratio = peer / ours.

- `start to sound`: from the start of the process `lincae desk` until its page plays the excerpt; all has run
  once before, so that files are in memory and modules are compiled. `start to latent mix`: until the first
  decode is there.
- `fader to sound`: a fader of the desk is moved while 6 s of a synthetic song play in a loop, until the
  player has started the new mix. `decoded before`: the fader goes back to where it was. `model alone`: the
  same decode without desk, page and the moment that the desk waits for further moves, against `fader to
  sound`.
- `live fader to sound`: the same on the demo page, where the browser adds and decodes, without a kernel.

Needs chromium, and npm for the last one.
"""

import argparse
import csv
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from browser import Watched, browser, served

import lincae
from lincae.data.tracks import tracks
from lincae.listening.demo import write_demo
from lincae.listening.mixer import Mixer, Strip

START_GOAL_S, FADER_GOAL_S, LIVE_GOAL_S = 10.0, 0.6, 3.0
SECONDS, ROUNDS, STARTS = 6.0, 7, 3
MODEL, DEFAULT_MODEL = "desk/lin-cae", "study/listen"
COLUMNS = ("name", "device", "setting", "ours", "peer", "ratio", "unit")
PATIENCE_MS = 180_000
PLAYER = 'document.querySelector(".lincae-desk")?.player'
STILL = 'document.querySelector(".lc-progress").style.visibility === "hidden"'
HEARD = f"""() => {{
  const analyser = {PLAYER}.analyser, samples = new Float32Array(2048);
  analyser?.getFloatTimeDomainData(samples);
  return samples.some((sample) => sample !== 0);
}}"""
# The new mix sounds once the player has swapped its sources: from the key press on, in the page's own clock.
MOVE = """async (key) => {
  const { player } = document.querySelector(".lincae-desk");
  const fader = document.querySelector(".lc-slider");
  const before = player.swaps, begun = performance.now();
  fader.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  while (player.swaps === before) await new Promise(requestAnimationFrame);
  return (performance.now() - begun) / 1000;
}"""
LIVE_MOVE = """async () => {
  const fader = document.querySelector("#live .strip input");
  const before = window.live.sounding, begun = performance.now();
  fader.value -= 1;
  fader.dispatchEvent(new Event("input"));
  while (window.live.sounding === before) await new Promise(requestAnimationFrame);
  return (performance.now() - begun) / 1000;
}"""


def starts(chromium, folder: Path) -> dict[str, list[float]]:
    """Seconds of starts of the desk as it is without a word, but for the device."""
    seconds: dict[str, list[float]] = {"start to sound": [], "start to latent mix": []}
    for _ in range(STARTS + 1):
        page = Watched(chromium).page
        begun = time.perf_counter()
        with served(["--device", "cpu"], folder / "log") as (address, _):
            page.goto(address, timeout=PATIENCE_MS, wait_until="commit")
            page.wait_for_selector(".lc-play:enabled", timeout=PATIENCE_MS)
            page.click(".lc-play")
            page.wait_for_function(HEARD, timeout=PATIENCE_MS)
            seconds["start to sound"].append(time.perf_counter() - begun)
            page.wait_for_function(f"{PLAYER}.sounds.latent", timeout=PATIENCE_MS)
            seconds["start to latent mix"].append(time.perf_counter() - begun)
        page.close()
    return {name: values[1:] for name, values in seconds.items()}


def moves(chromium, folder: Path, model: str) -> dict[str, list[float]]:
    """Seconds of moves to new positions, and of moves back."""
    words = [model, "--data", "synthetic", "--n-tracks", "1", "--seconds", str(SECONDS), "--device", "cpu"]
    seconds: dict[str, list[float]] = {"fader to sound": [], "decoded before": []}
    with served(words, folder / "log") as (address, _):
        page = Watched(chromium).page
        page.goto(address, timeout=PATIENCE_MS)
        page.wait_for_function(f"{PLAYER}?.sounds.decoded && {STILL}", timeout=PATIENCE_MS)
        page.click(".lc-play")
        for _ in range(ROUNDS):
            for key, name in (
                ("ArrowDown", "fader to sound"),
                ("ArrowUp", "decoded before"),
                ("ArrowDown", "decoded before"),
            ):
                seconds[name].append(page.evaluate(MOVE, key))
                page.wait_for_timeout(300)
                page.wait_for_function(STILL, timeout=PATIENCE_MS)
        page.close()
    return seconds


def live_moves(chromium, folder: Path) -> list[float]:
    """Seconds of moves on a hosted demo page."""
    music = tracks("synthetic", n_tracks=1)
    site = folder / "site"
    write_demo([lincae.load(DEFAULT_MODEL, "cpu")], music, site, SECONDS, gains=(), hosted=True, live=True)
    handler = partial(SimpleHTTPRequestHandler, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = Watched(chromium).page
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        page.click("#live-start")
        page.wait_for_function("window.live.decoded", timeout=PATIENCE_MS)
        page.click("#live-play")
        page.wait_for_function("window.live.sounding", timeout=PATIENCE_MS)
        seconds = [page.evaluate(LIVE_MOVE) for _ in range(ROUNDS)]
        page.close()
        server.shutdown()
    return seconds


def model_alone() -> list[float]:
    model = lincae.load(MODEL, "cpu")
    (track,) = tracks("synthetic", n_tracks=1)
    mixer = Mixer(model, track.stems(model.sample_rate, 0, SECONDS), track.stem_names)
    seconds = []
    for position in range(ROUNDS + 1):
        strips = [Strip(-0.5 * (position + 1)), *[Strip()] * (len(mixer.names) - 1)]
        begun = time.perf_counter()
        mixer.latent_mix(strips)
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]  # the first encodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--hardware", default=platform.processor(), help="what to call the machine in the CSV"
    )
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # modules of a warm start are compiled
    with tempfile.TemporaryDirectory() as place, browser() as chromium:
        folder = Path(place)
        of_starts = starts(chromium, folder)
        of_moves = moves(chromium, folder, MODEL)
        of_default = moves(chromium, folder, DEFAULT_MODEL)
        live = live_moves(chromium, folder)
    alone = model_alone()

    of_desk = f"{DEFAULT_MODEL}, {SECONDS:g} s"
    of_model = f"{MODEL}, {SECONDS:g} s"
    measured = [(name, of_desk, values, START_GOAL_S) for name, values in of_starts.items()]
    measured += [(name, of_model, values, FADER_GOAL_S) for name, values in of_moves.items()]
    measured += [(name, of_desk, values, FADER_GOAL_S) for name, values in of_default.items()]
    measured.append(("model alone", of_model, alone, statistics.median(of_moves["fader to sound"])))
    measured.append(("live fader to sound", of_desk, live, LIVE_GOAL_S))
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, setting, values, goal in measured:
            for kind, ours in (("median", statistics.median(values)), ("least", min(values))):
                what = f"{setting}, {kind} of {len(values)}"
                row = [name, options.hardware, what, f"{ours:.3f}", f"{goal:.3f}", f"{goal / ours:.2f}", "s"]
                writer.writerow(row)
                print(*row)


if __name__ == "__main__":
    main()
