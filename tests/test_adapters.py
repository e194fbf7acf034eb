"""Any object with encode and decode as a model: what is taken, and what is refused, with the reason."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import RATE, Linear, noise, two_tracks
from torch import nn

from lincae.evaluation.protocols import EvaluationConfig
from lincae.evaluation.report import linearity_report
from lincae.interface import AutoencoderLike
from lincae.interop.adapters import adapt, check_trainable

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


class Posterior(Plain):
    def encode(self, audio):
        return SimpleNamespace(latent_dist=torch.distributions.Normal(super().encode(audio), 0.5))


MODULE = Plain()


def plain(**kwargs):
    return adapt(Plain(), RATE, channels=1, device="cpu", **kwargs)


def adapted(encode=MODULE.encode, decode=MODULE.decode, channels=1, **kwargs):
    return adapt(encode=encode, decode=decode, sample_rate=RATE, channels=channels, device="cpu", **kwargs)


def assert_perfect(model):
    config = EvaluationConfig(window_s=0.5, overlap_s=0.1, chunk_s=1.0)
    report = linearity_report(model, two_tracks(seconds=1.0), config, progress=False)
    assert report.linearity().linearity_db.iloc[0] == pytest.approx(60.0)


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
    assert_perfect(model)


def test_arrays_and_frozen_models_are_measured():
    module = Plain().requires_grad_(False)

    def encode(audio):
        with torch.inference_mode():
            return module.encode(audio).numpy()

    def decode(z):
        with torch.inference_mode():
            return module.decode(torch.as_tensor(z)).numpy()

    assert_perfect(adapted(encode, decode))
    assert_perfect(adapt(Linear(), RATE, device="cpu"))  # which needs no adapter


def test_dropout_is_off_and_modes_come_back():
    module = Plain()
    module.dropout = nn.Dropout(0.5)
    module.encode = lambda audio: module.dropout(module.down(audio))
    module.train()
    module.up.eval()
    model = adapt(module, RATE, channels=1, device="cpu")
    assert torch.equal(model.encode(noise(1, 320)), model.encode(noise(1, 320)))
    assert (module.training, module.dropout.training, module.up.training) == (True, True, False)


def test_stereo_models_hear_mono_in_both_channels():
    model, audio = adapt(Plain(2), RATE, channels=2, device="cpu"), noise(2, 320)
    both = Plain(2).encode(audio[:, None].repeat(1, 2, 1)).detach()
    torch.testing.assert_close(model.encode(audio), both)
    torch.testing.assert_close(model.decode(both), Plain(2).decode(both).mean(1).detach())


def test_latents_of_two_dimensions_and_of_several_tensors_keep_their_shapes_for_the_model():
    seen = []

    def decode(z):
        seen.append(tuple(z.shape[1:-1]))
        return MODULE.decode(z.flatten(1, 2))

    def decode_parts(parts):
        return MODULE.decode(torch.cat([parts[0], parts[1]], 1))

    square = adapted(lambda x: MODULE.encode(x).unflatten(1, (4, 6)), decode)
    parted = adapted(lambda x: MODULE.encode(x).split([20, 4], 1), decode_parts, join=True)
    for model in (square, parted):
        z = model.encode(noise(2, 320))
        torch.testing.assert_close(z, plain().encode(noise(2, 320)))
        torch.testing.assert_close(model.decode(z), plain().decode(z))
    assert set(seen) == {(4, 6)}


def in_eights(audio):
    assert audio.shape[-1] % 256 == 0, "eight frames at a time"
    return MODULE.encode(audio)


def doubled(z):
    return MODULE.decode(z).repeat_interleave(2, -1)


def test_models_that_change_length_or_rate_or_need_a_multiple():
    model = adapted(in_eights, multiple=256)
    assert (model.hop, model.encode(noise(1, 257)).shape[-1]) == (HOP, 16)

    longer = adapted(decode=lambda z: nn.functional.pad(MODULE.decode(z), (0, 7)))
    z = longer.encode(noise(1, 320))
    assert (longer.hop, longer.decode(z, 320).shape) == (HOP, (1, 320))
    torch.testing.assert_close(longer.decode(z, 320), plain().decode(z, 320))

    model = adapted(decode=doubled, output_rate=2 * RATE)
    assert (model.hop, model.latent_rate) == (HOP, RATE / HOP)
    audio = noise(1, 1000)
    assert model.decode(model.encode(audio), 1000).shape == (1, 1000)


def test_posteriors():
    audio = noise(2, 640)
    mean = adapt(Posterior(), RATE, channels=1, latent="mean", device="cpu").encode(audio)
    torch.testing.assert_close(mean, plain().encode(audio))
    model = adapt(Posterior(), RATE, channels=1, latent="sample", device="cpu")
    draw = model.encode(audio)
    assert (draw - mean).std() == pytest.approx(0.5, rel=0.1)
    torch.manual_seed(99)
    assert torch.equal(model.encode(audio), draw)
    hidden = adapted(sampling, latent="sample")
    assert torch.equal(hidden.encode(audio), hidden.encode(audio))


def sampling(audio):
    z = MODULE.encode(audio)
    return z + 0.3 * torch.randn_like(z)


def test_decoder_noise_follows_the_seed():
    model = adapted(decode=lambda z: MODULE.decode(z) + 0.1 * torch.randn(len(z), 1, z.shape[-1] * HOP))
    z, before = model.encode(noise(1, 320)), torch.random.get_rng_state()
    assert torch.equal(model.decode(z, seed=3), model.decode(z, seed=3))
    assert not torch.equal(model.decode(z, seed=3), model.decode(z, seed=4))
    assert torch.equal(torch.random.get_rng_state(), before)


SCALE = 1.0


def scaled(z):
    return SCALE * z


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

    # Models of our own within functions say who they are.
    ours = [adapted(m.encode, m.decode, None) for m in (Linear(), Linear())]
    ours[0].encode(noise(1, 1000))
    assert ours[0].fingerprint() == ours[1].fingerprint()


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


def test_content_that_cannot_be_told_is_of_this_process_alone(caplog):
    hidden = iter([1])

    def encode(audio):
        return MODULE.encode(audio) if hidden else audio

    one, two = adapted(encode), adapted(encode)
    assert one.fingerprint() == one.fingerprint() != two.fingerprint()
    assert caplog.text.count("list_iterator has no content that can be told; pass version=") == 2
    stated = [adapted(encode, version=version).fingerprint() for version in ("1", "1", "2")]
    assert stated[0] == stated[1] != stated[2]


def unseeded(function):
    rng = np.random.default_rng(0)
    return lambda x: function(x) * float(1 + 0.1 * rng.random())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: plain(latent="mode"), r"\('deterministic', 'mean', 'sample'\), got 'mode'"),
        (lambda: plain(output_rate=-1), "rates are positive"),
        (lambda: adapted(channels=0), "channels must be None, .* or at least 1, got 0"),
        (lambda: adapt(Plain(2), RATE, channels=1, device="cpu"), "(?s)Plain: encode failed on .*channels=2"),
        (lambda: adapted(in_eights, multiple=100), r"(?s)eight frames at a time.*multiple=\.\.\. pads"),
        # random numbers
        (lambda: adapt(Posterior(), RATE, channels=1), r'distribution \(Normal\): state latent="mean"'),
        (lambda: adapted(sampling), r"stochastic.*differ by \d+%.*latent=\"sample\""),
        (lambda: adapted(unseeded(MODULE.encode), latent="sample"), "encode differs .* with one seed"),
        # discrete and complex latents
        (lambda: adapted(lambda x: MODULE.encode(x).long()), "latents are int64: indices cannot be added"),
        (lambda: adapted(lambda x: MODULE.encode(x).cfloat()), "latents are complex64: real and imaginary"),
        # layouts
        (lambda: adapted(lambda x: MODULE.encode(x[:, None]), channels=None), r"channels=None: \(B, T\)"),
        (lambda: adapted(lambda x: MODULE.encode(x).mT, lambda z: MODULE.decode(z.mT)), "needs a time axis"),
        # several tensors
        (lambda: adapted(lambda x: MODULE.encode(x).split([20, 4], 1)), "2 tensors .*: join=True.*log-var"),
        # lengths and rates
        (lambda: adapted(decode=lambda z: MODULE.decode(z)[..., :-10]), r"15990 of 16000 .*in encode="),
        (lambda: adapted(decode=doubled), r"32000 of 16000 samples.*output_rate \(here 32000\?\)"),
        # use
        (lambda: plain().decode(torch.zeros(1, 3, 5)), r"of Plain must be \(B, 24, L\), got \(1, 3, 5\)"),
        (lambda: plain().decode(torch.zeros(1, 24, 10), 321), r"1\.\.320, what 10 latent frames .* got 321"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_objects_of_other_types():
    with pytest.raises(TypeError, match="Linear has no encode and decode"):
        adapt(nn.Linear(2, 2), RATE)
    with pytest.raises(TypeError, match=r"latents of Plain .*ndarray"):
        plain().decode(np.zeros((1, 24, 5)))
    with pytest.raises(TypeError, match="no name, sample_rate, latent_rate"):
        linearity_report(Plain(), two_tracks(), progress=False)


def test_codecs_that_return_codes_are_refused():
    transformers = pytest.importorskip("transformers")
    tiny = {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [4, 2], "codebook_size": 16}
    codec = transformers.EncodecModel(
        transformers.EncodecConfig(**tiny, sampling_rate=16000, num_lstm_layers=1, target_bandwidths=[16.0])
    )
    with pytest.raises(ValueError, match=r"with audio_codes, .*discrete.*lincae\.interop\.codecs"):
        adapt(codec, RATE, channels=1, device="cpu")


def test_models_without_gradients_are_not_trained():
    audio = noise(2, 1, 320)
    check_trainable(MODULE.encode, MODULE.decode, audio)
    for encode, decode, said in (
        (lambda x: MODULE.encode(x).detach(), MODULE.decode, "latents carry no gradient .* be made linear"),
        (MODULE.encode, lambda z: MODULE.decode(z).detach(), "decode passes no gradient on"),
    ):
        with pytest.raises(ValueError, match=said):
            check_trainable(encode, decode, audio)
