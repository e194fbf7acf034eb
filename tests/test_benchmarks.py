"""The scripts of benchmarks/: all say what they take, and the one for a GPU runs as far as a CPU goes."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
TABLES = sorted((ROOT / "benchmarks").glob("*.csv"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_starts_nothing(path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("usage:")


@pytest.mark.slow
def test_a_pretended_gpu_takes_every_path_and_writes_nothing():
    before = {path: path.read_bytes() for path in TABLES}
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--pretend", "--minutes", "30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("smoke ")]
    assert len(said) > 12
    assert all(line.endswith(" ok") for line in said)
    paths = " ".join(said)
    for name in ("lin-bypass", "lin-vae", "compiled", "bf16", "Re-Encoder l1+gan", "linear pair"):
        assert name in paths
    assert sorted((ROOT / "benchmarks").glob("*.csv")) == TABLES
    assert {path: path.read_bytes() for path in TABLES} == before
