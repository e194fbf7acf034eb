"""Linear Re-Encoders: pairs that invert, what they learn, that autoencoders stay as they are, bad input."""

import dataclasses
import math
import re
import warnings

import pytest
import torch

import lincae
from lincae.cli import main
from lincae.data.audio import write_audio
from lincae.interface import AutoencoderLike
from lincae.interop.bundled import BUNDLED
from lincae.interop.codecs import Oobleck
from lincae.interop.references import StftAutoencoder, TanhToy
from lincae.latents.store import LatentDataset, LatentFileError, describe
from lincae.linearity import LinearityConfig
from lincae.machine import generator
from lincae.metrics import relative_l2
from lincae.reencoder import linear as linear_reencoder
from lincae.reencoder.linear import LinearConfig, LinearPair, linearise, mean_around
from lincae.reencoder.linear_training import (
    LinearObjective,
    LinearTraining,
    encode_batches,
    encoded,
    mixed,
)
from lincae.training.loop import train
from lincae.training.processes import NonFiniteError
from tests.fuzzing import fuzz
from tools.bundle import reencoder_card

RATE = 8000
OWNER = {"name": "owner", "fingerprint": "0" * 64, "sample_rate": RATE, "latent_rate": RATE / 64}
DESIGNS = [(design, odd) for design in ("coupling", "residual") for odd in (False, True)]
SMALL = LinearConfig(latent_channels=6, layers=2, hidden=8, kernel=3, norm_frames=16)


class Noise:
    """Training data: noise of many levels, up to where a tanh bends it."""

    sample_rate = RATE
    description = "noise"
    n_samples = math.inf

    def crops(self, indices, length, seed):
        if length > self.n_samples:
            raise ValueError(f"noise: a crop of {length} samples is longer than the data, {self.n_samples}")
        items = [0.4 * torch.randn(length, generator=generator(seed, i)) for i in indices]
        return torch.stack(items)


class Counted:
    """An autoencoder that counts what is asked of it."""

    def __init__(self, model):
        self.model = model
        self.name, self.sample_rate, self.latent_rate = model.name, model.sample_rate, model.latent_rate
        self.fingerprint = model.fingerprint
        self.encoded = self.decoded = 0

    def encode(self, audio):
        self.encoded += len(audio)
        return self.model.encode(audio)

    def decode(self, z, length=None, seed=0):
        self.decoded += len(z)
        return self.model.decode(z, length, seed)


def small(design="coupling", odd=False, moved=0.05, **changes):
    """A pair whose weights are away from their start, where zeros hide wiring errors."""
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, design=design, odd=odd, **changes)
    pair = LinearPair(config, OWNER).eval()
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(moved * torch.randn(parameter.shape))
    return pair


