"""The parts of the mixing desk: player, level meters, channel strips, uploads (ipywidgets and anywidget).

Audio is (channels, T).
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets
from torch import Tensor

from lincae.listening.loudness import decibels, rms_dbfs
from lincae.listening.mixer import MAX_STEMS, Strip

FADER_MIN_DB = -60.0
"""The lowest position of a fader, which is off."""

FADER_MAX_DB = 12.0
ENVELOPE_HZ = 30
SILENT_DB = -300.0
"""What stands for -inf dB in JSON, which has no infinities."""

PAN = "pan"


def asset(name: str) -> str:
    """The text of one of the package's web files."""
    return (files("lincae.listening") / "web" / name).read_text(encoding="utf-8")


class Player(anywidget.AnyWidget):
    """Plays one of several sounds of one length, switches between them in place, shows their spectrograms.

    `sounds`: key -> samples (float32 bytes, channel after channel), channels, gain; `pictures`: panel -> png,
    title, ticks (share of the height, label). It asks the kernel after every move on the desk, and says so
    where there is no answer.
    """

    _esm = asset("player.js")
    sounds = traitlets.Dict().tag(sync=True)
    pictures = traitlets.Dict().tag(sync=True)
    sample_rate = traitlets.Int(1).tag(sync=True)
    heard = traitlets.Unicode("latent").tag(sync=True)
    volume_db = traitlets.Float(-6.0).tag(sync=True)
    file_name = traitlets.Unicode("mix").tag(sync=True)
    desk = traitlets.Unicode().tag(sync=True)

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.on_msg(lambda player, content, buffers: player.send(content))


class Upload(anywidget.AnyWidget):
    """A button that takes files piece by piece; `arrived` is called with their paths once all are whole.

    A server between page and kernel closes the connection on a message of more than 10 MB, in silence: a
    minute of stereo in one message would never arrive. The files are gone when `arrived` returns.
    """

    _esm = asset("upload.js")
    most_files = traitlets.Int(MAX_STEMS).tag(sync=True)
    most_bytes = traitlets.Int(2**30).tag(sync=True)

    def __init__(self, arrived: Callable[[list[Path]], None]):
        super().__init__()
        self._arrived = arrived
        self._folder: tempfile.TemporaryDirectory | None = None
        self.on_msg(lambda _, content, buffers: self.receive(content, buffers))

    def receive(self, content: dict[str, Any], buffers: Sequence[bytes] = ()) -> None:
        """What the page sends: a piece of file number `file` from byte `at` on, or the number of `files` at
        their end. Each is answered, since the page waits for it."""
        answer = {}
        try:
            if "files" in content:
                self._hand_over()
            else:
                self._write(content["file"], Path(content["name"]).name, content["at"], buffers[0])
        except OSError as error:
            answer["error"] = str(error)
        self.send(answer)

    def _write(self, number: int, name: str, at: int, piece: bytes) -> None:
        if number == at == 0:
            self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, str(number), name)
        path.parent.mkdir(exist_ok=True)
        with path.open("r+b" if at else "wb") as file:
            file.seek(at)
            file.write(piece)

    def _hand_over(self) -> None:
        with self._folder as folder:
            paths = sorted(Path(folder).glob("*/*"), key=lambda path: int(path.parent.name))
            self._arrived(paths)


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
        whole = audio.shape[1] // size * size
        power = audio.square().mean(0)[:whole].reshape(-1, size).mean(1)
        with self.hold_sync():
            self.envelope_db = [round(max(SILENT_DB, decibels(math.sqrt(p))), 1) for p in power.tolist()]
            self.level_db = max(SILENT_DB, rms_dbfs(audio))
            self.peak_db = max(SILENT_DB, decibels(audio.abs().max().item()))


class Channel(widgets.VBox):
    """A fader with its number in dB, a meter, and for a stem pan, mute, solo and polarity."""

    def __init__(
        self, name: str, colour: str, desk: str, changed: Callable[[Any], None], is_stem: bool = True
    ):
        self.name = name
        self._changed = changed
        self.fader = widgets.FloatSlider(
            0, min=FADER_MIN_DB, max=FADER_MAX_DB, step=0.5, readout=False, orientation="vertical"
        )
        self.fader.tooltip = f"{name}: gain in dB"
        self.text = widgets.Text("0.0", continuous_update=False, tooltip=f"{name}: gain in dB, -inf for off")
        self.meter = Meter(label=name, desk=desk)
        self.pan = widgets.FloatSlider(0, min=-1, max=1, step=0.05, readout=False)
        self.pan.tooltip = f"{name}: pan, left to right"
        self.mute = widgets.ToggleButton(description="M", tooltip=f"{name}: mute")
        self.solo = widgets.ToggleButton(description="S", tooltip=f"{name}: solo")
        self.invert = widgets.ToggleButton(description="ø", tooltip=f"{name}: invert the polarity")
        for css in ("pan", "mute", "solo", "invert"):
            getattr(self, css).add_class(f"lc-{css}").observe(changed, "value")
        self.text.add_class("lc-db").observe(self._typed, "value")
        self.fader.observe(self._moved, "value")

        title = widgets.HTML(f'<div class="lc-name" title="{escape(name)}">{escape(name)}</div>')
        toggles = widgets.HBox([self.mute, self.solo, self.invert]).add_class("lc-toggles")
        above = [self.pan, toggles] if is_stem else [widgets.HTML('<div class="lc-above"></div>')]
        row = widgets.HBox([self.fader, self.meter]).add_class("lc-fader")
        unit = widgets.HTML('<div class="lc-caption">dB</div>')
        super().__init__([title, *above, row, self.text, unit])
        self.add_class("lc-strip")
        self.layout.border_top = f"5px solid {colour}"

    @property
    def gain_db(self) -> float:
        return -math.inf if self.fader.value <= FADER_MIN_DB else self.fader.value

    @property
    def strip(self) -> Strip:
        pan = round(self.pan.value, 3)
        return Strip(self.gain_db, self.mute.value, self.solo.value, self.invert.value, pan)

    def reset(self) -> None:
        self.fader.value = self.pan.value = 0
        self.mute.value = self.solo.value = self.invert.value = False

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
        self.choice.value = PAN
        self.image.value = 0

    def _show(self) -> None:
        self.image.layout.display = "none" if self.module is None else ""


def shown_db(level_db: float) -> str:
    """A level as the desk writes it."""
    return "−∞" if level_db == -math.inf else f"{level_db:.1f}".replace("-", "−")
