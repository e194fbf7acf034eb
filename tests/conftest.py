"""One thread a process, a cache of their own, and what many tests need made once for all processes.

Small tensors are faster without a pool of threads, and runs side by side do not fight for cores.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("without a clock", deadline=None, max_examples=40)
settings.load_profile("without a clock")


LONGEST = ("test_notebooks", "test_desk_page", "test_demo", "test_runs", "test_installed")
"""Modules that come first, so that no process is left with one of them when the others have ended."""


def pytest_collection_modifyitems(items):
    for item in items:
        if "chromium" in item.fixturenames:
            item.add_marker("page")
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Indices of the folders that tests make do not stay in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`once(name, make)`: the folder that `make(folder)` fills, once for all processes of `pytest -n`."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        whole = root / f"shared-{name}"
        with FileLock(f"{whole}.lock"):
            if not whole.is_dir():
                part = root / f"unfinished-{name}-{os.getpid()}"
                part.mkdir()
                make(part)
                part.rename(whole)
        return whole

    return folder


@pytest.fixture(scope="module")
def chromium():
    """A browser, of one module: its event loop runs in the thread of the tests."""
    from browser import browser

    with browser() as started:
        yield started


@pytest.fixture(scope="session")
def songs(once) -> Path:
    """A folder of two synthetic songs of 2.5 s at 16 kHz, each with its four stems."""
    from lincae.data.tracks import write_synthetic

    def make(folder: Path) -> None:
        write_synthetic(folder / "synthetic", 0, 2, seconds=2.5, sample_rate=16000, workers=1)

    return once("songs", make) / "synthetic" / "test"


@pytest.fixture
def few_songs(songs, monkeypatch):
    """The dataset "synthetic" is these songs, not those that a clone renders for minutes on first use."""
    monkeypatch.setenv("LINCAE_DATA", str(songs.parent.parent))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable():
    """Captured logs may name files that are not UTF-8, which the processes of `pytest -n` cannot send."""
    report = yield
    return sendable(report)


def sendable(value: Any) -> Any:
    """A report with what is not UTF-8 in its texts written as escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: sendable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(sendable(item) for item in value)
    return value
