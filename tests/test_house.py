"""The rule between the rooms of the package, its environment files and its sizes, held by tests."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lincae"
BARE_MACHINE = {"torch", "numpy", "scipy", "lightning", "safetensors", "tqdm"}
FILES = sorted(PACKAGE.rglob("*.py"))
OUTSIDE_THE_TRAINING_PATH = (
    "interop", "latents", "evaluation", "reencoder", "listening", "commands", "cli.py",
)  # fmt: skip


def named(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Modules that a file imports, as they are written (all imports of the package are absolute)."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def test_rooms_import_downwards_only():
    command = [sys.executable, "-m", "importlinter.cli", "lint"]
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stdout + out.stderr


@pytest.mark.parametrize(
    "path", [p for p in FILES if named(p).split("/")[0] not in OUTSIDE_THE_TRAINING_PATH], ids=named
)
def test_training_path_loads_on_a_bare_machine(path):
    outside = {name.split(".")[0] for name in imports(path, top_level_only=True)} - {"lincae"}
    assert outside - set(sys.stdlib_module_names) <= BARE_MACHINE


def test_import_loads_nothing_optional():
    optional = (
        "soundfile soxr torchaudio pandas matplotlib musdb stempeg av huggingface_hub lightning IPython"
        " transformers diffusers auraloss librosa ipywidgets anywidget seaborn jinja2"
    )
    code = f"import sys, lincae; lincae.load; print(sorted(set(sys.modules) & set({optional.split()!r})))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_paper_can_be_read_in_an_hour():
    def lines(folder):
        return sum(len(path.read_text().splitlines()) for path in folder.glob("*.py"))

    assert lines(PACKAGE) <= 2_200
    assert lines(PACKAGE / "machine") <= 700


def test_linearity_is_one_file_a_stranger_can_lift():
    used = {name.split(".")[0] for name in imports(PACKAGE / "linearity.py")}
    assert used <= {"torch", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_broad_except_and_one_place_for_devices(path):
    text = path.read_text()
    assert not re.search(r"except( Exception| BaseException)?:", text)
    # No other room than the one that chooses devices knows what CUDA is.
    assert named(path) == "machine/__init__.py" or '"cuda' not in text


def test_conda_and_pip_describe_one_environment():
    conda_names = {"pytorch": "torch", "pysoundfile": "soundfile", "soxr-python": "soxr"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = {text.replace(" ", "") for text in project["dependencies"]}
    lines = re.findall(r"^ +- ([a-z][\w.<>=,-]*)", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    conda = set()
    for line in lines:
        name, bound = re.match(r"([a-z][\w-]*)(.*)", line).groups()
        conda.add(conda_names.get(name, name).replace("_", "-") + bound)
    conda -= {"conda-forge", "pip", "ffmpeg", f"python{project['requires-python']}"}
    assert conda == pip


def test_tracked_tree_fits_the_size_budget():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    sizes = [(ROOT / name).stat().st_size for name in listing.stdout.decode().split("\0") if name]
    assert sum(sizes) < 58 * 2**20
