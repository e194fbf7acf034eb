"""Designs of the linear Re-Encoder for two frozen autoencoders, trained alike and measured alike.

    python benchmarks/linear_designs.py                    # designs without rows yet -> linear_designs.csv
    python benchmarks/linear_designs.py "coupling, odd"        # these, again

Needs the shards of `make music`. Every design takes the same batches, encoded once into runs/linear-designs/;
one core trains one in one to three minutes. Medians over 12 pairs of held-out recordings of 2 s, each at gain
0.5, of the frozen autoencoder and of the designs around it; decibels of signal over error, `separation` as
SI-SDR, in comparison with what the frozen autoencoder decodes of the true sum or stem, `against truth` with
the sound itself. `core_s`: seconds of one core for the training, without the encoding.

Three rows of the spectral VAE are no pairs of maps: "trained anew" is `desk/lin-vae`; "told both latents" a
network from the latents of two sounds to those of their sum, with no linear space between: where it fails
too, what is left may not be in the latents; "linear map of the STFT" three frames of the sound itself,
fitted to the latents by least squares, in place of the encoder.

A bypass tells the linear space the sound itself: w = phi(z) + A W STFT(x), W fitted as in that row and A
learned; psi is free. "linear map of the STFT, and psi" is the case without phi, which adds exactly. W counts
among the parameters.
"""

import csv
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from desk_trials import asked_for
from torch import Tensor, nn

import lincae
from lincae import metrics
from lincae.data.crops import training_data
from lincae.interface import AutoencoderLike
from lincae.interop.adapters import adapt
from lincae.interop.references import StftAutoencoder
from lincae.latents.store import describe
from lincae.reencoder.linear import LinearPair, Residual, linearise
from lincae.reencoder.linear_training import (
    VALIDATION_BATCHES,
    EncodedBatches,
    LinearObjective,
    LinearTraining,
    encode_batches,
    relative_error,
)
from lincae.training.config import changed
from lincae.training.loop import train

