"""Any object with encode and decode as a model: what is taken, and what is refused, with the reason."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import RATE, Linear, two_tracks
from torch import nn

from lincae.evaluation.protocols import EvaluationConfig
from lincae.evaluation.report import linearity_report
from lincae.interface import AutoencoderLike
from lincae.interop.adapters import adapt, check_trainable
from lincae.machine import generator

HOP = 32


class Plain(nn.Module):
    """(B, 1, T) to (B, 24, L) and back; linear, `n_channels` of audio."""

    def __init__(self, n_channels=1, hop=HOP):
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv1d(n_channels, 24, hop, hop, bias=False)
        self.up = nn.ConvTranspose1d(24, n_channels, hop, hop, bias=False)

    def encode(self, audio):
        return self.down(audio)

    def decode(self, z):
        return self.up(z)


def noise(*shape, seed=0):
    return 0.1 * torch.randn(shape, generator=generator(seed))


def plain(**kwargs):
    return adapt(Plain(), RATE, channels=1, device="cpu", **kwargs)


# ---------------------------------------------------------------- what is taken


def test_a_module():
    model = plain()
    assert isinstance(model, AutoencoderLike)
    assert (model.name, model.sample_rate, model.hop, model.latent_rate) == ("Plain", RATE, HOP, RATE / HOP)
    audio = noise(3, 1001)
    z = model.encode(audio)
    assert z.shape == (3, 24, 32)
    assert not z.requires_grad
    assert model.decode(z, 1001).shape == (3, 1001)
    assert model.decode(z).shape == (3, 1024)
    padded = torch.nn.functional.pad(audio, (0, 23))[:, None]
    torch.testing.assert_close(z, Plain().encode(padded).detach())


def test_callables_without_channels():
    module = Plain()
    model = adapt(
        encode=lambda x: module.encode(x[:, None]),
        decode=lambda z: module.decode(z)[:, 0],
        sample_rate=RATE,
        name="mine",
        device="cpu",
    )
    assert model.name == "mine"
    torch.testing.assert_close(model.encode(noise(2, 320)), plain().encode(noise(2, 320)))


def test_the_report_of_a_linear_module_is_perfect():
    config = EvaluationConfig(window_s=0.5, overlap_s=0.1, chunk_s=1.0)
    report = linearity_report(plain(), two_tracks(seconds=1.0), config, progress=False)
    number = report.linearity().iloc[0]
    assert number.linearity_db == pytest.approx(60.0)


def test_report_asks_for_an_adapter():
    with pytest.raises(TypeError, match=r"Plain has no name, sample_rate, latent_rate: adapt\(model"):
        linearity_report(Plain(), two_tracks(seconds=1.0), progress=False)


def test_what_needs_no_adapter_passes_too():
    reference, adapted = Linear(), adapt(Linear(), RATE, device="cpu")
    audio = noise(2, 1000)
    z = adapted.encode(audio)
    torch.testing.assert_close(z[..., :11], reference.encode(audio)[..., :11])
    torch.testing.assert_close(adapted.decode(z, 1000), audio, atol=1e-5, rtol=1e-4)


def test_dropout_is_off_and_modes_come_back():
    module = Plain()
    module.dropout = nn.Dropout(0.5)
    module.encode = lambda audio: module.dropout(module.down(audio))
    module.train()
    module.up.eval()
    model = adapt(module, RATE, channels=1, device="cpu")
    assert torch.equal(model.encode(noise(1, 320)), model.encode(noise(1, 320)))
    assert (module.training, module.dropout.training, module.up.training) == (True, True, False)


def test_two_dimensional_latents_keep_their_shape_for_the_model():
    module, seen = Plain(), []

    def decode(z):
        seen.append(tuple(z.shape[1:-1]))
        return module.decode(z.flatten(1, 2))

    model = adapt(
        encode=lambda x: module.encode(x).unflatten(1, (4, 6)), decode=decode, sample_rate=RATE, channels=1,
        device="cpu",
    )  # fmt: skip
    z = model.encode(noise(1, 320))
    assert z.shape == (1, 24, 10)
    torch.testing.assert_close(model.decode(z), plain().decode(z))
    assert set(seen) == {(4, 6)}


def test_padding_to_a_multiple():
    module = Plain()

    def encode(audio):
        assert audio.shape[-1] % 256 == 0, "eight frames at a time"
        return module.encode(audio)

    arguments = {
        "encode": encode,
        "decode": module.decode,
        "sample_rate": RATE,
        "channels": 1,
        "device": "cpu",
    }
    with pytest.raises(ValueError, match=r"(?s)eight frames at a time.*multiple=\.\.\. pads the length"):
        adapt(**arguments, multiple=100)
    model = adapt(**arguments, multiple=256)
    assert (model.hop, model.encode(noise(1, 257)).shape[-1]) == (HOP, 16)


# ---------------------------------------------------------------- stochastic encoders


class Posterior(Plain):
    def encode(self, audio):
        return SimpleNamespace(latent_dist=torch.distributions.Normal(super().encode(audio), 0.5))


def test_a_posterior_has_to_be_stated():
    with pytest.raises(
        ValueError, match=r'returns a distribution \(Normal\): state latent="mean", or latent='
    ):
        adapt(Posterior(), RATE, channels=1, device="cpu")
    audio = noise(2, 640)
    mean = adapt(Posterior(), RATE, channels=1, latent="mean", device="cpu").encode(audio)
    torch.testing.assert_close(mean, plain().encode(audio))
    model = adapt(Posterior(), RATE, channels=1, latent="sample", device="cpu")
    draw = model.encode(audio)
    assert (draw - mean).std() == pytest.approx(0.5, rel=0.1)
    torch.manual_seed(99)
    assert torch.equal(model.encode(audio), draw)
    with pytest.raises(
        ValueError, match=r"latent must be one of \('deterministic', 'mean', 'sample'\), got 'mode'"
    ):
        plain(latent="mode")


def test_hidden_sampling_is_found():
    module = Plain()

    def encode(audio):
        z = module.encode(audio)
        return z + 0.3 * torch.randn_like(z)

    arguments = {
        "encode": encode,
        "decode": module.decode,
        "sample_rate": RATE,
        "channels": 1,
        "device": "cpu",
    }
    with pytest.raises(ValueError, match=r"encode is stochastic.*differ by \d+%.*latent=\"sample\""):
        adapt(**arguments)
    model = adapt(**arguments, latent="sample")
    assert torch.equal(model.encode(noise(1, 320)), model.encode(noise(1, 320)))


def test_decoder_noise_follows_the_seed():
    module = Plain()
    model = adapt(
        encode=module.encode,
        decode=lambda z: module.decode(z) + 0.1 * torch.randn(len(z), 1, z.shape[-1] * HOP),
        sample_rate=RATE, channels=1, device="cpu",
    )  # fmt: skip
    z, before = model.encode(noise(1, 320)), torch.random.get_rng_state()
    assert torch.equal(model.decode(z, seed=3), model.decode(z, seed=3))
    assert not torch.equal(model.decode(z, seed=3), model.decode(z, seed=4))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_numbers_that_no_seed_reaches():
    module, rng = Plain(), np.random.default_rng(0)

    def noisy(x):
        return x * float(1 + 0.1 * rng.random())

    arguments = {"sample_rate": RATE, "channels": 1, "device": "cpu", "latent": "sample"}
    with pytest.raises(ValueError, match="encode differs from call to call with one seed"):
        adapt(encode=lambda x: noisy(module.encode(x)), decode=module.decode, **arguments)
    with pytest.raises(ValueError, match="decode differs from call to call with one seed"):
        adapt(encode=module.encode, decode=lambda z: noisy(module.decode(z)), **arguments)


# ---------------------------------------------------------------- discrete latents


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_discrete_and_complex_latents_are_refused(kind):
    module = Plain()
    reason = "real and imaginary" if kind.is_complex else "indices cannot be added or scaled"
    with pytest.raises(ValueError, match=rf"latents are {str(kind)[6:]}: {reason}"):
        adapt(
            encode=lambda x: (100 * module.encode(x)).to(kind), decode=module.decode, sample_rate=RATE,
            channels=1, device="cpu",
        )  # fmt: skip


def test_codecs_that_return_codes_are_refused():
    transformers = pytest.importorskip("transformers")
    tiny = {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [4, 2], "codebook_size": 16}
    codec = transformers.EncodecModel(
        transformers.EncodecConfig(**tiny, sampling_rate=16000, num_lstm_layers=1, target_bandwidths=[16.0])
    )
    with pytest.raises(
        ValueError, match=r"EncodecEncoderOutput with audio_codes, .*discrete.*lincae\.interop\.codecs"
    ):
        adapt(codec, RATE, channels=1, device="cpu")


# ---------------------------------------------------------------- stereo-only models


def test_stereo_only_models():
    with pytest.raises(ValueError, match=r"encode failed on \(1, 1, 8000\).*channels=2 for stereo models"):
        adapt(Plain(2), RATE, channels=1, device="cpu")
    model, audio = adapt(Plain(2), RATE, channels=2, device="cpu"), noise(2, 320)
    both = Plain(2).encode(audio[:, None].repeat(1, 2, 1))
    torch.testing.assert_close(model.encode(audio), both.detach())
    torch.testing.assert_close(model.decode(both.detach()), Plain(2).decode(both).mean(1).detach())
    with pytest.raises(ValueError, match=r"channels must be None, .* or at least 1, got 0"):
        adapt(Plain(2), RATE, channels=0, device="cpu")


def test_a_layout_that_was_not_stated():
    module = Plain()
    with pytest.raises(ValueError, match=r"decode returns \(1, 1, \d+\): with channels=None: \(B, T\)"):
        adapt(
            encode=lambda x: module.encode(x[:, None]), decode=module.decode, sample_rate=RATE, device="cpu"
        )


# ---------------------------------------------------------------- latents of several tensors


def test_several_tensors_have_to_be_joined():
    module = Plain()

    def decode(parts):
        return module.decode(torch.cat([parts[0], parts[1]], 1))

    arguments = {"decode": decode, "sample_rate": RATE, "channels": 1, "device": "cpu"}
    parted = {"encode": lambda x: module.encode(x).split([20, 4], 1)}
    with pytest.raises(
        ValueError, match=r"2 tensors \[\(1, 20, 250\), \(1, 4, 250\)\]: join=True.*log-variance"
    ):
        adapt(**parted, **arguments)
    model = adapt(**parted, **arguments, join=True)
    z = model.encode(noise(2, 320))
    torch.testing.assert_close(z, plain().encode(noise(2, 320)))
    torch.testing.assert_close(model.decode(z), plain().decode(z))
    lengths = {"encode": lambda x: (module.encode(x), module.encode(x)[..., ::2])}
    with pytest.raises(ValueError, match="time last, and of one length"):
        adapt(**lengths, **arguments, join=True)
    with pytest.raises(ValueError, match="encode returns dict"):
        adapt(encode=lambda x: {"z": module.encode(x)}, **arguments)


# ---------------------------------------------------------------- models that change length or rate


def test_models_that_change_the_length():
    module = Plain()
    longer = adapt(
        encode=module.encode, decode=lambda z: nn.functional.pad(module.decode(z), (0, 7)), sample_rate=RATE,
        channels=1, device="cpu",
    )  # fmt: skip
    z = longer.encode(noise(1, 320))
    assert (longer.hop, longer.decode(z, 320).shape) == (HOP, (1, 320))
    torch.testing.assert_close(longer.decode(z, 320), plain().decode(z, 320))
    with pytest.raises(ValueError, match=r"decodes 15990 of 16000 samples: .*has to be padded in encode="):
        adapt(
            encode=module.encode, decode=lambda z: module.decode(z)[..., :-10], sample_rate=RATE, channels=1,
            device="cpu",
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"length must lie in 1\.\.320, what 10 latent frames hold, got 321"):
        plain().decode(z, 321)


def test_models_that_change_the_rate():
    module = Plain()
    doubled = {
        "encode": module.encode,
        "decode": lambda z: module.decode(z).repeat_interleave(2, -1),
        "sample_rate": RATE,
        "channels": 1,
        "device": "cpu",
    }
    with pytest.raises(ValueError, match=r"decodes 32000 of 16000 samples.*output_rate \(here 32000\?\)"):
        adapt(**doubled)
    model = adapt(**doubled, output_rate=2 * RATE)
    assert (model.hop, model.latent_rate) == (HOP, RATE / HOP)
    audio = noise(1, 1000)
    assert model.decode(model.encode(audio), 1000).shape == (1, 1000)
    with pytest.raises(ValueError, match="rates are positive"):
        adapt(**doubled, output_rate=-1)


def test_latents_without_a_time_axis():
    module = Plain()
    with pytest.raises(
        ValueError, match=r"latents are \[\(1, 24\)\]: they have to be \(B, C, L\), time last"
    ):
        adapt(
            encode=lambda x: module.encode(x).mean(-1), decode=module.decode, sample_rate=RATE, channels=1,
            device="cpu",
        )  # fmt: skip
    with pytest.raises(ValueError, match="needs a time axis, the last one"):
        adapt(
            encode=lambda x: module.encode(x).transpose(1, 2),
            decode=lambda z: module.decode(z.transpose(1, 2)), sample_rate=RATE, channels=1, device="cpu",
        )  # fmt: skip


# ---------------------------------------------------------------- models without gradients


def test_arrays_and_frozen_models_are_measured():
    module = Plain().requires_grad_(False)

    def encode(audio):
        with torch.inference_mode():
            return module.encode(audio).numpy()

    def decode(z):
        with torch.inference_mode():
            return module.decode(torch.as_tensor(z)).numpy()

    model = adapt(encode=encode, decode=decode, sample_rate=RATE, channels=1, device="cpu")
    config = EvaluationConfig(window_s=0.5, overlap_s=0.1, chunk_s=1.0)
    report = linearity_report(model, two_tracks(seconds=1.0), config, progress=False)
    assert report.linearity().linearity_db.iloc[0] == pytest.approx(60.0)


def test_models_without_gradients_are_not_trained():
    audio, module = noise(2, 1, 320), Plain()
    check_trainable(module.encode, module.decode, audio)
    with pytest.raises(
        ValueError, match=r"latents carry no gradient .*can be measured, and not be made linear"
    ):
        check_trainable(lambda x: module.encode(x).detach(), module.decode, audio)
    with pytest.raises(ValueError, match="latents carry no gradient"):
        check_trainable(lambda x: module.encode(x).round().long(), module.decode, audio)
    with pytest.raises(ValueError, match="decode passes no gradient on"):
        check_trainable(module.encode, lambda z: module.decode(z.detach()), audio)
    with pytest.raises(ValueError, match="decode passes no gradient on"):
        check_trainable(module.encode, lambda z: module.decode(z).detach(), audio)


# ---------------------------------------------------------------- whose latents


SCALE = 1.0
HELPED = {"by": 1.0}


def scaled(z):
    return SCALE * z


def adapted(encode=None, decode=None, module=None, **kwargs):
    module = module or Plain()
    encode = encode or module.encode
    decode = decode or module.decode
    return adapt(encode=encode, decode=decode, sample_rate=RATE, channels=1, device="cpu", **kwargs)


def limited(module, limit, offset=0.0):
    def decode(z, gain=1.0, *, bias=offset):
        return (gain * module.decode(z) + bias).clamp(-limit, limit)

    return decode


def weighted(module, weights):
    return lambda audio: module.encode(audio) * weights.sum()


def test_equal_models_have_one_fingerprint():
    """Names, devices, modes and gradients decide no latents."""
    same = plain().fingerprint()
    trained = Plain().train().requires_grad_(False)
    other = adapt(trained, RATE, channels=1, name="other", device="cpu")
    other.encode(noise(1, 100))
    assert other.fingerprint() == same == plain().fingerprint()
    function = [adapted(decode=limited(Plain(), 1.0)).fingerprint() for _ in range(2)]
    assert function[0] == function[1] != same


def test_whatever_decides_latents_or_sound_changes_the_fingerprint(monkeypatch):
    module = Plain()
    louder = Plain()
    louder.up.weight.data *= 2
    attribute = Plain()
    attribute.dim = 3
    prints = {
        "plain": plain(),
        "callables": adapted(),
        "weights": adapt(louder, RATE, channels=1, device="cpu"),
        "attribute": adapt(attribute, RATE, channels=1, device="cpu"),
        "multiple": plain(multiple=64),
        "version": plain(version="1"),
        "other version": plain(version="2"),
        "limit": adapted(decode=limited(module, 1e9)),
        "other limit": adapted(decode=limited(module, 0.3)),
        "default": adapted(decode=limited(module, 1e9, offset=1e-3)),
        "weights of a closure": adapted(decode=limited(louder, 1e9)),
        "partial": adapted(decode=partial(limited(module, 1e9), gain=0.5)),
        "other partial": adapted(decode=partial(limited(module, 1e9), gain=0.25)),
        "array": adapted(encode=weighted(module, np.ones(3))),
        "other array": adapted(encode=weighted(module, np.full(3, 2.0))),
        "code": adapted(encode=lambda x: module.encode(x) * 2.0),
        "other code": adapted(encode=lambda x: module.encode(x) / 2.0),
        "global": adapted(encode=lambda x: scaled(module.encode(x))),
        "compiled": adapted(encode=torch.no_grad()(lambda x: 3.0 * module.encode(x))),
        "other compiled": adapted(encode=torch.no_grad()(lambda x: 4.0 * module.encode(x))),
        "mean": adapt(Posterior(), RATE, channels=1, latent="mean", device="cpu"),
        "sample": adapt(Posterior(), RATE, channels=1, latent="sample", device="cpu"),
    }
    found = {name: model.fingerprint() for name, model in prints.items()}
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    found["other global"] = prints["global"].fingerprint()
    module.down.weight.data += 1e-3
    found["trained on"] = prints["limit"].fingerprint()
    assert len(set(found.values())) == len(found), found


def test_a_fingerprint_is_the_same_in_another_process():
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_adapters import Plain, adapted, limited, plain
print(plain().fingerprint(), adapted(decode=limited(Plain(), 0.3)).fingerprint())
"""
    options = {"capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, "-c", code], **options)
    ours = [plain().fingerprint(), adapted(decode=limited(Plain(), 0.3)).fingerprint()]
    assert done.stdout.split() == ours, done.stderr


def test_models_of_our_own_within_functions_say_who_they_are():
    first, second = (adapt(encode=m.encode, decode=m.decode, sample_rate=RATE) for m in (Linear(), Linear()))
    first.encode(noise(1, 1000))
    assert first.fingerprint() == second.fingerprint()


def test_content_that_cannot_be_told_is_of_this_process_alone(caplog):
    module, hidden = Plain(), iter([1])

    def encode(audio):
        return module.encode(audio) if hidden else audio

    one, two = adapted(encode=encode), adapted(encode=encode)
    assert one.fingerprint() == one.fingerprint() != two.fingerprint()
    assert caplog.text.count("list_iterator has no content that can be told; pass version=") == 2
    stated = [adapted(encode=encode, version=version).fingerprint() for version in ("1", "1", "2")]
    assert stated[0] == stated[1] != stated[2]


# ---------------------------------------------------------------- other bad input


def test_objects_that_do_not_encode():
    with pytest.raises(TypeError, match=r"Linear has no encode and decode: pass encode=\.\.\. and decode="):
        adapt(nn.Linear(2, 2), RATE)
    with pytest.raises(TypeError, match="has no decode"):
        adapt(encode=lambda x: x, sample_rate=RATE)
    with pytest.raises(ValueError, match="rates are positive"):
        adapt(Plain(), channels=1)


def test_input_is_checked():
    model = plain()
    with pytest.raises(ValueError, match=r"shape \(B, T\)"):
        model.encode(torch.zeros(9))
    with pytest.raises(ValueError, match=r"latents of Plain must be \(B, 24, L\), got \(1, 3, 5\)"):
        model.decode(torch.zeros(1, 3, 5))
    with pytest.raises(TypeError, match=r"latents of Plain .*ndarray"):
        model.decode(np.zeros((1, 24, 5)))
