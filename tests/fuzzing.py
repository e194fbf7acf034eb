"""Damaged files: whatever a reader is given, it ends in a value or in an error that names the file.

LINCAE_FUZZ sets the number of damaged copies of each file. Without it there are 40, the same in each run.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("LINCAE_FUZZ", "40"))
SECONDS = 60
"""A reader that takes longer, with other work on the machine, hangs."""
SLACK_BYTES = 2**28
"""Room for what a process takes beside the file: stacks, arenas, caches."""
TELLING = b'0123456789"{}[],:.-+eE \x00\x7f\x80\xff'
"""Bytes that change what a header says, rather than break it."""


def damages(size: int, header_bytes: int) -> st.SearchStrategy[tuple[list[tuple[int, int]], int]]:
    """Some bytes to replace, most of them in the header, and the length to cut to."""
    place = st.integers(0, min(header_bytes, size) - 1) | st.integers(0, size - 1)
    byte = st.sampled_from(TELLING) | st.integers(0, 255)
    flips = st.lists(st.tuples(place, byte), max_size=4)
    length = st.just(size) | st.integers(0, size)
    return st.tuples(flips, length)


def fuzz(
    path: Path,
    read: Callable[[Path], Any],
    header_bytes: int = 4096,
    errors: tuple[type[Exception], ...] = (ValueError, OSError),
) -> None:
    """Give `read` damaged copies of the file at `path`, one after the other at that path.

    Each call has to return, or to raise one of `errors` with the file's name in its message, within SECONDS
    and within ten times the size of the file (and SLACK_BYTES) of new memory.
    """
    content = path.read_bytes()
    read(path)  # what is made once, such as imports and threads, is made before memory counts

    @settings(
        max_examples=EXAMPLES,
        derandomize="LINCAE_FUZZ" not in os.environ,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damages(len(content), header_bytes))
    def run(damage):
        flips, length = damage
        changed = bytearray(content)
        for place, byte in flips:
            changed[place] = byte
        path.write_bytes(changed[:length])
        message = path.name
        with limited(10 * len(content) + SLACK_BYTES):
            try:
                read(path)
            except errors as error:
                message = repr(error)
        assert path.name in message

    try:
        run()
    finally:
        path.write_bytes(content)


@contextlib.contextmanager
def limited(n_bytes: int) -> Iterator[None]:
    """Within, more than `n_bytes` of new memory are a MemoryError, and more than SECONDS a TimeoutError."""
    try:
        import resource
    except ImportError:  # Windows has no limits to set
        yield
        return

    def hang(*_):
        raise AssertionError(f"still reading after {SECONDS} s")

    held = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (held + n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
