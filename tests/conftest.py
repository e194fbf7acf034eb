"""One thread: small tensors are faster without a pool, and runs side by side do not fight for cores."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Indices of the folders that tests make do not stay in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(config, report):
    """Captured logs may name files that are not UTF-8, which the workers of pytest-xdist cannot send."""
    data = yield
    if data and "sections" in data:
        data["sections"] = [
            (title, text.encode("utf-8", "backslashreplace").decode()) for title, text in data["sections"]
        ]
    return data
