"""The command `lincae`: help without a moment's wait, errors of one style, and each subcommand once."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
import soundfile
import torch

import lincae
from lincae import commands as cli
from lincae.latents.store import LatentDataset

ROOT = Path(__file__).parent.parent


def run(*words) -> int | str | None:
    """The exit status, or the error that is printed."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as ended:
        return ended.code
    return 0


def leaves(group: click.Group, *path: str):
    """Every subcommand with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, cli.Later):
            command = command.make_context(name, [], resilient_parsing=True).command
        if isinstance(command, click.Group):
            yield from leaves(command, *path, name)
        else:
            yield (*path, name), command


COMMANDS = dict(leaves(cli.lincae))
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def parsed(line: str) -> None:
    """Raises click.UsageError for a command line that `lincae` does not take."""
    words = line.partition(" #")[0].split()
    words = words[words.index("lincae") + 1 :]
    (path,) = [path for path in COMMANDS if tuple(words[: len(path)]) == path] or [()]
    assert path, f"{line}: no such command"
    COMMANDS[path].make_context(path[-1], words[len(path) :])


def test_help_imports_neither_torch_nor_any_command():
    code = (
        "import sys; from lincae.cli import lincae\n"
        "lincae.main(['--help'], 'lincae', standalone_mode=False)\n"
        "heavy = {name for name in sys.modules if name.startswith(('torch', 'numpy', 'lincae.commands.'))}\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in cli.COMMANDS)
    assert "..." not in done.stdout.partition("Commands:")[2], "a summary is cut"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_shows_an_example_that_it_takes(path, capsys):
    assert run(*path, "--help") == 0
    examples = re.findall(r"^ +((?:torchrun .*)?lincae .*)$", capsys.readouterr().out, re.MULTILINE)
    assert any(example.split("lincae ")[-1].startswith(" ".join(path)) for example in examples)
    for example in examples:
        parsed(example.replace('"my songs"', "songs"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_of_the_documentation_are_taken(page):
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^ *((?:\w+ --[\w-]+.* )?lincae [a-z].*)$", text, re.MULTILINE)
    inline = re.findall(r"`(lincae [a-z]+ [^`\n]+)`", text)
    for line in [*lines, *inline]:
        parsed(line)


def test_names_are_completed_without_importing_commands():
    words = {"_LINCAE_COMPLETE": "bash_complete", "COMP_WORDS": "lincae re", "COMP_CWORD": "1"}
    code = "import sys; from lincae.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["plain,reencoder", "plain,report"], done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["mixx"], "No such command 'mixx'. Did you mean 'mix'?"),
        (["mix", "--gain-db", "1"], "No such option '--gain-db'. Did you mean '--gains-db'?"),
        (["train", "--variant", "m2"], "'m2' is not one of"),
        (["encode", "a.wav", "b.safetensors"], "Missing option '--model'"),
        (["mix", "a", "b", "--gains-db", "loud"], "'loud' is not a valid float"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_words_that_are_not_known(words, told, capsys):
    assert run(*words) == 2
    printed = capsys.readouterr()
    assert not printed.out
    error = printed.err.splitlines()[-1]
    assert error.startswith("error: ")
    assert told in error


def test_errors_are_one_sentence_with_notes_and_bugs_keep_their_traceback(monkeypatch):
    from lincae.commands import models as command

    def fails(error):
        raise error

    full = OSError("the disk is full")
    full.add_note("training stopped at step 3")
    monkeypatch.setattr(command.known, "sources", lambda: fails(full))
    assert run("models") == "error: the disk is full\ntraining stopped at step 3"
    monkeypatch.setattr(command.known, "sources", lambda: fails(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run("models")


def test_an_interrupt_ends_the_process_as_one():
    # A shell that puts the tests into the background has its children ignore the signal.
    code = (
        "import os, signal, lincae.commands.models as command; from lincae.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "command.known.sources = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "main(['models'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT


def test_gains_that_begin_with_a_dash(tmp_path):
    """A gain of -inf dB is silence: the mix is the other file."""
    for seed, name in enumerate("ab"):
        noise = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(seed))
        soundfile.write(tmp_path / f"{name}.wav", noise, 16000)
        files = (tmp_path / f"{name}.wav", tmp_path / f"{name}.safetensors")
        assert run("encode", *files, "--model", "stft") == 0
    files = [tmp_path / f"{name}.safetensors" for name in ("a", "b", "mix")]
    for order in (["--gains-db", "0", "-inf", *files], [*files, "--gains-db", "0", "-1e9"]):
        assert run("mix", *order, "--overwrite") == 0
        mixed, alone = (LatentDataset(path) for path in (files[2], files[0]))
        torch.testing.assert_close(mixed.frames("mix"), alone.frames("a.wav"))


def test_evaluate_writes_what_it_measures(songs, tmp_path, capsys):
    assert run("evaluate", "stft", "tanh", "--data", songs, "--out", tmp_path, "--seconds", 2) == 0
    cells = pd.read_csv(tmp_path / "tables.csv")
    assert set(cells.model) == set(pd.read_csv(tmp_path / "chunks.csv").model) == {"stft", "tanh"}
    assert cells.query("model == 'stft' and column == 'hom_enc'").value.item() < 1e-3
    assert "hom_enc" in capsys.readouterr().out


def test_report_writes_a_page(songs, tmp_path, capsys):
    words = ["--n-tracks", 1, "--out", tmp_path / "new", "--seconds", 2]
    assert run("report", "stft", "--data", songs, *words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "new" / "report.html")
    assert "stft" in (tmp_path / "new" / "report.html").read_text()
    assert set(pd.read_csv(tmp_path / "new" / "report.csv").model) == {"stft"}
    assert "choose from" in run("report", "nothing", "--data", songs, "--out", tmp_path)


def test_demo_writes_a_page(songs, tmp_path):
    words = ["--n-tracks", 1, "--seconds", 1, "--out", tmp_path / "page", "--url", "https://example.org/a/"]
    assert run("demo", "stft", "--data", songs, *words) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert len(page) > 50_000
    assert 'content="https://example.org/a/card.png"' in page
    assert "cannot be part of a published page" in run("demo", "stft", "--data", "clip", "--out", tmp_path)


@pytest.mark.slow
def test_a_released_card_s_command_still_trains(songs, tmp_path):
    command = ["-m", "lincae.training", "--preset", "test", "--variant", "m2l", "--data", f"{songs}=1"]
    command += ["--set", "steps=2", "--run", str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert lincae.load(tmp_path / "run", "cpu").metadata["step"] == 2