def latents(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def settings(design="coupling", layers=2, **changes):
    pair = dataclasses.replace(SMALL, design=design, layers=layers, kernel=1, norm_frames=8)
    fast = {"steps": 4, "batch_size": 2, "crop_s": 0.1, "warmup_steps": 2, "encoded_batches": 3}
    fast["frames"] = 0
    return LinearTraining(pair=pair, **fast | {"log_every": 2, "checkpoint_every": 2} | changes)


def run(config, model, folder, data=None, **options):
    data = data or Noise()
    goal = LinearObjective.build(config, model, data)
    return train(goal, data, folder, device="cpu", progress=False, **options)


# ---------------------------------------------------------------- the maps


@pytest.mark.parametrize(("design", "odd"), DESIGNS)
def test_a_new_pair_is_the_identity_and_silence_becomes_zero(design, odd):
    pair = small(design, odd, moved=0.0)
    z = latents(2, 6, 40)
    torch.testing.assert_close(pair.process(z), z, rtol=1e-3, atol=1e-3)
    pair.fit_start(z + 1, torch.ones(1, 6, 9))
    assert pair.process(torch.ones(1, 6, 9)).abs().max() < 1e-5
    torch.testing.assert_close(pair.process(pair.process(z), inverse=True), z, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("design", "odd"), DESIGNS)
@pytest.mark.parametrize("level", [1e-4, 1.0, 30.0])
def test_a_coupling_inverts_and_an_odd_map_is_odd(design, odd, level):
    """At any level, also far outside the range in which a tanh bends."""
    pair = small(design, odd)
    z = level * latents(2, 6, 40)
    w = pair.process(z)
    assert relative_l2(w, z).min() > 0.02
    if design == "coupling":
        assert relative_l2(pair.process(w, inverse=True), z).max() < 1e-3
    assert torch.equal(pair.process(-z), -w) == odd


@pytest.mark.parametrize("design", ["coupling", "residual"])
def test_the_linear_space_may_have_twice_the_channels(design):
    pair = small(design, expansion=2)
    z = latents(2, 6, 40)
    w = pair.process(z)
    assert w.shape == (2, 12, 40)
    assert w.square().mean((0, 2)).min() > 0
    if design == "coupling":
        assert relative_l2(pair.process(w, inverse=True), z).max() < 1e-3
    assert pair.process(w + w.flip(0), inverse=True).shape == z.shape
    with pytest.raises(ValueError, match=r"must be \(B, 12, L\)"):
        pair.process(z, inverse=True)


def test_levels_are_means_around_a_frame():
    x = latents(1, 1, 12)
    around = mean_around(x, 5)[0, 0]
    assert around[6].item() == pytest.approx(x[0, 0, 4:9].mean().item(), rel=1e-5)
    assert around[0].item() == pytest.approx(x[0, 0, :5].mean().item(), rel=1e-5)
    torch.testing.assert_close(mean_around(x, 20), x.mean().expand(1, 1, 12))


@pytest.mark.parametrize("design", ["coupling", "residual"])
def test_context_is_no_longer_than_stated(design):
    pair = small(design, norm_frames=4)
    reach = pair.config.context_frames
    z = latents(1, 6, 2 * reach + 40)
    changed = z.clone()
    changed[..., -1] += 1
    same = (pair.process(z) - pair.process(changed)).abs().amax((0, 1))
    assert not same[: -reach - 1].any()
    assert same[-1] > 0


def test_budget_of_the_default_pair():
    """At most 5 % of the desk autoencoder."""
    pair = LinearPair(LinearConfig(latent_channels=16), OWNER)
    own = sum(p.numel() for p in lincae.load("desk/m2l", "cpu").parameters())
    assert sum(p.numel() for p in pair.parameters()) <= 0.05 * own


# ---------------------------------------------------------------- a model like any other


def test_linearised_model(tmp_path):
    model = TanhToy(RATE, hop=6)
    pair = LinearPair(small().config, describe(model)).eval()
    pair.load_state_dict(small().state_dict())
    linear = linearise(model, pair.phi, pair.psi)
    assert isinstance(linear, AutoencoderLike)
    audio = 0.3 * latents(2, 100)
    z = linear.encode(audio)
    assert z.shape == model.encode(audio).shape
    torch.testing.assert_close(
        linear.decode(z, 100), model.decode(model.encode(audio), 100), atol=1e-4, rtol=0
    )
    prints = {model.fingerprint(), linear.fingerprint()}
    prints.add(linearise(TanhToy(RATE, hop=6, drive=2.0), pair.phi, pair.psi).fingerprint())
    prints.add(linearise(model, pair.phi, torch.nn.Identity()).fingerprint())
    assert len(prints) == 4

    half = LinearPair.load(pair.save(tmp_path / "half.safetensors", torch.float16), "cpu")
    torch.testing.assert_close(half.process(z), pair.process(z), rtol=0.02, atol=0.02)
    assert pair.linear_description() == describe(linear)


def test_load_takes_a_pair_of_the_same_autoencoder(tmp_path):
    toy = lincae.load("tanh", "cpu")
    pair = LinearPair(dataclasses.replace(SMALL, latent_channels=toy.hop), describe(toy))
    path = pair.save(tmp_path / "pair.safetensors")
    audio = 0.1 * latents(1, 640)
    linear = lincae.load("tanh", "cpu", linear=path)
    torch.testing.assert_close(linear.decode(linear.encode(audio)), toy.decode(toy.encode(audio)))
    with pytest.raises(LatentFileError, match=r"another model: tanh .*, not of stft"):
        lincae.load("stft", "cpu", linear=path)


@pytest.mark.parametrize(
    "path", sorted((BUNDLED / "linear").glob("*.safetensors")), ids=lambda path: path.stem
)
def test_a_bundled_pair_loads_by_name_and_leaves_reconstruction_as_it_is(path, monkeypatch):
    pair = LinearPair.load(path, "cpu")
    owner = pair.autoencoder["name"]
    frozen = lincae.load(owner, "cpu")
    monkeypatch.chdir(BUNDLED.parent)
    linear = lincae.load(owner, "cpu", linear=f"linear/{path.stem}")
    assert linear.fingerprint() == pair.linear_description()["fingerprint"]
    assert path.stat().st_size < 2**20
    assert sum(p.numel() for p in pair.parameters()) <= 0.05 * sum(p.numel() for p in frozen.parameters())

    sound = 0.1 * latents(1, 4096)
    z = frozen.encode(sound)
    assert relative_l2(linear.decode(linear.encode(sound)), frozen.decode(z)).max() < 0.01
    turned = frozen.encode(-sound)
    assert relative_l2(pair.process(turned), -pair.process(z)) < relative_l2(turned, -z)

    card = (path.parent / "README.md").read_text()
    assert f"## {path.name}" in card
    assert f"| {owner}, {pair.autoencoder['fingerprint']} (" in card
    assert f"| command | `{pair.metadata['command']}` |" in card
    assert not re.search(r"(?<!\w)/(work|tmp|home|root)\b", card)


def test_a_bundled_pair_is_the_one_of_its_card(tmp_path, monkeypatch):
    monkeypatch.setattr(linear_reencoder, "BUNDLED", tmp_path)
    pair = small()
    path = pair.save(tmp_path / "linear" / "mine.safetensors", torch.float16)
    with pytest.raises(
        ValueError, match=r"mine.safetensors has sha256 \w{64}, its card README.md states none"
    ):
        LinearPair.load("linear/mine", "cpu")
    with pytest.raises(ValueError, match="does not say how it was trained"):
        reencoder_card(path.parent)

    facts = {"training": {"steps": 7}, "data": "noise", "step": 7, "commit": "0" * 40}
    pair.metadata = facts
    pair.save(path, torch.float16)
    with pytest.raises(ValueError, match="does not say its command"):
        reencoder_card(path.parent)
    pair.metadata = facts | {"command": "lincae reencoder linear --model owner"}
    pair.save(path, torch.float16)
    card = reencoder_card(path.parent, hardware="an abacus").read_text()
    assert 'lincae.load("owner", linear="linear/mine")' in card
    (path.parent / "README.md").write_text(card.replace("| step |", "| core seconds | 7 |\n| step |"))
    again = reencoder_card(path.parent).read_text()
    assert "| core seconds | 7 |" in again
    assert "| hardware | an abacus |" in again
    assert "| hardware | an abacus |" in card
    assert LinearPair.load("linear/mine", "cpu").config == pair.config

    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="the file was changed after it was bundled"):
        LinearPair.load(path, "cpu")


