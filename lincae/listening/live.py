"""Live arithmetic: what a page needs to add latents and decode the sum in a browser, without a server.

The decoder is an ONNX export, run by onnxruntime-web (WebGPU where there is one, else WebAssembly with SIMD),
which is fetched from npm when a page is written, with the licence of the Python package, and is no part of
this repository.
"""

import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lincae.data.tracks import Track
from lincae.interface import AutoencoderLike
from lincae.interop.onnx import DECODER, check_kind, export, library
from lincae.listening import asset

RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_FILES = {"ort.js": "ort.wasm.bundle.min.mjs", "ort.wasm": "ort-wasm-simd-threaded.wasm"}
GPU_FILES = {"gpu.js": "ort.jspi.bundle.min.mjs", "gpu.wasm": "ort-wasm-simd-threaded.jspi.wasm"}
"""With WebGPU, for browsers whose WebAssembly can wait for it: a sixth more to load, where the build for the
others has twice as much."""
SCRIPT = "live.js"
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")
LIVE_FILE = r"\d+-latents\.f16|\d+-noise\.f32|" + "|".join(
    map(re.escape, (DECODER, SCRIPT, *LICENCES, *RUNTIME_FILES, *GPU_FILES))
)
"""The names of what `write_live` writes."""
LONGEST_S = 60.0
"""A stem of a page lasts no longer: its latents are held, and decoded, as a whole."""


def check_live(model: AutoencoderLike, tracks: Sequence[Track], seconds: float) -> None:
    """Raises ValueError for a model that cannot be exported, for music without stems to add, and for excerpts
    longer than a minute or than what the decoder takes at once."""
    check_kind(model)
    if all(len(track.stem_names) < 2 for track in tracks):
        raise ValueError("live arithmetic adds the stems of a track: none of these has more than one")
    for track in tracks:
        heard_s = min(seconds, track.duration_s)
        if heard_s > LONGEST_S:
            raise ValueError(
                f"stems of {track.name!r} last {heard_s:g} s: a page adds {LONGEST_S:g} s at most"
            )
        n_frames = model.latent_frames(round(heard_s * model.sample_rate))
        most = model.config.window_frames
        if n_frames > most:
            most_s = most / model.latent_rate
            limit = f"the export of {model.name} decodes {most} at once, {most_s:.1f} s"
            raise ValueError(f"stems of {track.name!r} have {n_frames} latent frames: {limit}")


def write_live(
    model: AutoencoderLike,
    tracks: Sequence[Track],
    starts_s: Sequence[float],
    titles: Sequence[str],
    seconds: float,
    folder: Path,
    seed: int = 0,
) -> dict[str, Any]:
    """Write decoder, runtime, script and the stems' latents into `folder`; returns what the page is told.

    Latents are float16 `(S, C, L)`, the noise float32, as `model.noise` has it: the page decodes what
    `model.decode` would. Raises as `export` and `fetch_runtime`.
    """
    with tempfile.TemporaryDirectory() as exported:
        export(model, exported)
        folder.mkdir()
        shutil.copy(Path(exported, DECODER), folder / DECODER)
    fetch_runtime(folder)
    (folder / SCRIPT).write_text(asset(SCRIPT), encoding="utf-8")

    told = []
    for number, (track, start_s, title) in enumerate(zip(tracks, starts_s, titles, strict=True)):
        if len(track.stem_names) < 2:
            continue
        stems = track.stems(model.sample_rate, start_s, seconds)
        latents = model.encode(stems).cpu()
        noise = model.noise(0, latents.shape[-1], seed).cpu()
        names = {"latents": f"{number}-latents.f16", "noise": f"{number}-noise.f32"}
        (folder / names["latents"]).write_bytes(latents.to(torch.float16).numpy().tobytes())
        (folder / names["noise"]).write_bytes(noise.numpy().tobytes())
        shape = {"shape": list(latents.shape), "noise_shape": list(noise.shape), "samples": stems.shape[1]}
        told.append({"title": title, "stems": list(track.stem_names)} | names | shape)
    first = (DECODER, told[0]["latents"], told[0]["noise"])
    n_bytes = {}
    for provider, files in (("wasm", RUNTIME_FILES), ("webgpu", GPU_FILES)):
        n_bytes[provider] = sum((folder / name).stat().st_size for name in (*files, *first))
    return {"model": model.name, "sample_rate": model.sample_rate, "bytes": n_bytes, "tracks": told}


def fetch_runtime(folder: Path) -> None:
    """Put onnxruntime-web and its licence into `folder`. Raises OSError with what npm said where it is not to
    be had; ImportError without the Python package."""
    licensed = Path(library("onnxruntime").__file__).parent
    with tempfile.TemporaryDirectory() as place:
        command = ["npm", "pack", RUNTIME, "--json", "--prefer-offline", "--pack-destination", place]
        try:
            packed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=place)
        except FileNotFoundError as error:
            raise OSError(
                f"live arithmetic needs {RUNTIME}: npm, which fetches it, is not installed"
            ) from error
        except subprocess.CalledProcessError as error:
            raise OSError(f"npm could not fetch {RUNTIME}: {error.stderr.strip()[-300:]}") from error
        archive = Path(place, json.loads(packed.stdout)[0]["filename"])
        with tarfile.open(archive) as files:
            for name, packed_name in (RUNTIME_FILES | GPU_FILES).items():
                (folder / name).write_bytes(files.extractfile(f"package/dist/{packed_name}").read())
    for name in LICENCES:
        shutil.copy(licensed / name, folder / name)
