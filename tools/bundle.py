"""Checkpoints that ship: finished runs into data/checkpoints/, in half precision, each with a card.

    python tools/bundle.py runs/study-lin-cae study/lin-cae
    python tools/bundle.py --study runs/study        # every finished run runs/study-NAME as study/NAME
    python tools/bundle.py --reencoder data/checkpoints/reencoder/lin-cae
    python tools/bundle.py --reencoder data/checkpoints/linear    # pairs of `lincae reencoder linear`

The card holds the weights' sha256, which `lincae.load` compares for every bundled model, and
`ReEncoder.load` and `LinearPair.load` for every bundled module. Modules of one folder share a card.
"""

import argparse
import dataclasses
import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lincae.checkpoints import CARD, HASH_ROW, from_dict, read_checkpoint
from lincae.interop.bundled import BUNDLED
from lincae.interop.models import kind_of, load
from lincae.machine import resolve_device
from lincae.machine.files import atomic_write, sha256_of
from lincae.reencoder.linear import KIND as LINEAR
from lincae.reencoder.module import KIND, SIZES
from lincae.reencoder.training import FACTORS, PRESETS, ReEncoderTraining, recipe
from lincae.training.environment import hardware


def bundle(run: str | Path, name: str, folder: str | Path = BUNDLED, **facts: str) -> Path:
    """The EMA weights of a run as fp16 in `folder`/`name`, with the run's CSV logs; returns that folder.

    `facts` go into the card beside what the run recorded, such as `hardware`. Raises FileNotFoundError
    for a run without a checkpoint, ValueError for one that is not finished.
    """
    run, target = Path(run), Path(folder) / name
    if not run.is_dir():
        raise FileNotFoundError(f"{run} does not exist: give the folder of a finished run")
    model = load(run, "cpu")
    _refuse_unfinished(run, model.metadata)
    model.name = name
    model.metadata = {**model.metadata, **facts}
    model.save(target, torch.float16)
    for log in sorted(run.glob("*.csv")):
        shutil.copyfile(log, target / log.name)
    return target


def bundle_study(prefix: str | Path, folder: str | Path = BUNDLED) -> list[Path]:
    """Every run PREFIX-NAME as a bundled model of the prefix's last part, such as study/NAME.

    Says which are left out, since they are not finished. Raises FileNotFoundError where there is none.
    """
    prefix = Path(prefix)
    runs = sorted(prefix.parent.glob(f"{prefix.name}-*/model.safetensors"))
    if not runs:
        raise FileNotFoundError(f"no runs {prefix}-NAME with a model: `make train` makes them")
    bundled = []
    for run in (path.parent for path in runs):
        try:
            bundled.append(bundle(run, f"{prefix.name}/{run.name.removeprefix(prefix.name + '-')}", folder))
        except UnfinishedError as error:
            print(f"left out: {error}", file=sys.stderr)
    return bundled


class UnfinishedError(ValueError):
    """A run or module that stands before its last step."""


def _refuse_unfinished(path: Path, metadata: dict[str, Any]) -> None:
    done, steps = metadata.get("step"), metadata.get("training", {}).get("steps")
    if done != steps:
        raise UnfinishedError(f"{path} stands at step {done} of {steps}: finish it first")


# ---------------------------------------------------------------- Re-Encoders


