"""Pictures of the desk and of the demo page for the README, at desktop and phone width.

    make screenshots   # -> figures/desk.png, desk_phone.png, demo.png, demo_phone.png

The desk is that of `lincae desk` with synthetic songs. The page is
figures/demo/index.html, which notebook 05 writes.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from browser import DESKTOP, PHONE, ROOT, Watched, browser, served

FIGURES = ROOT / "figures"


def of_the_desk(chromium, address: str) -> None:
    visit = Watched(chromium, {"width": 1240, "height": 1000})
    page = visit.page
    page.goto(address, timeout=180_000)
    player = 'document.querySelector(".lincae-desk")?.player'
    page.wait_for_function(f"{player}?.sounds.decoded", timeout=180_000)
    before = page.evaluate(f"{player}.swaps")
    for index, text in enumerate(("-3", "-9", "0", "3")):
        page.locator(".lc-db").nth(index).fill(text)
        page.locator(".lc-db").nth(index).press("Enter")
    page.wait_for_function(f"{player}.swaps >= {before + 3}")
    page.wait_for_function('document.querySelector(".lc-progress").style.visibility === "hidden"')
    page.evaluate(f"{player}.seek(2.2)")
    page.wait_for_timeout(3000)
    page.locator(".lincae-desk").screenshot(path=FIGURES / "desk.png")
    page.set_viewport_size(PHONE | {"height": 1300})  # all of it at once
    page.wait_for_timeout(1000)
    page.locator(".lincae-desk").screenshot(path=FIGURES / "desk_phone.png")


def of_the_page(chromium) -> None:
    for name, viewport in (("demo", DESKTOP), ("demo_phone", PHONE)):
        page = Watched(chromium, viewport).page
        page.set_default_timeout(180_000)
        page.goto((FIGURES / "demo" / "index.html").as_uri())
        row = page.locator("#board > .row", has_text="Separated drums")
        row.locator(".tile").nth(1).click()
        page.wait_for_function("window.demo.position() > 1.5")
        page.click("#play")
        page.mouse.move(0, 0)
        row.evaluate("row => row.scrollIntoView({block: 'center'})")
        page.wait_for_timeout(500)
        page.screenshot(path=FIGURES / f"{name}.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        with served(["--data", "synthetic", "--n-tracks", "4"], Path(folder, "log")) as (address, _):
            of_the_desk(chromium, address)
        of_the_page(chromium)


if __name__ == "__main__":
    main()