def test_stereo_goes_through_by_channel_pair():
    """A frozen model of 44.1 kHz stereo: left and right are two items, and every item is its own."""
    settings = {"encoder_hidden_size": 8, "downsampling_ratios": [4, 8], "channel_multiples": [1, 2]}
    settings |= {"decoder_channels": 8, "decoder_input_channels": 4, "audio_channels": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers uses an old weight_norm
        vae = pytest.importorskip("diffusers").AutoencoderOobleck(sampling_rate=44100, **settings)
    model = Oobleck(vae, "stereo", "cpu")
    pair = small(latent_channels=4)
    linear = linearise(model, pair.phi, pair.psi)
    stereo = 0.1 * latents(2, 4410)
    together = linear.encode(stereo)
    torch.testing.assert_close(together[1:], linear.encode(stereo[1:]), rtol=1e-4, atol=1e-5)
    assert linear.decode(together, 4410).shape == stereo.shape


# ---------------------------------------------------------------- what is learned


def test_mixed_does_to_latents_what_augment_does_to_sound():
    """On an exactly linear autoencoder, the arithmetic of the parts is the target, subtraction included."""
    config = dataclasses.replace(settings().linearity, subtraction_probability=0.5)
    batch = encoded(StftAutoencoder(RATE, hop=8), Noise().crops(range(6), 400, 0), config, generator(0))
    torch.testing.assert_close(mixed(batch.parts, batch, config), batch.targets, rtol=1e-4, atol=1e-4)
    assert batch.subtracted.any()


@pytest.mark.slow
@pytest.mark.parametrize("design", ["coupling", "residual"])
def test_on_the_linear_reference_a_pair_stays_the_identity(design, tmp_path):
    """But for a small linear map, which no arithmetic tells."""
    model = StftAutoencoder(RATE, hop=4)
    pair = run(settings(design, steps=100, crop_s=0.05), model, tmp_path)
    z = model.encode(Noise().crops(range(1), 400, 9))
    w = pair.process(z)
    assert relative_l2(w, z) < 0.1
    assert unexplained(w, z) < 1e-3


@pytest.mark.slow
def test_on_the_tanh_toy_phi_is_atanh_and_psi_tanh(tmp_path):
    """Up to a linear map, which no arithmetic tells: at least ten times closer than the identity."""
    model = TanhToy(RATE, hop=4)
    pair = run(settings(steps=150, batch_size=8, layers=1), model, tmp_path)
    z = model.encode(Noise().crops(range(4), 800, 9))
    x = torch.atanh(z)
    assert unexplained(z, x) > 0.05
    assert unexplained(pair.process(z), x) < 0.005
    made = pair.process(pair.process(z) * 2, inverse=True)
    assert relative_l2(made, torch.tanh(2 * x)).max() < 0.02
    # Each channel's curve bends as the tanh does: k / latent_std is 1.
    assert pair.phi.curve.squared.sqrt().div(pair.phi.latent_std).sub(1).abs().max() < 0.05


def unexplained(w, x):
    """Share of w `(B, C, L)` that is no linear map of x, as an amplitude."""
    flat = [values.transpose(0, 1).flatten(1).T.double() for values in (x, w)]
    fitted = flat[0] @ (torch.linalg.pinv(flat[0]) @ flat[1])  # channels may be silent
    return relative_l2(fitted[None], flat[1][None]).item()


def test_the_autoencoder_is_neither_decoded_nor_changed(tmp_path):
    own = lincae.Autoencoder(lincae.recipe("test").autoencoder, "untrained").eval()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    flags = [p.requires_grad for p in own.parameters()]
    model = Counted(own)
    data = Noise()
    data.sample_rate = own.sample_rate
    run(settings(crop_s=0.3, frames=8), model, tmp_path, data)
    assert model.encoded
    assert not model.decoded
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert [p.requires_grad for p in own.parameters()] == flags
    assert all(p.grad is None for p in own.parameters())


@pytest.mark.parametrize(("cached", "adversarial_weight"), [(True, 0.0), (False, 0.0), (True, 0.1)])
def test_a_resumed_run_is_the_same_to_the_bit(cached, adversarial_weight, tmp_path):
    model = TanhToy(RATE, hop=6)
    config = settings(steps=6, frames=24, adversarial_weight=adversarial_weight, discriminator_channels=2)

    def goal_and_data(name):
        data = encode_batches(model, Noise(), config, tmp_path / name, 3, False) if cached else Noise()
        return LinearObjective.build(config, model, data), data

    results = []
    for name, stops in (("whole", [None]), ("parts", [2, None])):
        for stop in stops:
            goal, data = goal_and_data(f"{name}-batches")
            pair = train(goal, data, tmp_path / name, device="cpu", progress=False, stop_at=stop)
        results.append(pair.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_batches_are_encoded_once_and_a_killed_call_continues(tmp_path):
    model = Counted(TanhToy(RATE, hop=6))
    first = encode_batches(model, Noise(), settings(), tmp_path / "batches", 2, False)
    asked = model.encoded
    again = encode_batches(model, Noise(), settings(), tmp_path / "batches", 3, False)
    assert model.encoded == 1.5 * asked
    one, other = (batches.crops(range(2, 4), 0, 0) for batches in (first, again))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for changes in ({"seed": 1}, {"crop_s": 0.2}, {"linearity": LinearityConfig()}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            encode_batches(model, Noise(), settings(**changes), tmp_path / "batches", 3, False)


# ---------------------------------------------------------------- commands


def test_commands_train_convert_and_convert_back(tmp_path, songs):
    toy = lincae.load("tanh", "cpu")
    rate = toy.sample_rate
    (tmp_path / "music").mkdir()
    for number in range(2):
        write_audio(tmp_path / "music" / f"{number}.wav", 0.1 * latents(1, 2 * rate), rate)
    pair = tmp_path / "pair.safetensors"
    common = ["--device", "cpu"]

    def lincae_command(*words):
        main([str(word) for word in words] + common)

    lincae_command(
        "reencoder", "linear", "--model", "tanh", "--data", tmp_path / "music", "--out", pair, "--run",
        tmp_path / "run", "--set", "steps=2", "batch_size=2", "crop_s=0.1", "encoded_batches=2",
        "pair.hidden=4",
    )  # fmt: skip
    song = tmp_path / "song.safetensors"
    lincae_command("encode", tmp_path / "music" / "0.wav", song, "--model", "tanh")
    linear, back = tmp_path / "linear.safetensors", tmp_path / "back.safetensors"
    lincae_command("process", song, linear, "--module", pair)
    lincae_command("process", linear, back, "--module", pair, "--inverse")
    assert LatentDataset(linear).model == describe(lincae.load("tanh", "cpu", linear=pair))
    assert LatentDataset(back).model == describe(toy)
    z = LatentDataset(song).frames("0.wav")
    torch.testing.assert_close(LatentDataset(back).frames("back"), z, rtol=1e-3, atol=1e-3)
    with pytest.raises(SystemExit, match="another model"):
        lincae_command("process", song, back, "--module", pair, "--inverse")


# ---------------------------------------------------------------- bad input


class Odd(TanhToy):
    """A toy whose latents pass through a function."""

    def __init__(self, change):
        super().__init__(RATE, hop=6)
        self.change = change

    def encode(self, audio):
        return self.change(super().encode(audio))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda z: (4 * z).round() / 4, ValueError, "quantised"),
        (lambda z: (4 * z).long(), TypeError, "floating point"),
        (lambda z: (z, z), TypeError, "2 tensors"),
        (lambda z: z + 0.1 * torch.randn_like(z), ValueError, "mean of its posterior"),
        (lambda z: z[0], ValueError, r"\(B, C, L\)"),
    ],
)
def test_encoders_that_no_map_makes_linear(change, error, says):
    with pytest.raises(error, match=rf"tanh.*{says}"):
        LinearObjective.build(settings(), Odd(change), Noise())


