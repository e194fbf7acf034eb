"""A wheel of this repository serves a user outside of the clone, in an environment of its own."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import soundfile
import torch

ROOT = Path(__file__).parent.parent
PACKED = ("lincae", "data/checkpoints", "pyproject.toml", "README.md", "LICENSE")

pytestmark = pytest.mark.slow


def run(*command, cwd: Path) -> subprocess.CompletedProcess:
    """In `cwd`, with nothing of this clone on the path."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with the wheel, which finds all other packages where these tests do."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    for name in PACKED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)

    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    assert built.returncode == 0, built.stderr
    shutil.rmtree(source)

    environment = folder / "an environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder)
    (packages,) = environment.glob("lib/python3*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    (wheel,) = folder.glob("*.whl")
    pip += ["--python", environment / "bin" / "python"]
    done = run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    return environment / "bin", packages / "lincae"


def relative(folder: Path) -> set[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in files if "__pycache__" not in path.parts}


def test_every_file_is_installed(installed):
    _, package = installed
    bundled = {f"bundled/{name}" for name in relative(ROOT / "data" / "checkpoints")}
    assert relative(package) == relative(ROOT / "lincae") | bundled


def test_models_modules_and_pages_are_found_by_name(installed, tmp_path):
    programs, package = installed
    listed = run(programs / "lincae", "models", cwd=tmp_path)
    assert f"{package}/bundled/desk/lin-cae" in listed.stdout, listed.stderr
    code = (
        "import lincae, torch; from lincae.reencoder.module import stereo_modules\n"
        "from lincae.reencoder.module import ReEncoder\n"
        "model = lincae.load('desk/lin-cae', 'cpu')\n"
        "assert model.decode(model.encode(torch.zeros(1, 999)), 999).shape == (1, 999)\n"
        "for path in stereo_modules(model).values(): ReEncoder.load(path, 'cpu').check_model(model)\n"
        "lincae.load('pca-32x', 'cpu')\n"
        "lincae.load('desk/m2l', 'cpu', linear='linear/desk-m2l')\n"
        "from lincae.listening import asset, desk; assert len(asset('player.js')) > 1000\n"
        "print(lincae.__file__, len(stereo_modules(model)))"
    )
    done = run(programs / "python", "-c", code, cwd=tmp_path)
    assert done.stdout == f"{package}/__init__.py 2\n", done.stderr


def test_a_sound_goes_through_the_commands(installed, tmp_path):
    programs, _ = installed
    (tmp_path / "songs" / "song").mkdir(parents=True)
    for seed, stem in enumerate(("drums", "bass", "other", "vocals")):
        noise = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(seed))
        soundfile.write(tmp_path / "songs" / "song" / f"{stem}.wav", noise, 16000)

    latents = tmp_path / "song.safetensors"
    wav = tmp_path / "songs" / "song" / "drums.wav"
    for command in (
        ["encode", wav, latents, "--model", "desk/lin-cae"],
        ["demo", "stft", "--data", tmp_path / "songs", "--seconds", "1", "--out", tmp_path / "page"],
    ):
        done = run(programs / "lincae", *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert latents.stat().st_size > 1000
    assert (tmp_path / "page" / "index.html").stat().st_size > 50_000


def test_an_installed_package_without_its_data_says_so(installed, tmp_path):
    """Last, since it takes the data away."""
    programs, package = installed
    shutil.rmtree(package / "bundled")
    soundfile.write(tmp_path / "a.wav", torch.zeros(999), 16000)
    command = [programs / "lincae", "encode", "a.wav", "a.safetensors", "--model", "desk/lin-cae"]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "has no bundled checkpoints" in done.stderr
