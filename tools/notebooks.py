"""Execute notebooks by papermill, for `make reproduce`.

    python tools/notebooks.py 03_homogeneity                   # as it is committed, into runs/notebooks/
    python tools/notebooks.py --evaluate 1 2                   # every second model of the evaluation
    DATASET="my songs" MODELS=m2l python tools/notebooks.py    # the evaluation of other models or data

What `make` was told reaches this script by the environment, where no shell and no make splits a path: DATASET
(a name or a folder), MODELS (names and folders, quoted as in a shell), N_TRACKS, SECONDS_EACH, DEVICE,
MUSDB_PATH and JOBS (notebooks side by side).
"""

import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVALUATION = ("06_ablations", "02_reconstruction", "03_homogeneity", "04_additivity", "05_separation")
"""Notebooks that take other models and data; the first asks for all that the others ask for."""

NEED_STEMS = ("04_additivity", "05_separation")
VIEW = "application/vnd.jupyter.widget-view+json"
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}
"""As `lincae.training.environment.keep_freed_memory`, for the glibc of a kernel that starts."""


def absolute(name: str) -> str:
    """The full path of what exists below the working directory; any other name as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name and path.exists() else name


def asked(environment: Mapping[str, str]) -> tuple[str, dict]:
    """The folder below runs/ that is written, and the parameters of notebooks, for what make was told."""
    dataset = environment.get("DATASET", "")
    models = environment.get("MODELS", "")
    parameters: dict = {}
    folder = "notebooks"
    if dataset or models:
        folder = "evaluation"
    if dataset:
        parameters["dataset"] = absolute(dataset)
        parameters["n_tracks"] = int(environment.get("N_TRACKS") or 1000)
        parameters["seconds"] = float(environment.get("SECONDS_EACH") or 100000)
        folder = dataset
        if parameters["dataset"] != dataset or os.sep in dataset:  # a path: two may end with one name
            digest = hashlib.sha256(parameters["dataset"].encode(errors="surrogateescape")).hexdigest()
            folder = f"{Path(parameters['dataset']).name}-{digest[:8]}"
    if models:
        names = [models] if Path(models).exists() else shlex.split(models)
        parameters["models"] = [absolute(name) for name in names]
    if folder != "notebooks":
        parameters["out_dir"] = str(ROOT / "runs" / folder / "figures")
    if environment.get("DEVICE"):
        parameters["device"] = environment["DEVICE"]
    return folder, parameters


def planned(dataset: str) -> tuple[str, ...]:
    """The notebooks that a data set can be asked: without stems there is nothing to add or to separate."""
    from lincae.data.tracks import tracks

    if dataset and all(len(track.stem_names) == 1 for track in tracks(dataset)):
        return tuple(name for name in EVALUATION if name not in NEED_STEMS)
    return EVALUATION


def execute(name: str) -> None:
    import papermill

    folder, parameters = asked(os.environ)
    written = ROOT / "runs" / folder / f"{name}.ipynb"
    written.parent.mkdir(parents=True, exist_ok=True)
    for variable, value in ALLOCATOR.items():
        os.environ.setdefault(variable, value)
    papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb",
        written,
        parameters,
        kernel_name="python3",
        progress_bar=False,
        log_output=True,
        cwd=ROOT / "notebooks",
    )
    without_views(written)


def evaluate(share: int, n_shares: int) -> None:
    """Evaluate a share of the models, so that the notebooks find their chunks in the store: side by side they
    would compute the same ones."""
    import nbformat

    from lincae.data.tracks import tracks
    from lincae.evaluation.evaluate import evaluate_models
    from lincae.evaluation.protocols import EvaluationConfig
    from lincae.interop.models import listed
    from lincae.training.environment import keep_freed_memory

    keep_freed_memory()
    parameters = asked(os.environ)[1]
    os.chdir(ROOT / "notebooks")
    cells = nbformat.read(f"{EVALUATION[0]}.ipynb", as_version=4).cells
    (defaults,) = (cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ()))
    given: dict = {}
    exec(defaults, given)
    given |= parameters
    config = EvaluationConfig(seconds=given["seconds"], seed=given["seed"], noise=given["noise"])
    if models := listed(given["models"])[share - 1 :: n_shares]:
        music = tracks(given["dataset"], n_tracks=given["n_tracks"])
        evaluate_models(models, music, config=config, store=given["store"], device=given["device"])


def without_views(path: Path) -> None:
    """Take live views out of an executed notebook: without a kernel bars stand still, desks show nothing."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if VIEW not in output.get("data", {})]
    nbformat.write(notebook, path)


def execute_all(names: tuple[str, ...]) -> int:
    """Each in a process of its own, once their models have been evaluated; returns how many failed."""
    jobs = int(os.environ.get("JOBS") or 2)
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))

    def run(*words: str) -> int:
        command = [sys.executable, __file__, *words]
        return subprocess.run(command, env=environment, check=False).returncode

    with ThreadPoolExecutor(jobs) as pool:
        shares = [pool.submit(run, "--evaluate", str(share), str(jobs)) for share in range(1, jobs + 1)]
        if any(share.result() for share in shares):
            return len(names)
        return sum(status != 0 for status in pool.map(run, names))


if __name__ == "__main__":
    if os.environ.get("MUSDB_PATH"):
        os.environ["MUSDB_PATH"] = absolute(os.environ["MUSDB_PATH"])
    if sys.argv[1:2] == ["--evaluate"]:
        evaluate(*map(int, sys.argv[2:]))
    elif sys.argv[1:]:
        execute(sys.argv[1])
    else:
        try:
            names = planned(os.environ.get("DATASET", ""))
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
        sys.exit(execute_all(names))
