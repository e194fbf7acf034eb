"""Listening: the mixing desk and the demo page."""

from importlib.resources import files


def asset(name: str) -> str:
    """The text of one of the package's web files."""
    return (files("lincae.listening") / "web" / name).read_text(encoding="utf-8")
