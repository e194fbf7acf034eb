"""Mixing on latents: what a mixing desk does to waveforms, done to the latents of a linear autoencoder.

    rate = model.latent_rate
    z, placed_s = mix([vocals, fade(band, rate, in_s=2.0)], rate, offsets_s=[0.0, 1.5])
    stereo = model.decode(pan(z, -0.3))  # (2, T)

    python -m lincae.latents encode FOLDER ... OUT --model MODEL     a corpus, continued where it was killed
    python -m lincae.latents encode SONG.wav SONG.safetensors --model MODEL
    python -m lincae.latents mix A.safetensors B.safetensors MIX.safetensors --gains-db 0 -6 --offsets-s 0 1.5
    python -m lincae.latents decode MIX.safetensors MIX.wav --model MODEL
    python -m lincae.latents process MONO.safetensors STEREO.safetensors --module MODULE.safetensors
    python -m lincae.latents info OUT

Each function names the waveform operation that it stands for. For an exactly linear autoencoder both agree,
for others up to their linearity error. A decoder blends neighbouring frames, so a gain that changes is
smoothed: what sounds at a time t has a weighted mean of the gains of the frames whose windows hold t. Where
those frames lie within r seconds of t and the gain changes by s per second at most, it is off by r * s at
most. For the linear reference, and for one STFT frame a latent frame, r is 3 frames.

Frame i stands at the time i / latent_rate. Silence is the latent 0.
Axis legend: `B` batch, `C` latent channels, `L` latent frames, `T` samples. Latents are (B, C, L).
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

LOUDEST_DB = 200.0  # of a gain on the command line
LONGEST_S = 1e9  # of an offset
MIX_VALUES = 2**31  # of a mix, 8 GiB in float32


def check_latents(z: Tensor, name: str = "latents", items: int | None = None) -> Tensor:
    """Return `z` if it is finite, not empty and (B, C, L), B being `items` where given; else ValueError."""
    if z.ndim != 3 or z.numel() == 0 or items not in (None, len(z)):
        raise ValueError(f"{name} must have shape ({items or 'B'}, C, L), got {tuple(z.shape)}")
    if not torch.isfinite(z).all():
        item, channel, frame = (~torch.isfinite(z)).nonzero()[0].tolist()
        raise ValueError(f"{name} are not finite, first at item {item}, channel {channel}, frame {frame}")
    return z


def gain(z: Tensor, amplitude: float | Tensor) -> Tensor:
    """Latents (B, C, L) times an amplitude, or a curve (L,) or (B, L) at the latent rate: g(t) * x(t).

    Raises ValueError for another shape and non-finite values.
    """
    curve = torch.as_tensor(amplitude, dtype=z.dtype, device=z.device)
    if curve.ndim and tuple(curve.shape) not in ((z.shape[-1],), (len(z), z.shape[-1])):
        raise ValueError(f"a gain is a number, (L,) or (B, L), got {tuple(curve.shape)} for {tuple(z.shape)}")
    if not torch.isfinite(curve).all():
        raise ValueError("a gain must be finite")
    return check_latents(z) * (curve[..., None, :] if curve.ndim else curve)


def automation(points: Sequence[tuple[float, float]], n_frames: int, latent_rate: float) -> Tensor:
    """Breakpoints (seconds, dB) as amplitudes (n_frames,), for `gain`: linear in dB between them, constant
    before the first and after the last.

    Raises ValueError for no points, times that do not increase, and values that are not finite (-inf dB has
    no slope: `fade` reaches silence).
    """
    times, levels_db = torch.tensor([*points], dtype=torch.float64).reshape(-1, 2).T.contiguous()
    if (
        len(times) == 0
        or not torch.isfinite(torch.cat([times, levels_db])).all()
        or (times.diff() <= 0).any()
    ):
        raise ValueError(f"points are (seconds, dB), finite, with times that increase, got {list(points)}")
    return 10 ** (_interpolated(times, levels_db, n_frames, latent_rate) / 20)


def fade(
    z: Tensor, latent_rate: float, in_s: float = 0.0, out_s: float = 0.0, length_s: float | None = None
) -> Tensor:
    """Fade in over the first `in_s` seconds and out over the last `out_s`, linearly in amplitude:
    min(1, t / in_s, (length_s - t) / out_s) * x(t).

    `length_s`: of the signal, whose latents may go on for a few frames (default: all of them). Raises
    ValueError for fades that are negative or longer than the signal together.
    """
    length_s = z.shape[-1] / latent_rate if length_s is None else length_s
    if min(in_s, out_s) < 0 or not in_s + out_s <= length_s:
        raise ValueError(f"fades must be >= 0 and fit into {length_s:g} s, got {in_s} s and {out_s} s")
    curve = torch.ones(z.shape[-1], dtype=torch.float64)
    t = torch.arange(z.shape[-1], dtype=torch.float64) / latent_rate
    if in_s:
        curve = curve.minimum(t / in_s)
    if out_s:
        curve = curve.minimum(((length_s - t) / out_s).clamp(min=0))
    return gain(z, curve)


def mix(
    latents: Sequence[Tensor],
    latent_rate: float,
    offsets_s: Sequence[float] | None = None,
    gains: Sequence[float] | None = None,
    exact: bool = False,
) -> tuple[Tensor, list[float]]:
    """Add latents (B, C, L_i), each delayed by its offset and times its gain: sum_i g_i x_i(t - offset_i).

    An offset is rounded to the nearest latent frame, by half a frame at most; with `exact` that is an error.
    Returns the mix (B, C, max(offset_i + L_i)) and the offsets in seconds that were taken.

    Raises ValueError for latents that differ in B or C or are not finite, for offsets that are negative or
    not one for each, likewise gains, and for a mix of more than MIX_VALUES.
    """
    offsets_s = [0.0] * len(latents) if offsets_s is None else list(offsets_s)
    gains = [1.0] * len(latents) if gains is None else list(gains)
    if not len(latents) == len(offsets_s) == len(gains) or not latents:
        counts = f"{len(latents)} latents, {len(offsets_s)} offsets and {len(gains)} gains"
        raise ValueError(f"need at least one latent, and an offset and a gain for each, got {counts}")
    if len(shapes := {tuple(z.shape[:2]) for z in latents}) > 1:
        raise ValueError(f"latents to mix must agree in items and channels (B, C), got {sorted(shapes)}")
    frames = [frame_of(offset, latent_rate, exact) for offset in offsets_s]
    total = max(frame + z.shape[-1] for frame, z in zip(frames, latents, strict=True))
    size = (*latents[0].shape[:2], total)
    if math.prod(size) > MIX_VALUES:
        limit = f"at most {MIX_VALUES} values (8 GiB in float32)"
        raise ValueError(f"a mix can have {limit}, got {size} with offsets up to {max(offsets_s):g} s")
    mixed = latents[0].new_zeros(size)
    for k, (z, frame, amplitude) in enumerate(zip(latents, frames, gains, strict=True)):
        mixed[..., frame : frame + z.shape[-1]] += gain(check_latents(z, f"latents {k}"), amplitude)
    return mixed, [frame / latent_rate for frame in frames]


def frame_of(offset_s: float, latent_rate: float, exact: bool = False) -> int:
    """The latent frame nearest to a time in seconds.

    Raises ValueError for a negative or non-finite time or one beyond LONGEST_S, and with `exact` for one
    between frames (naming the frames around it; a thousandth of a frame passes).
    """
    if not 0 <= offset_s <= LONGEST_S:
        raise ValueError(f"an offset must be finite and >= 0 s, got {offset_s} (at most {LONGEST_S:g} s)")
    frame = round(offset_s * latent_rate)
    if exact and abs(offset_s * latent_rate - frame) > 1e-3:
        low = math.floor(offset_s * latent_rate)
        around = f"{low / latent_rate:.6f} s and {(low + 1) / latent_rate:.6f} s"
        raise ValueError(f"an offset of {offset_s} s lies between latent frames, those at {around}")
    return frame


def pan(z: Tensor, position: float | Tensor = 0.0) -> Tensor:
    """A mono latent (1, C, L) to a stereo one (2, C, L), left and right: cos(a) x(t) and sin(a) x(t).

    `position` from -1 (left, a = 0) to 1 (right, a = pi / 2), a number or a curve (L,): the power is the same
    anywhere, and the centre is -3 dB in each. Raises ValueError for another shape or position.
    """
    position = torch.as_tensor(position, dtype=z.dtype, device=z.device)
    if not (position.abs() <= 1).all():
        raise ValueError("a position must lie between -1 (left) and 1 (right)")
    angle = (position + 1) * (math.pi / 4)
    check_latents(z, "latents to pan", items=1)
    return torch.cat([gain(z, angle.cos()), gain(z, angle.sin())])


def mid_side(z: Tensor) -> Tensor:
    """Left and right (2, C, L) to mid and side: (l + r) / 2 and (l - r) / 2. ValueError for another shape."""
    left, right = check_latents(z, "latents of left and right", items=2)
    return torch.stack([left + right, left - right]) / 2


def left_right(z: Tensor) -> Tensor:
    """Mid and side (2, C, L) to left and right: m + s and m - s. ValueError for another shape."""
    mid, side = check_latents(z, "latents of mid and side", items=2)
    return torch.stack([mid + side, mid - side])


def _interpolated(times: Tensor, values: Tensor, n_frames: int, latent_rate: float) -> Tensor:
    """Piecewise linear `values` (n,) at `times` (n,) in seconds, at each latent frame."""
    t = torch.arange(n_frames, dtype=torch.float64) / latent_rate
    right = torch.searchsorted(times, t).clamp(1, max(len(times) - 1, 1))
    if len(times) == 1:
        return values.expand(n_frames)
    weight = (t - times[right - 1]) / (times[right] - times[right - 1])
    return torch.lerp(values[right - 1], values[right], weight.clamp(0, 1))


# ---------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> None:
    """Exits with 1 and a message for an error; with 3, having done the rest, where files were skipped.

    Under torchrun skipped files leave the status 0: another would end the other processes.
    """
    options = _parser().parse_args(arguments)
    try:
        sys.exit(COMMANDS[options.command](options))
    except (ValueError, OSError, ImportError) as error:
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))


def _parser():
    import argparse

    from lincae.latent_files import DTYPES
    from lincae.latent_sets import CHANNELS

    parser = argparse.ArgumentParser("python -m lincae.latents", description="Latents of audio files.")
    commands = parser.add_subparsers(dest="command", required=True)
    models = argparse.ArgumentParser(add_help=False)
    models.add_argument("--model", required=True, help="a name that lincae.load knows, or a checkpoint")
    models.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    models.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="bf16 is faster")
    dtypes = argparse.ArgumentParser(add_help=False)
    dtypes.add_argument("--dtype", default="float32", choices=DTYPES)

    encode = commands.add_parser("encode", parents=[models, dtypes], help="audio to latents")
    encode.add_argument("audio", nargs="+", help="folders (searched at any depth), or one file")
    encode.add_argument("out", help="a folder, continued if it exists; for one file, its .safetensors")
    encode.add_argument("--channels", default="mean", choices=CHANNELS, help="mean: mono; all: an item each")

    decode = commands.add_parser("decode", parents=[models], help="latents to audio")
    decode.add_argument("latents", help="a .safetensors file, or a folder")
    decode.add_argument("out", help=".wav, .flac or .mp3")
    decode.add_argument("--file", help="of several: its name, as `info` lists it")
    decode.add_argument("--start-s", type=float, default=0.0)
    decode.add_argument("--seconds", type=float, help="default: to the end")
    decode.add_argument("--seed", type=int, default=0)
    decode.add_argument("--steps", type=int, default=1)

    mixing = commands.add_parser("mix", parents=[dtypes], help="add the latents of files")
    mixing.add_argument("latents", nargs="+", help=".safetensors files of one model")
    mixing.add_argument("out", help=".safetensors, a new file")
    mixing.add_argument("--gains-db", nargs="+", type=float, help="one a file (default: 0)")
    mixing.add_argument(
        "--offsets-s", nargs="+", type=float, help="one a file (default: 0), rounded to frames"
    )
    mixing.add_argument("--exact", action="store_true", help="offsets between frames are errors")
    mixing.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")

    process = commands.add_parser("process", parents=[dtypes], help="latents through a Re-Encoder")
    process.add_argument("latents", help=".safetensors of one file")
    process.add_argument("out", help=".safetensors")
    process.add_argument("--module", required=True, help="a .safetensors file of lincae.reencoder")
    process.add_argument("--like", help="mono to stereo: stereo latents, whose image to take")
    process.add_argument("--seed", type=int, default=0, help="mono to stereo: of an image from the prior")
    process.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")

    info = commands.add_parser("info", help="what a file or folder of latents holds")
    info.add_argument("latents")
    return parser


def _model(options, rank: int = 0):
    from lincae.audio import keep_freed_memory, resolve_device
    from lincae.pretrained import load

    device = resolve_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type != "cpu" and device.index is None:  # the processes of one machine share its devices
        device = torch.device(device.type, rank % torch.accelerator.device_count())
    model = load(options.model, str(device))
    if options.precision != getattr(model, "precision", "fp32"):
        if not hasattr(model, "precision"):
            raise ValueError(f"{model.name} works in fp32 only, got --precision {options.precision}")
        model.precision = options.precision
    return model


def _encode(options) -> int:
    from lincae.latent_files import SUFFIX, check_suffix, describe, write_latents
    from lincae.latent_sets import SKIPPED, encode_corpus, encode_file

    out, source = Path(options.out), Path(options.audio[0])
    if single := len(options.audio) == 1 and source.is_file():
        check_suffix(out)
    elif out.suffix == SUFFIX:
        raise ValueError(f"{out} takes one audio file, got {' '.join(options.audio)}: give OUT as a folder")
    model = _model(options, int(os.environ.get("LOCAL_RANK", 0)))
    if single:
        n_samples, latents = encode_file(model, source, options.channels)
        write_latents(out, describe(model), source.name, latents, n_samples, options.dtype)
        return 0
    rank, world = (int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    done = encode_corpus(model, options.audio, out, options.dtype, options.channels, rank, world)
    which = f"process {rank} of {world}: " if world > 1 else ""
    where = f", see {out / SKIPPED}" if done.skipped else ""
    counts = f"{done.present} were encoded before, {len(done.skipped)} skipped{where}"
    print(f"{which}{done.encoded} files encoded ({done.seconds / 3600:.2f} h), {counts}")
    return 3 if done.skipped and world == 1 else 0


def _decode(options) -> None:
    from lincae.latent_sets import LatentDataset
    from lincae.streams import write_blocks

    dataset, model = LatentDataset(options.latents), _model(options)
    file = options.file or dataset.only_file()
    blocks = dataset.decode(model, file, options.start_s, options.seconds, options.seed, options.steps)
    write_blocks(options.out, blocks, model.sample_rate, dataset.entry(file).n_samples)


def _mix(options) -> None:
    from lincae.latent_files import check_same_model, check_suffix, write_latents
    from lincae.latent_sets import LatentDataset

    out = check_suffix(options.out)
    if out.exists() and not options.overwrite:  # with OUT forgotten, the last input would be taken for it
        raise ValueError(f"{out} exists: is OUT missing, the last argument? --overwrite replaces it")
    for level in options.gains_db or []:
        if not level <= LOUDEST_DB:
            raise ValueError(f"--gains-db must be {LOUDEST_DB:g} dB at most, got {level:g}")
    sets = [LatentDataset(path) for path in options.latents]
    for other in sets:
        check_same_model(other.model, sets[0].model, other.source)
    rate, sample_rate = sets[0].model["latent_rate"], sets[0].model["sample_rate"]
    gains = [10 ** (level / 20) for level in options.gains_db or [0.0] * len(sets)]
    latents = [dataset.frames(dataset.only_file()) for dataset in sets]
    mixed, placed_s = mix(latents, rate, options.offsets_s, gains, options.exact)
    n_samples = max(
        round(start_s * sample_rate) + dataset.entry(dataset.only_file()).n_samples
        for start_s, dataset in zip(placed_s, sets, strict=True)
    )
    write_latents(out, sets[0].model, out.stem, [mixed], n_samples, options.dtype)
    print(f"{out}: {len(sets)} files from {', '.join(f'{start_s:.6f} s' for start_s in placed_s)} on")


def _process(options) -> None:
    from lincae.latent_files import check_same_model, check_suffix, write_latents
    from lincae.latent_sets import LatentDataset
    from lincae.reencoder import ReEncoder

    out = check_suffix(options.out)
    module = ReEncoder.load(options.module, options.device)

    def latents(path: str) -> tuple[Tensor, int]:
        dataset = LatentDataset(path)
        check_same_model(dataset.model, module.autoencoder, path)
        return dataset.frames(dataset.only_file()), dataset.entry(dataset.only_file()).n_samples

    z, n_samples = latents(options.latents)
    if module.stereo and len(z) != 1:
        raise ValueError(f"{options.latents} has {len(z)} channels, mono to stereo takes one")
    condition = module.oracle(latents(options.like)[0][None]) if options.like else None
    processed = module.process(z, condition, options.seed)
    whole = [processed[0] if module.stereo else processed]
    write_latents(out, module.autoencoder, out.stem, whole, n_samples, options.dtype)


def _info(options) -> None:
    from lincae.latent_sets import LatentDataset, read_skipped

    dataset = LatentDataset(options.latents)
    entries = [dataset.entry(file) for file in dataset.files]
    seconds = sum(entry.n_samples for entry in entries) / dataset.model["sample_rate"]
    facts = {"model": dataset.model, "dtype": dataset.dtype, "files": len(entries), "hours": seconds / 3600}
    facts |= {"skipped": len(read_skipped(options.latents))} if dataset.source.is_dir() else {}
    print(json.dumps(facts, indent=2))
    for entry in entries:
        shape = f"({entry.channels}, {entry.latent_channels}, {entry.n_frames})"
        name = entry.file.encode(errors="backslashreplace").decode()  # names need not be UTF-8
        print(f"{entry.n_samples / dataset.model['sample_rate']:10.3f} s  {shape:>16}  {name}")


COMMANDS = {"encode": _encode, "decode": _decode, "mix": _mix, "process": _process, "info": _info}

if __name__ == "__main__":
    main()