TABLE = Path(__file__).with_suffix(".csv")
FOLDER = Path("runs/linear-designs")
SHARDS = "shards:runs/free-music-16k"
STEPS = 600
PAIRS, SECONDS, PAIRS_SEED = 12, 2.0, 4321
DESIGNS = {  # name: changes of the defaults of LinearTraining
    "coupling": {},
    "residual": {"pair.design": "residual", "pair.hidden": 48},
    "coupling, odd": {"pair.odd": True},
    "coupling, 10 layers of 3 frames": {"pair.layers": 10, "pair.hidden": 32, "pair.kernel": 3},
    "coupling, 128 frames, half the steps": {"frames": 128, "steps": STEPS // 2},
    "coupling, arithmetic counts twice": {"arithmetic_weight": 2.0},
    "coupling, twice the channels": {"pair.expansion": 2, "pair.hidden": 20},
    "coupling, latent discriminator": {"adversarial_weight": 0.05, "discriminator_channels": 8},
}
BYPASS = {"pair.design": "residual", "pair.hidden": 48, "bypass": "beside phi"}
DESIGNS |= {
    "residual, and a bypass": BYPASS,
    "linear map of the STFT, and psi": BYPASS | {"bypass": "alone"},
}
VAE = {
    "steps": STEPS // 2,
    "tolerated": 0.001,
    "linearity.mixture_weights": "equal",
    "linearity.subtraction_probability": 0.5,
}
SHIPPED = VAE | {"pair.layers": 10, "pair.hidden": 30, "pair.kernel": 3}
FREE = VAE | {"pair.design": "residual", "pair.hidden": 60, "pair.kernel": 3}
VAE_DESIGNS = {  # the same for the spectral VAE; `heard` and `bypass` are no settings, but of this benchmark
    "vae, coupling": SHIPPED,
    "vae, coupling, 16 layers": SHIPPED | {"pair.layers": 16},
    "vae, coupling, as the decoder hears": SHIPPED | {"heard": True},
    "vae, residual, psi need not invert": FREE | {"identity_weight": 0.2, "heard": True},
    "vae, residual, and a bypass": FREE | {"bypass": "beside phi"},
    "vae, linear map of the STFT, and psi": FREE | {"bypass": "alone"},
}
VAE_OTHERS = ("vae, trained anew", "vae, told both latents", "vae, linear map of the STFT")
ROWS = ("frozen", *DESIGNS, "vae, frozen", *VAE_DESIGNS, *VAE_OTHERS)
SCORES = (
    "reconstruction_snr",
    "reconstruction_mss",
    "additivity_snr",
    "sum_against_truth_snr",
    "separation_si_sdr",
    "separation_against_truth_si_sdr",
    "homogeneity_snr_0.25",
    "homogeneity_snr_-1",
    "encoder_additivity",
    "encoder_homogeneity_0.25",
    "encoder_homogeneity_-1",
)
REACH = 8  # latent frames that the decoder's answer to one frame is followed
FITTED_CROPS = 160
TOLD_PAIRS = 448
TOLD_WIDTH = 96


def main() -> None:
    names = asked_for(__doc__, "a row of ROWS")
    torch.set_num_threads(1)
    for name in names or ROWS:
        if name in written() and not names:
            continue
        source, batches = ("desk/vae", 28) if name.startswith("vae") else ("desk/m2l", 64)
        model = lincae.load(source, "cpu")
        row = {"model": source, "design": name, "steps": 0, "core_s": 0, "parameters": 0}
        row |= {"arithmetic": "", "encoder": ""}
        sounds = pairs(model.sample_rate)
        if name == "vae, told both latents":
            found, facts = told_both(model, *sounds)
        else:
            measured, facts = model, {}
            if name in DESIGNS | VAE_DESIGNS:
                measured, facts = trained(model, name, batches)
            elif name == "vae, linear map of the STFT":
                measured, facts = fitted(model)
            elif name == "vae, trained anew":
                measured = lincae.load("desk/lin-vae", "cpu")
            found = scores(measured, *sounds)
        row |= facts | {key: f"{found[key]:.3f}" if key in found else "" for key in SCORES}
        print(row, flush=True)
        rows = written() | {name: row}
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerows(rows.values())


def written() -> dict[str, dict[str, str]]:
    """The rows of the table by design."""
    if not TABLE.exists():
        return {}
    return {row["design"]: row for row in csv.DictReader(TABLE.open())}


def pairs(sample_rate: int) -> tuple[Tensor, Tensor]:
    """Pairs of held-out excerpts `(PAIRS, T)`."""
    held_out = training_data(f"{SHARDS}-valid", sample_rate)
    crops = held_out.crops(range(2 * PAIRS), int(SECONDS * sample_rate), PAIRS_SEED)
    return 0.5 * crops[:PAIRS], 0.5 * crops[PAIRS:]


def trained(model: AutoencoderLike, name: str, batches: int) -> tuple[AutoencoderLike, dict[str, float]]:
    """The model between the trained maps of a design, and what training took and reached."""
    changes = dict((DESIGNS | VAE_DESIGNS)[name])
    objective = Heard if changes.pop("heard", False) else LinearObjective
    bypass = changes.pop("bypass", "")
    told = model
    if bypass:
        objective = {"beside phi": BesidePhi, "alone": Alone}[bypass]
        told, of_map = beside_stft(model)
    once = dict.fromkeys(("steps", "checkpoint_every", "validate_every"), changes.get("steps", STEPS))
    config = LinearTraining(**once)
    for key, value in changes.items():
        config = changed(config, key.split("."), value)
    folder = FOLDER / Path(model.name).name if name.startswith("vae") else FOLDER
    folder = folder / "bypass" if bypass else folder
    data = training_data(SHARDS, model.sample_rate)
    held_out = training_data(f"{SHARDS}-valid", model.sample_rate)
    data = encode_batches(told, data, config, folder / "batches", batches)
    other_draws = replace(config, seed=config.seed + 1)
    held_out = encode_batches(told, held_out, other_draws, folder / "validation", VALIDATION_BATCHES)

    start = time.process_time()
    goal = objective.build(config, told, data)
    pair = train(goal, data, FOLDER / name, validation=held_out, device="cpu", progress=False)
    facts = {"steps": config.steps, "core_s": round(time.process_time() - start)}
    facts["parameters"] = sum(p.numel() for p in pair.parameters())
    measure = objective if bypass else LinearObjective
    terms = measure(pair, config, told).validate(held_out)
    facts |= {key: f"{terms[key]:.4f}" for key in ("arithmetic", "encoder")}
    if bypass:
        facts["parameters"] += of_map
        return around(told, model, pair, name), facts
    return linearise(model, pair.phi, pair.psi), facts


class Heard(LinearObjective):
    """The arithmetic's errors of latents counted as the frozen decoder would have them, to first order.

    Its answers to one frame of each channel are taken once, before training, by differences of decodes.
    """

    @classmethod
    def build(cls, config: LinearTraining, autoencoder: AutoencoderLike, data: EncodedBatches) -> "Heard":
        goal = super().build(config, autoencoder, data)
        z = data.crops(range(1), 0, 0).targets[: config.batch_size]
        goal.correlations = answers_to_frames(autoencoder, z)
        goal.roots = {}
        return goal

    def heard(self, z: Tensor) -> Tensor:
        """Latents `(B, C, L)` filtered over frames, so that an error has the energy of its decode."""
        n_frames = z.shape[-1]
        if n_frames not in self.roots:
            self.roots[n_frames] = root_of_gain(self.correlations, n_frames)
        spectrum = torch.einsum("fcd,bdf->bcf", self.roots[n_frames], torch.fft.rfft(z))
        return torch.fft.irfft(spectrum, n_frames)

    def distance(self, prediction: Tensor, reference: Tensor, level: Tensor) -> Tensor:
        return super().distance(self.heard(prediction), self.heard(reference), level)


@torch.no_grad()
def answers_to_frames(model: AutoencoderLike, z: Tensor) -> Tensor:
    """Correlations `(REACH + 1, C, C)` between the decoder's answers to a frame of two channels, by how many
    frames the second comes later; the mean over latents `(B, C, L)`, and one on the diagonal of lag 0."""
    hop = round(model.sample_rate / model.latent_rate)
    step = 0.05 * z.std()
    plain = model.decode(z)
    answers = []
    for channel in range(z.shape[1]):
        moved = z.clone()
        moved[:, channel, z.shape[2] // 2] += step
        answers.append(((model.decode(moved) - plain) / step).flatten())
    answers = torch.stack(answers)
    end = answers.shape[1]
    lags = [answers[:, k * hop :] @ answers[:, : end - k * hop].T for k in range(REACH + 1)]
    return torch.stack(lags) / lags[0].diagonal().mean()


def root_of_gain(correlations: Tensor, n_frames: int) -> Tensor:
    """The Hermitian root `(n_frames // 2 + 1, C, C)` of the decoder's gain at every frequency over frames."""
    turns = 2j * torch.pi * torch.outer(torch.arange(n_frames // 2 + 1), torch.arange(len(correlations)))
    phases = (turns / n_frames).exp()
    gain = torch.einsum("fk,kcd->fcd", phases, correlations.to(phases))
    gain = gain + gain.mH - correlations[0]
    values, vectors = torch.linalg.eigh(gain)
    return vectors * values.clamp_min(0).sqrt()[:, None] @ vectors.mH


class Bypass(nn.Module):
    """Latents and what a linear map makes of the sound, `(B, 2 C, L)`, to linear latents `(B, C, L)`; without
    `phi` by the map alone."""

    def __init__(self, scale: Residual, phi: nn.Module | None):
        super().__init__()
        self.register_buffer("latent_std", scale.latent_std.clone())
        self.register_buffer("centre", scale.centre.clone())
        self.phi = phi
        channels = len(scale.centre)
        self.matrix = nn.Parameter(torch.zeros(channels, channels) if phi else torch.eye(channels))

    def forward(self, both: Tensor) -> Tensor:
        z, linear = both.chunk(2, 1)
        bypassed = self.matrix @ linear
        return self.phi(z) + bypassed if self.phi else bypassed


class BesidePhi(LinearObjective):
    """The arithmetic with a bypass in phi; psi makes latents alone."""

    alone = False

    @classmethod
    def build(cls, config: LinearTraining, autoencoder: AutoencoderLike, data: EncodedBatches) -> "BesidePhi":
        torch.manual_seed(config.seed)
        z, _ = data.crops(range(1), 0, 0).parts.chunk(2, 1)
        silence, _ = autoencoder.encode(torch.zeros(1, round(config.crop_s * autoencoder.sample_rate))).chunk(
            2, 1
        )
        pair = LinearPair(replace(config.pair, latent_channels=z.shape[1]), describe(autoencoder))
        pair.fit_start(z, silence)
        pair.phi = Bypass(pair.phi, None if cls.alone else pair.phi)
        return cls(pair, config, autoencoder)

    def distance(self, prediction: Tensor, reference: Tensor, level: Tensor) -> Tensor:
        return super().distance(prediction, reference[:, : prediction.shape[1]], level)

    def load(self, folder: Path, device: str) -> LinearPair:
        return self.model.eval()


class Alone(BesidePhi):
    """The same without phi: what is linear is the map of the sound."""

    alone = True


def beside_stft(model: AutoencoderLike) -> tuple[AutoencoderLike, int]:
    """An encoder to `(B, 2 C, L)`: the model's latents, and those of its linear map of the STFT; and the
    parameters of that map."""
    linear, facts = fitted(model)

    def encode(audio: Tensor) -> Tensor:
        z = model.encode(audio)
        return torch.cat((z, linear.encode(audio)[..., : z.shape[2]]), 1)

    both = adapt(
        encode=encode,
        decode=lambda both: model.decode(both.chunk(2, 1)[0]),
        sample_rate=model.sample_rate,
        name=f"{model.name} and STFT",
        version="least squares",
    )
    return both, facts["parameters"]


def around(told: AutoencoderLike, model: AutoencoderLike, pair: LinearPair, name: str) -> AutoencoderLike:
    """The frozen decoder after psi, and phi of the latents and the sound, as a model."""
    return adapt(
        encode=lambda audio: pair.phi(told.encode(audio)),
        decode=lambda w: model.decode(pair.psi(w)),
        sample_rate=model.sample_rate,
        name=f"{model.name}, {name}",
        version="bypass",
    )


def fitted(model: AutoencoderLike) -> tuple[AutoencoderLike, dict[str, float]]:
    """The frozen decoder after a linear map of three frames of the STFT to its latents, by least squares."""
    start = time.process_time()
    stft = StftAutoencoder(model.sample_rate, round(model.sample_rate / model.latent_rate))

    def frames(audio: Tensor) -> Tensor:
        bins = F.pad(stft.encode(audio), (1, 1))
        return torch.cat([bins[..., k : bins.shape[-1] - 2 + k] for k in range(3)], 1)

    crops = training_data(SHARDS, model.sample_rate).crops(
        range(FITTED_CROPS), int(SECONDS * model.sample_rate), 0
    )
    silence = model.encode(torch.zeros_like(crops[:1])).mean((0, 2))[:, None]
    squares = products = 0
    for some in crops.split(16):
        z = model.encode(some) - silence
        level = z.square().mean((1, 2), keepdim=True).sqrt() + 0.05 * z.std()
        told = (frames(some)[..., : z.shape[2]] / level).transpose(1, 2).flatten(0, 1)
        squares = squares + told.T @ told
        products = products + told.T @ (z / level).transpose(1, 2).flatten(0, 1)
    squares += 1e-4 * squares.diagonal().mean() * torch.eye(len(squares))
    weights = torch.linalg.solve(squares, products).T
    linear = adapt(
        encode=lambda audio: weights @ frames(audio),
        decode=lambda w: model.decode(w + silence),
        sample_rate=model.sample_rate,
        name=f"{model.name}+stft",
        version="least squares",
    )
    return linear, {"core_s": round(time.process_time() - start), "parameters": weights.numel()}


def told_both(model: AutoencoderLike, u: Tensor, v: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Additivity of pairs `(B, T)` by a network that is told the latents of both, and what training took."""
    silence = model.encode(torch.zeros_like(u[:1])).mean((0, 2))[:, None]

    @torch.no_grad()
    def encoded(*sounds: Tensor) -> list[Tensor]:
        return [torch.cat([model.encode(x) for x in some.split(16)]) - silence for some in sounds]

    torch.manual_seed(0)
    crops = training_data(SHARDS, model.sample_rate).crops(range(2 * TOLD_PAIRS), u.shape[1], 0)
    levels_db = -3 - 20 * torch.rand(len(crops), 1)
    first, second = (10 ** (levels_db / 20) * crops).chunk(2)
    known = encoded(first, second, first + second)
    start = time.process_time()
    network = Told(len(silence))
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-3)
    steps = VAE["steps"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    for _ in range(steps):
        drawn = torch.randint(TOLD_PAIRS, (16,))
        begin = torch.randint(known[0].shape[2] - 64, ()).item()
        a, b, both = (z[drawn, :, begin : begin + 64] for z in known)
        optimiser.zero_grad()
        relative_error(network(a, b), both, known[2].std(), VAE["tolerated"]).backward()
        optimiser.step()
        schedule.step()
    facts = {"steps": steps, "core_s": round(time.process_time() - start)}
    facts["parameters"] = sum(p.numel() for p in network.parameters())
    z_u, z_v, z_mixture = encoded(u, v, u + v)
    with torch.no_grad():
        of_sum, decoded = (
            model.decode(z + silence, length=u.shape[1]) for z in (network(z_u, z_v), z_mixture)
        )
    found = {"additivity_snr": metrics.snr_db(of_sum, decoded)}
    found["sum_against_truth_snr"] = metrics.snr_db(of_sum, u + v)
    return {key: values.nanmedian().item() for key, values in found.items()}, facts


class Told(nn.Module):
    """Latents of two sounds, each `(B, C, L)`, to those of their sum, in whichever order they are told."""

    def __init__(self, channels: int):
        super().__init__()
        widths = (2 * channels + 2, TOLD_WIDTH, TOLD_WIDTH, TOLD_WIDTH)
        self.layers = nn.ModuleList(nn.Conv1d(*widths[k : k + 2], 5, padding=2) for k in range(3))
        self.leave = nn.Conv1d(TOLD_WIDTH, channels, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        power = (a.square() + b.square()).mean(1, keepdim=True)
        level = F.avg_pool1d(power, 33, 1, 16, count_include_pad=False).sqrt() + 1e-3
        return a + b + level * (self.half(a, b, level) + self.half(b, a, level))

    def half(self, a: Tensor, b: Tensor, level: Tensor) -> Tensor:
        louder = (a.square().mean(1, keepdim=True) + 1e-6).log()
        louder = louder - (b.square().mean(1, keepdim=True) + 1e-6).log()
        h = F.silu(self.layers[0](torch.cat((a / level, b / level, level.log(), louder), 1)))
        for layer in self.layers[1:]:
            h = h + F.silu(layer(h))
        return self.leave(h)


@torch.no_grad()
def scores(model: AutoencoderLike, u: Tensor, v: Tensor) -> dict[str, float]:
    """Medians over pairs `(B, T)` of sounds and their sums."""
    mixture = u + v

    def decode(z: Tensor) -> Tensor:
        return model.decode(z, length=u.shape[1])

    z_u, z_v, z_mixture = (model.encode(sound) for sound in (u, v, mixture))
    decoded = decode(z_mixture)
    decoded_u = decode(z_u)
    of_sum = decode(z_u + z_v)
    of_difference = decode(z_mixture - z_v)
    found = {
        "reconstruction_snr": metrics.snr_db(decoded, mixture),
        "reconstruction_mss": metrics.mss(decoded, mixture, model.sample_rate),
        "additivity_snr": metrics.snr_db(of_sum, decoded),
        "sum_against_truth_snr": metrics.snr_db(of_sum, mixture),
        "separation_si_sdr": metrics.si_sdr_db(of_difference, decoded_u),
        "separation_against_truth_si_sdr": metrics.si_sdr_db(of_difference, u),
    }
    for gain in (0.25, -1.0):
        found[f"homogeneity_snr_{gain:g}"] = metrics.snr_db(decode(gain * z_mixture), gain * decoded)
    found["encoder_additivity"] = metrics.relative_l2(z_u + z_v, z_mixture)
    for gain in (0.25, -1.0):
        scaled = model.encode(gain * mixture)
        found[f"encoder_homogeneity_{gain:g}"] = metrics.relative_l2(scaled, gain * z_mixture)
    return {key: values.nanmedian().item() for key, values in found.items()}


if __name__ == "__main__":
    main()