def reencoder_card(folder: str | Path, **facts: str) -> Path:
    """Write the card of the modules in a folder, or of the linear pairs, a table for each; return its path.

    What is there is taken as it is: its sha256 is the one that loading will ask for. `facts` go into every
    table. What else the card that is there says of a file of the same sha256 stays; of a new file hardware is
    this machine, if it is not told, since `make reencoder` writes the card where it trains. Raises
    FileNotFoundError for a folder without modules; ValueError for a file of another kind, a module that is
    not finished and one that no command of `lincae reencoder` makes.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no modules (*.safetensors): `make reencoder` trains them")
    machine = {"hardware": hardware(resolve_device("auto"))}
    former = _tables(folder / CARD)
    kind = kind_of(paths[0], (KIND, LINEAR))
    title = f"Re-Encoders of {folder.name}"
    says = "Modules over latents, in half precision (`make reencoder`)."
    if kind == LINEAR:
        title = "Linear Re-Encoders"
        says = "Pairs of maps around frozen autoencoders, in half precision."
    parts = [f"# {title}", "", says, ""]
    for path in paths:
        description, tensors = read_checkpoint(path, kind)
        owner, metadata = description["autoencoder"], description["metadata"]
        if "training" not in metadata:
            raise ValueError(f"{path} does not say how it was trained: `lincae reencoder` writes that")
        _refuse_unfinished(path, metadata)
        module, rows, data, command = (_pair if kind == LINEAR else _module)(path, description)
        rows |= {
            "parameters": f"{sum(tensor.numel() for tensor in tensors.values()):,}",
            HASH_ROW.format(path.name): sha256_of(path),
            "autoencoder": f"{owner['name']}, {owner['fingerprint']} (sha256 of weights and settings)",
            "latents": f"{module['latent_channels']} channels at {owner['latent_rate']:.2f} Hz",
            "step": metadata["step"],
            "data": data,
            "training": json.dumps(metadata["training"]),
            "commit": metadata["commit"],
        }
        stated = former.get(path.name, {})
        if stated.get(HASH_ROW.format(path.name)) != rows[HASH_ROW.format(path.name)]:
            stated = {}
        added = {key: text for key, text in stated.items() if key not in {*rows, "command"}}
        rows |= machine | added | facts | {"command": f"`{command}`"}
        parts += [f"## {path.name}", "", "| | |", "|---|---|"]
        parts += [*(f"| {key} | {value} |" for key, value in rows.items()), ""]
    imports = "from lincae.reencoder import ReEncoder"
    use = f'module = ReEncoder.load("{paths[0].as_posix()}")'
    if kind == LINEAR:
        imports = "import lincae"
        use = f'model = lincae.load("{owner["name"]}", linear="{folder.name}/{path.stem}")'
    parts += ["```python", imports, "", use, "```", ""]
    with atomic_write(folder / CARD) as file:
        file.write("\n".join(parts).encode())
    return folder / CARD


def _tables(card: Path) -> dict[str, dict[str, str]]:
    """The rows of every table of a card of modules, by the file that the table is of; none without a card."""
    tables: dict[str, dict[str, str]] = {}
    for line in card.read_text().splitlines() if card.is_file() else ():
        if line.startswith("## "):
            rows = tables.setdefault(line.removeprefix("## "), {})
        elif match := re.fullmatch(r"\| (\w.*?) \| (.*) \|", line):
            rows[match[1]] = match[2]
    return tables


def _module(path: Path, description: dict[str, Any]) -> tuple[dict, dict, str, str]:
    """Configuration, first rows, data and command of a Re-Encoder."""
    metadata, module = description["metadata"], description["reencoder"]
    rows = {"task": module["task"], "objective": metadata["training"]["objective"]}
    if module["task"] == "bandwidth":
        rows["inputs keep"] = f"1/{metadata['factor']} of the band"
    else:
        rows["layout"] = module["layout"]
    command = metadata.get("command") or training_command(path, description)
    return module, rows, f"{metadata['pairs']} songs", command


def _pair(path: Path, description: dict[str, Any]) -> tuple[dict, dict, str, str]:
    """The same of a linear pair. Raises ValueError for one that `lincae reencoder linear` did not make."""
    metadata, pair = description["metadata"], description["linear"]
    if "command" not in metadata:
        raise ValueError(f"{path} does not say its command: `lincae reencoder linear` writes that")
    return pair, {"design": pair["design"], "odd": pair["odd"]}, metadata["data"], metadata["command"]


def training_command(path: Path, description: dict[str, Any]) -> str:
    """The command that trained a module on synthetic songs into `path`, where its header does not say it.

    What differs from the nearest preset stands in it as `--set`. An objective beyond l1 starts, as
    `make reencoder` has it, from the module of the same size that was trained with l1. Raises ValueError for
    a size that has no name.
    """
    metadata, where = description["metadata"], f"{path}: training"
    trained = from_dict(ReEncoderTraining, metadata["training"], where)
    recorded = dataclasses.asdict(trained)
    module, task, objective = trained.module, trained.module.task, trained.objective
    changes = {}
    for preset in PRESETS:
        for size in SIZES:
            named = recipe(task, preset, size, objective, module.layout)
            named = replace(named, module=replace(named.module, latent_channels=module.latent_channels))
            values = dataclasses.asdict(named).items()
            changed = [key for key, value in values if recorded[key] != value]
            if "module" not in changed:
                changes[preset, size] = changed
    if not changes:
        raise ValueError(f"{path} has none of the sizes {', '.join(SIZES)}: {module}")
    preset, size = min(changes, key=lambda names: len(changes[names]))
    words = [task, "--preset", preset, "--size", size]
    words += ["--layout", module.layout] if task == "stereo" else ["--objective", objective]
    words += ["--model", description["autoencoder"]["name"], "--songs", str(metadata["pairs"])]
    if task == "bandwidth" and metadata["factor"] != FACTORS[preset]:
        words += ["--factor", str(metadata["factor"])]
    if objective != "l1":
        words += ["--start", path.with_name(f"{task}-{size.removeprefix('desk-')}-l1.safetensors").as_posix()]
    if changed := changes[preset, size]:
        words += ["--set", *(f"{key}={json.dumps(recorded[key])}" for key in changed)]
    return f"lincae reencoder train {shlex.join([*words, '--out', path.as_posix()])}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python tools/bundle.py", description="A finished run into data/checkpoints/, or a card of modules."
    )
    parser.add_argument("run", nargs="?", help="folder of the run")
    parser.add_argument("name", nargs="?", help="such as desk/lin-cae")
    parser.add_argument("--study", metavar="PREFIX", help="instead: all finished runs PREFIX-NAME")
    parser.add_argument("--reencoder", metavar="FOLDER", help="instead: write the card of its modules")
    parser.add_argument(
        "--fact", nargs="*", default=[], metavar="KEY=TEXT", help="more for the card, such as hardware=..."
    )
    options = parser.parse_args(arguments)
    given = [bool(options.name), bool(options.study), bool(options.reencoder)]
    if given.count(True) != 1 or bool(options.run) != bool(options.name):
        parser.error("give the folder of a run and a name, or --study or --reencoder and what it takes")
    try:
        facts = dict(text.split("=", 1) for text in options.fact)
        if options.reencoder:
            print(reencoder_card(options.reencoder, **facts))
        elif options.study:
            print(*bundle_study(options.study), sep="\n")
        else:
            print(bundle(options.run, options.name, **facts))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