def test_data_shorter_than_a_crop(tmp_path):
    data = Noise()
    data.n_samples = 100
    with pytest.raises(ValueError, match="a crop of 800 samples"):
        run(settings(), TanhToy(RATE, hop=6), tmp_path, data)


def test_a_training_that_diverges_names_step_and_last_good_pair(tmp_path):
    model = Odd(lambda z: z)
    goal = LinearObjective.build(settings(), model, Noise())
    model.change = lambda z: z if len(z) != 4 or model.calls() else z * math.nan
    count = iter(range(100))
    model.calls = lambda: next(count) < 6  # two a step: what is added, and what is subtracted
    with pytest.raises(NonFiniteError, match=r"step 3 .*last good checkpoint: .* at step 2"):
        train(goal, Noise(), tmp_path, device="cpu", progress=False)
    assert LinearPair.load(tmp_path / "module.safetensors", "cpu").metadata["step"] == 2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LinearConfig("affine"), "design must be one of"),
        (lambda: LinearConfig(latent_channels=1), "two latent channels"),
        (lambda: LinearConfig(kernel=4), "kernel odd"),
        (lambda: LinearConfig(hidden=0), r"hidden must lie in 1\.\.4096"),
        (lambda: LinearTraining(batch_size=1), "batch_size 1 cannot be shared"),
        (lambda: LinearTraining(crop_s=0.0), "crop_s > 0"),
        (lambda: LinearTraining(tolerated=0.0), "tolerated > 0"),
        (lambda: small().process(latents(1, 5, 9)), r"must be \(B, 6, L\)"),
        (lambda: small().process(latents(1, 6, 9) / 0), "not finite"),
    ],
)
def test_settings_and_latents_that_cannot_be(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_damaged_files(tmp_path):
    path = small().save(tmp_path / "pair.safetensors")
    header_bytes = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    fuzz(path, lambda damaged: LinearPair.load(damaged, "cpu"), header_bytes)
    with pytest.raises(FileNotFoundError, match="nothing"):
        LinearPair.load(tmp_path / "nothing.safetensors")
