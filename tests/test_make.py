"""What `make` was told reaches the notebooks, whatever a path holds and wherever the clone lies."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.notebooks import EVALUATION, NEED_STEMS, absolute, asked, planned

ROOT = Path(__file__).parent.parent
TOLD = ("DATASET", "MODELS", "MUSDB_PATH", "JOBS")
PYTHON = "#!/bin/sh\nprintf '%s\\n' " + " ".join(f'"{name}=${name}"' for name in TOLD) + ' "$@"\n'


@pytest.fixture
def clone(tmp_path):
    """The Makefile in a folder with a space and an apostrophe, and a Python that prints what it is given."""
    folder = tmp_path / "it's a clone"
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    names = "pyproject.toml .venv/ready notebooks/03_a.ipynb lincae/a.py tools/notebooks.py"
    for name in names.split():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (programs / "python").write_text(PYTHON)
    (programs / "python").chmod(0o755)
    return folder


def made(clone: Path, *arguments: str, **environment: str) -> list[str]:
    environment = {"PATH": os.environ["PATH"], **environment}
    command = ["make", "--silent", *arguments]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else [done.stderr]


@pytest.mark.parametrize("path", ["/x/it's", '/x/50% #1 "best"', "-odd"])
@pytest.mark.parametrize("name", ["DATASET", "MODELS"])
def test_paths_reach_the_notebooks_whole(clone, name, path):
    music = "/data/MUSDB 18's"
    for given in (
        made(clone, "reproduce", f"{name}={path}", f"MUSDB_PATH={music}"),
        made(clone, "reproduce", **{name: path, "MUSDB_PATH": music}),
    ):
        assert f"{name}={path}" in given
        assert f"MUSDB_PATH={music}" in given
        assert given[-1] == "tools/notebooks.py"


def test_a_dollar_is_refused_in_one_line(clone):
    (said,) = made(clone, "reproduce", "DATASET=/x/a$b")
    assert "make reads the dollar in DATASET as its own" in said
    assert len(said.splitlines()) == 1
    assert "DATASET=/x/a$b" in made(clone, "reproduce", DATASET="/x/a$b")


def test_make_alone_prints_the_targets(clone):
    targets = made(clone)
    assert {"make reproduce", "make check", "make music"} <= {" ".join(line.split()[:2]) for line in targets}


def test_the_committed_notebooks_run_where_they_are_stale(clone):
    assert made(clone, "reproduce")[-1] == "03_a"
    (clone / "runs" / "notebooks").mkdir(parents=True)
    (clone / "runs" / "notebooks" / "03_a.ipynb").touch()
    assert "03_a" not in made(clone, "reproduce")


def test_models_are_evaluated_before_the_notebooks_that_show_them(clone):
    (clone / "notebooks" / "06_ablations.ipynb").touch()
    words = made(clone, "reproduce", JOBS="1")
    assert words[len(TOLD) :][:4] == ["tools/notebooks.py", "--evaluate", "1", "1"]
    assert {"03_a", "06_ablations"} <= set(words)
    assert "--evaluate" not in made(clone, "reproduce", JOBS="1")


def test_music_is_fetched_by_the_command(clone):
    words = made(clone, "music")[len(TOLD) :]
    assert words[:4] == ["-m", "lincae", "data", "free-music"]
    assert words.count("shards") == 2  # the training music and what validates it


def test_the_desk_gets_its_models_as_words(clone):
    words = made(clone, "desk", "MODELS='my run' desk/m2l", "DATASET=my songs")
    assert words[len(TOLD) :] == ["-m", "lincae", "desk", "my run", "desk/m2l", "--data", "my songs"]


def test_folders_of_one_name_get_runs_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/songs", "b/songs", "my run"):
        Path(name).mkdir(parents=True)
    folders = {asked({"DATASET": name})[0] for name in ("a", "a/", "b/", "a/songs", "b/songs/")}
    assert len(folders) == 4
    assert asked({"DATASET": "a"}) == asked({"DATASET": "a/"}) == asked({"DATASET": str(tmp_path / "a")})
    assert asked({"DATASET": "musdb"})[0] == "musdb"
    assert asked({}) == ("notebooks", {})
    folder, parameters = asked({"MODELS": "'my run' desk/m2l", "DEVICE": "cpu"})
    assert parameters["models"] == [str(tmp_path / "my run"), "desk/m2l"]
    assert parameters["device"] == "cpu"
    assert parameters["out_dir"] == str(ROOT / "runs" / folder / "figures")
    assert asked({"MODELS": "my run"})[1]["models"] == [absolute("my run")]


def test_a_folder_without_stems_is_not_asked_for_sums(tmp_path, songs):
    assert planned("") == planned(str(songs)) == EVALUATION
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(next(songs.rglob("mixture.wav")), alone)
    assert set(planned(str(alone))) == set(EVALUATION) - set(NEED_STEMS)
