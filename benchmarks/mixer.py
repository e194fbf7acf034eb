"""From a fader to sound: the latent mixing desk in a page of Chromium, by Voila.

    python benchmarks/mixer.py  # 2 minutes -> mixer.csv

A fader of the desk is moved while 6 s of a synthetic song play in a loop, and the time until the player has
started the new mix is taken in the page: the median and the least of some moves (ours), against the goal of
0.6 s (peer); ratio = peer / ours. `decoded before`: the fader goes back to where it was. `model alone`: the
same decode (ours, median), without desk, page and the moment that the desk waits for further moves, against
`fader to sound` (peer).

Committed numbers: two cores of an AMD EPYC. Needs chromium.
"""

import argparse
import csv
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from browser import Watched, browser, served

import lincae
from lincae.data.tracks import tracks
from lincae.listening.mixer import Mixer, Strip

GOAL_S, SECONDS, ROUNDS, MODEL = 0.6, 6.0, 7, "desk/lin-cae"
COLUMNS = ("name", "device", "setting", "ours", "peer", "ratio", "unit")
# The new mix sounds once the player has swapped its sources: from the key press on, in the page's own clock.
MOVE = """async (key) => {
  const { player } = document.querySelector(".lincae-desk");
  const fader = document.querySelector(".lc-slider");
  const before = player.swaps, begun = performance.now();
  fader.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  while (player.swaps === before) await new Promise(requestAnimationFrame);
  return (performance.now() - begun) / 1000;
}"""


def in_the_page(folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of moves to new positions, and of moves back."""
    words = [MODEL, "--data", "synthetic", "--n-tracks", "1", "--seconds", str(SECONDS), "--device", "cpu"]
    still = 'document.querySelector(".lc-progress").style.visibility === "hidden"'
    with browser() as chromium, served(words, folder / "log") as (address, _):
        page = Watched(chromium).page
        page.goto(address, timeout=180_000)
        player = 'document.querySelector(".lincae-desk")?.player'
        page.wait_for_function(f"{player}?.sounds.decoded && {still}", timeout=180_000)
        page.click(".lc-play")
        new, known = [], []
        for _ in range(ROUNDS):
            for key, times in (("ArrowDown", new), ("ArrowUp", known), ("ArrowDown", known)):
                times.append(page.evaluate(MOVE, key))
                page.wait_for_timeout(300)
                page.wait_for_function(still, timeout=60_000)
    return new, known


def model_alone() -> list[float]:
    model = lincae.load(MODEL, "cpu")
    (track,) = tracks("synthetic", n_tracks=1)
    mixer, seconds = Mixer(model, track.stems(model.sample_rate, 0, SECONDS), track.stem_names), []
    for position in range(ROUNDS + 1):
        strips = [Strip(-0.5 * (position + 1)), *[Strip()] * (len(mixer.names) - 1)]
        begun = time.perf_counter()
        mixer.latent_mix(strips)
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]  # the first encodes


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        new, known = in_the_page(Path(folder))
    alone, rows = model_alone(), []
    for name, times in (("fader to sound", new), ("decoded before", known)):
        for setting, value in (("median", statistics.median(times)), ("least", min(times))):
            rows.append((name, setting, value, GOAL_S))
    rows.append(("model alone", "median", statistics.median(alone), statistics.median(new)))
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, setting, ours, peer in rows:
            setting = f"{MODEL}, {SECONDS:g} s, {setting} of {ROUNDS}"
            writer.writerow([name, "cpu", setting, f"{ours:.3f}", f"{peer:.3f}", f"{peer / ours:.2f}", "s"])
            print(name, setting, f"{ours:.3f} s")


if __name__ == "__main__":
    main()
