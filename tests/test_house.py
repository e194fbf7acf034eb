"""The layering of the package, its environment files and its rules, held by tests."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lincae"
MAY_IMPORT = {  # room -> rooms of the package that it may enter
    "__init__": {"_torchaudio", "autoencoder", "linearity", "presets", "pretrained", "recipes"}
    | {"spectral_vae"},
    "_torchaudio": set(),
    "audio": set(),
    "transform": set(),
    "linearity": set(),
    "consistency": set(),
    "layers": set(),
    "convnext": set(),
    "network": {"layers"},
    "synth": set(),
    "metrics": set(),
    "protocols": {"audio", "metrics"},
    "probes": {"audio", "protocols"},
    "evaluation": {"audio", "metrics", "probes", "protocols"},
    "report": {"audio", "evaluation", "probes", "protocols", "report_page", "tables"},
    "report_page": {"audio", "plots", "tables"},
    "adapters": {"audio"},
    "codecs": {"audio", "baselines"},
    "tables": set(),
    "foreign": set(),
    "clap": {"audio", "foreign"},
    "baselines": {"audio"},
    "bundle": {"audio", "checkpoints", "pretrained", "reencoder", "reencoder_recipes", "runs"},
    "runs": {"audio"},
    "streams": {"audio"},
    "latent_files": {"audio", "runs"},
    "latent_sets": {"audio", "latent_files", "streams", "tracks"},
    "latents": {"audio", "latent_files", "latent_sets", "pretrained", "reencoder", "streams"},
    "stereo": {"audio"},
    "reencoder": {"audio", "checkpoints", "convnext", "latent_files"},
    "reencoder_recipes": {"reencoder"},
    "latent_objectives": {"metrics"},
    "latent_pairs": {"audio", "latent_files", "latent_sets", "pretrained", "stereo", "synth", "tracks"},
    "reencoder_training": {"audio", "latent_files", "latent_objectives", "latent_pairs", "pretrained"}
    | {"reencoder", "reencoder_recipes", "runs"},
    "reencoder_evaluation": {"audio", "latent_pairs", "latents", "metrics", "reencoder", "tables"},
    "plots": {"audio"},
    "studies": {"audio", "autoencoder", "metrics"},
    "loudness": set(),
    "mixing": {"audio", "latents", "loudness", "metrics", "reencoder", "tracks"},
    "controls": {"loudness", "mixing"},
    "demo": {"audio", "latent_pairs", "loudness", "metrics", "plots", "protocols", "reencoder", "tracks"},
    "listening": {"audio", "controls", "loudness", "metrics", "mixing", "plots", "pretrained", "reencoder"}
    | {"tracks"},
    "windows": set(),
    "checkpoints": set(),
    "presets": {"consistency", "network", "transform"},
    "framewise": {"audio", "checkpoints", "transform", "windows"},
    "autoencoder": {"audio", "consistency", "framewise", "network", "presets", "windows"},
    "spectral_vae": {"convnext", "framewise", "presets"},
    "optimisers": set(),
    "recipes": {"presets", "linearity", "consistency", "optimisers"},
    "objective": {"autoencoder", "consistency", "framewise", "linearity", "recipes"},
    "discriminator": set(),
    "vae_objective": {"discriminator", "linearity", "objective", "recipes", "spectral_vae", "transform"},
    "tracks": {"audio", "synth"},
    "corpora": {"audio", "tracks"},
    "shards": {"audio", "corpora", "tracks"},
    "data": {"audio", "corpora", "shards", "synth", "tracks"},
    "training": {"audio", "autoencoder", "corpora", "data", "linearity"}
    | {"objective", "optimisers", "recipes", "runs", "spectral_vae", "vae_objective"},
    "pretrained": {"audio", "autoencoder", "baselines", "checkpoints", "codecs", "consistency"}
    | {"foreign", "network", "presets", "spectral_vae", "transform"},
}
BARE_MACHINE = {"torch", "numpy", "scipy", "lightning", "safetensors", "tqdm"}
TRAINING_PATH = (
    "synth",
    "audio",
    "tracks",
    "corpora",
    "shards",
    "data",
    "transform",
    "linearity",
    "consistency",
    "layers",
    "network",
    "windows",
    "checkpoints",
    "presets",
    "framewise",
    "autoencoder",
    "convnext",
    "spectral_vae",
)
TRAINING_PATH += ("optimisers", "recipes", "objective", "discriminator", "vae_objective", "runs", "training")
ROOMS = sorted(path.stem for path in PACKAGE.glob("*.py"))


def imports(room: str, top_level_only: bool = False) -> set[str]:
    """Modules that a room imports, relative ones as `lincae.<room>`."""
    tree = ast.parse((PACKAGE / f"{room}.py").read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "lincae" if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {f"{module}.{a.name}" for a in node.names} if module == "lincae" else {module}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_import_direction(room):
    entered = {name.split(".")[1] for name in imports(room) if name.startswith("lincae.")}
    assert entered <= MAY_IMPORT[room], f"{room} enters {entered - MAY_IMPORT[room]}"


@pytest.mark.parametrize("room", TRAINING_PATH)
def test_training_path_loads_on_a_bare_machine(room):
    outside = {name.split(".")[0] for name in imports(room, top_level_only=True)} - {"lincae"}
    assert outside - set(sys.stdlib_module_names) <= BARE_MACHINE


def test_import_loads_nothing_optional():
    optional = (
        "soundfile soxr torchaudio pandas matplotlib musdb stempeg av huggingface_hub lightning IPython"
    )
    optional += " transformers diffusers auraloss librosa ipywidgets anywidget"
    code = f"import sys, lincae; print(sorted(set(sys.modules) & set({optional.split()!r})))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_linearity_is_one_file_a_stranger_can_lift():
    assert {name.split(".")[0] for name in imports("linearity")} <= {"torch", *sys.stdlib_module_names}


@pytest.mark.parametrize("room", ROOMS)
def test_package_is_thin(room):
    text = (PACKAGE / f"{room}.py").read_text()
    assert len(text.splitlines()) <= 400
    assert not re.search(r"except( Exception| BaseException)?:", text)
    # audio.py chooses devices, training.py precision by device: no other room knows what CUDA is.
    assert room in ("audio", "training") or '"cuda' not in text


def test_package_size():
    """Lines of code: what is left without blank lines, comments and docstrings."""
    assert sum(len(ast.unparse(code_only(room)).splitlines()) for room in ROOMS) < 8500


def code_only(room: str) -> ast.Module:
    tree = ast.parse((PACKAGE / f"{room}.py").read_text())
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


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
    assert sum(sizes) < 48 * 2**20
