"""The parts of the mixing desk: a player, level meters, channel strips (ipywidgets and anywidget).

Axis legend: `T` samples. Audio is (channels, T).
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets
from torch import Tensor

from lincae.listening.loudness import decibels, rms_dbfs
from lincae.listening.mixer import Strip

FADER_MIN_DB, FADER_MAX_DB = -60.0, 12.0  # the lowest position is -inf
ENVELOPE_HZ = 30
SILENT_DB = -300.0  # -inf, for JSON
PAN = "pan"


def asset(name: str) -> str:
    return (files("lincae.listening") / "web" / name).read_text(encoding="utf-8")


class Player(anywidget.AnyWidget):
    """Plays one of several sounds of one length, switches between them in place, shows their spectrograms.

    `sounds`: key -> samples (float32 bytes, channel after channel), channels, gain; `pictures`: panel -> png,
    title, ticks (share of the height, label).
    """

    _esm = asset("player.js")
    sounds = traitlets.Dict().tag(sync=True)
    pictures = traitlets.Dict().tag(sync=True)
    sample_rate = traitlets.Int(1).tag(sync=True)
    heard = traitlets.Unicode("latent").tag(sync=True)
    volume_db = traitlets.Float(-6.0).tag(sync=True)
    file_name = traitlets.Unicode("mix").tag(sync=True)
    desk = traitlets.Unicode().tag(sync=True)


class Meter(anywidget.AnyWidget):
    """RMS over time, in all, and the peak of a signal, in dB re full scale."""

    _esm = asset("meter.js")
    label = traitlets.Unicode().tag(sync=True)
    desk = traitlets.Unicode().tag(sync=True)
    envelope_db = traitlets.List().tag(sync=True)
    level_db = traitlets.Float(SILENT_DB).tag(sync=True)
    peak_db = traitlets.Float(SILENT_DB).tag(sync=True)

    def show(self, audio: Tensor, sample_rate: int) -> None:
        """The levels of audio (channels, T)."""
        size = max(1, sample_rate // ENVELOPE_HZ)
        power = audio.square().mean(0)[: audio.shape[1] // size * size].reshape(-1, size).mean(1)
        with self.hold_sync():
            self.envelope_db = [round(max(SILENT_DB, decibels(math.sqrt(p))), 1) for p in power.tolist()]
            self.level_db = max(SILENT_DB, rms_dbfs(audio))
            self.peak_db = max(SILENT_DB, decibels(audio.abs().max().item()))


class Channel(widgets.VBox):
    """A fader with its number in dB, a meter, and for a stem pan, mute, solo and polarity."""

    def __init__(
        self, name: str, colour: str, desk: str, changed: Callable[[Any], None], is_stem: bool = True
    ):
        self.name, self._changed = name, changed
        self.fader = widgets.FloatSlider(
            value=0, min=FADER_MIN_DB, max=FADER_MAX_DB, step=0.5, orientation="vertical", readout=False,
            tooltip=f"{name}: gain in dB",
        )  # fmt: skip
        self.text = widgets.Text(
            value="0.0", continuous_update=False, tooltip=f"{name}: gain in dB, -inf for off"
        )
        self.meter = Meter(label=name, desk=desk)
        self.pan = widgets.FloatSlider(
            value=0, min=-1, max=1, step=0.05, readout=False, tooltip=f"{name}: pan, left to right"
        )
        self.mute, self.solo, self.invert = (
            widgets.ToggleButton(value=False, description=letter, tooltip=f"{name}: {meaning}")
            for letter, meaning in (("M", "mute"), ("S", "solo"), ("ø", "invert the polarity"))
        )
        for widget, css in (
            (self.text, "lc-db"), (self.pan, "lc-pan"), (self.mute, "lc-mute"), (self.solo, "lc-solo"),
            (self.invert, "lc-invert"),
        ):  # fmt: skip
            widget.add_class(css)
        row = widgets.HBox([self.fader, self.meter]).add_class("lc-fader")
        toggles = widgets.HBox([self.mute, self.solo, self.invert]).add_class("lc-toggles")
        title = widgets.HTML(f'<div class="lc-name" title="{escape(name)}">{escape(name)}</div>')
        unit = widgets.HTML('<div class="lc-caption">dB</div>')
        above = [self.pan, toggles] if is_stem else [widgets.HTML('<div class="lc-above"></div>')]
        super().__init__([title, *above, row, self.text, unit])
        self.add_class("lc-strip")
        self.layout.border_top = f"5px solid {colour}"
        self.fader.observe(self._moved, "value")
        self.text.observe(self._typed, "value")
        for widget in (self.pan, self.mute, self.solo, self.invert):
            widget.observe(changed, "value")

    @property
    def gain_db(self) -> float:
        return -math.inf if self.fader.value <= FADER_MIN_DB else self.fader.value

    @property
    def strip(self) -> Strip:
        switches = self.mute.value, self.solo.value, self.invert.value
        return Strip(self.gain_db, *switches, pan=round(self.pan.value, 3))

    def _moved(self, change: Any) -> None:
        self.text.value = shown_db(self.gain_db)
        self._changed(change)

    def _typed(self, change: Any) -> None:
        if change["new"] == shown_db(self.gain_db):
            return  # the fader's own number: rounded, it would set a fader back that moves on meanwhile
        text = change["new"].strip().replace("−", "-").replace("∞", "inf").removesuffix("dB")
        try:
            level_db = float(text)
        except ValueError:
            level_db = math.nan
        if not math.isnan(level_db):
            self.fader.value = min(max(level_db, FADER_MIN_DB), FADER_MAX_DB)
        self.text.value = shown_db(self.gain_db)


class StereoChoice(widgets.HBox):
    """How stems get their places: by the pan of every strip, or by a module of mono-to-stereo, in the stereo
    image of a number. Hidden where no module is offered."""

    def __init__(self, changed: Callable[[Any], None]):
        self.choice = widgets.Dropdown(options=[(PAN, PAN)], description="Stereo")
        self.image = widgets.BoundedIntText(
            min=0, max=9999, description="Image", tooltip="every number is another draw from the prior"
        )
        super().__init__([self.choice, self.image])
        self.add_class("lc-stereo")
        for widget in (self.choice, self.image):
            widget.observe(changed, "value")
        self.choice.observe(lambda _: self._show(), "value")
        self.offer(())

    @property
    def module(self) -> str | None:
        """The name of the chosen module; None for pan."""
        return None if self.choice.value == PAN else self.choice.value

    def offer(self, modules: Sequence[str]) -> None:
        """Let choose from these; what was chosen stays so where it is one of them."""
        before = self.module
        self.choice.options = [(PAN, PAN), *((f"Re-Encoder {name}", name) for name in modules)]
        self.choose(before)
        self.layout.display = "" if modules else "none"
        self._show()

    def choose(self, module: str | None) -> None:
        """A module by name; pan for None, or where it is not offered."""
        offered = [name for _, name in self.choice.options]
        self.choice.value = module if module in offered else PAN

    def reset(self) -> None:
        self.choice.value, self.image.value = PAN, 0

    def _show(self) -> None:
        self.image.layout.display = "none" if self.module is None else ""


def shown_db(level_db: float) -> str:
    return "−∞" if level_db == -math.inf else f"{level_db:.1f}".replace("-", "−")
