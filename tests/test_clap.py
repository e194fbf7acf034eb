"""CLAP embeddings with small random towers: formats, front end, windows. Their distances mean nothing."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lincae.data.audio import resample
from lincae.evaluation.clap import ClapEmbedder
from lincae.machine import generator

transformers = pytest.importorskip("transformers")

AUDIO = {"spec_size": 256, "num_mel_bins": 64, "patch_embeds_hidden_size": 8, "depths": [1, 2, 1, 1]}
AUDIO |= {"num_attention_heads": [1, 2, 2, 4], "hidden_size": 64, "projection_dim": 16}
AUDIO |= {"enable_fusion": False}
TEXT = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
TEXT |= {"intermediate_size": 8, "max_position_embeddings": 8}
RATE = 48000


def noise(*shape, seed=0):
    return 0.1 * torch.randn(shape, generator=generator(seed))


@pytest.fixture(scope="module")
def tower():
    """A random tower, also in what a fresh one has as zeros and ones, which would hide swapped tensors."""
    model = transformers.ClapAudioModelWithProjection(transformers.ClapAudioConfig(**AUDIO)).eval()
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(k)))
        norm = model.audio_model.audio_encoder.batch_norm
        norm.running_mean.copy_(noise(64, seed=1) - 40)
        norm.running_var.copy_(100 + noise(64, seed=2))
    return model


@pytest.fixture(scope="module")
def audio():
    return noise(2, 12 * RATE)


@pytest.fixture(scope="module")
def expected(tower, audio):
    return ClapEmbedder(tower, device="cpu").embed(audio, RATE, hop_s=10)


OURS_AND_THEIRS = {
    "audio_model.audio_encoder.": "audio_branch.",
    "attention.self.": "attn.",
    "attention.output.dense.": "attn.proj.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "batch_norm.": "bn0.",
    "linear1.": "0.",
    "linear2.": "2.",
}


def to_laion(state: dict) -> dict:
    """A LAION checkpoint of these tensors, with the rest of what such files hold."""
    renamed = {}
    for key, value in state.items():
        if ".self.key." in key or ".self.value." in key:
            continue
        if ".self.query." in key:
            value = torch.cat([state[key.replace("query", part)] for part in ("query", "key", "value")])
            key = key.replace("attention.self.query", "attn.qkv")
        for ours, theirs in OURS_AND_THEIRS.items():
            key = key.replace(ours, theirs)
        renamed[f"module.{key}"] = value.clone()
    for key in ("spectrogram_extractor.stft.conv_real.weight", "logmel_extractor.melW", "tscam_conv.weight"):
        renamed[f"module.audio_branch.{key}"] = torch.zeros(3)
    renamed["module.audio_branch.layers.0.blocks.1.attn_mask"] = torch.zeros(3)
    renamed["module.audio_branch.head.bias"] = renamed["module.logit_scale_a"] = torch.zeros(3)
    renamed["module.text_branch.embeddings.position_ids"] = torch.arange(3)
    return renamed


def test_folder_of_an_audio_tower(tower, audio, expected, tmp_path):
    tower.save_pretrained(tmp_path)
    embedder = ClapEmbedder.load(str(tmp_path), "cpu")
    torch.testing.assert_close(embedder.embed(audio, RATE, hop_s=10), expected)
    assert embedder.name == str(tmp_path)


def features(clip):
    """What transformers makes of 10 s of sound (T,), with the lowest frequency of LAION."""
    extractor = transformers.ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
    return extractor(clip.numpy(), sampling_rate=RATE, return_tensors="pt")["input_features"].float()


def test_folder_of_a_whole_clap(tmp_path):
    config = transformers.ClapConfig(text_config=TEXT, audio_config=AUDIO, projection_dim=16)
    model = transformers.ClapModel(config).eval()
    model.save_pretrained(tmp_path)
    clip = noise(1, 10 * RATE, seed=3)
    with torch.no_grad():
        theirs = model.get_audio_features(features(clip[0])).pooler_output
    ours = ClapEmbedder.load(tmp_path, "cpu").embed(clip, RATE, hop_s=10)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("wrapped", [True, False])
def test_file_of_laion(tower, audio, expected, tmp_path, wrapped):
    state = to_laion(tower.state_dict())
    rest = {"epoch": 15, "name": "x", "best": np.float64(0.9), "optimizer": {"param_groups": [{"lr": 0.1}]}}
    torch.save({"state_dict": state} | rest if wrapped else state, tmp_path / "music.pt")
    embedder = ClapEmbedder.load(tmp_path / "music.pt", "cpu")
    assert embedder.name == "music.pt"
    torch.testing.assert_close(embedder.embed(audio, RATE, hop_s=10), expected)


def test_windows_are_those_of_kadtk(tower):
    embedder, clip = ClapEmbedder(tower, device="cpu"), noise(2, int(11.5 * RATE), seed=4)
    starts = range(0, clip.shape[1], RATE)
    chunks = [clip[:, start : start + 10 * RATE] for start in starts]
    chunks = [torch.nn.functional.pad(chunk, (0, 10 * RATE - chunk.shape[1])) for chunk in chunks]
    alone = torch.stack([embedder.embed(chunk, RATE, hop_s=10) for chunk in chunks], 1).flatten(0, 1)
    embeddings = embedder.embed(clip, RATE, batch_size=5)
    assert embeddings.shape == (2 * 12, 16)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(24))
    torch.testing.assert_close(embeddings, alone)


def test_short_audio_and_other_rates(tower):
    embedder, clip = ClapEmbedder(tower, device="cpu"), noise(1, 100)
    assert embedder.embed(clip, 44100).shape == (1, 16)
    torch.testing.assert_close(embedder.embed(clip, 44100), embedder.embed(resample(clip, 44100, RATE), RATE))
    assert embedder.embed(torch.zeros(1, 1), RATE).isfinite().all()


def test_input_source_and_package_are_checked(tower, tmp_path, monkeypatch):
    for source in ("nothing/here/at/all", "./nothing", "checkpoints/music.pt"):
        with pytest.raises(FileNotFoundError, match=source):
            ClapEmbedder.load(source, "cpu")
    embedder = ClapEmbedder(tower, device="cpu")
    with pytest.raises(ValueError, match=r"shape \(B, T\)"):
        embedder.embed(torch.zeros(9), RATE)
    with pytest.raises(ValueError, match="hop_s"):
        embedder.embed(torch.zeros(1, 9), RATE, hop_s=0)
    with pytest.raises(ValueError, match="batch_size"):
        embedder.embed(torch.zeros(1, 9), RATE, batch_size=0)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'lincae\[clap\]'"):
        ClapEmbedder.load(tmp_path, "cpu")


def test_fusion_is_refused(tower, tmp_path):
    tower.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"enable_fusion": True}))
    with pytest.raises(ValueError, match=rf"{tmp_path}: CLAP with feature fusion is not supported"):
        ClapEmbedder.load(tmp_path, "cpu")
    state = to_laion(tower.state_dict()) | {"module.audio_branch.patch_embed.mel_conv2d.bias": torch.zeros(1)}
    torch.save(state, tmp_path / "fusion.pt")
    with pytest.raises(ValueError, match=r"fusion\.pt: CLAP with feature fusion is not supported"):
        ClapEmbedder.load(tmp_path / "fusion.pt", "cpu")


def test_weights_that_do_not_fit(tower, tmp_path):
    tower.save_pretrained(tmp_path)
    weights, key = tmp_path / "model.safetensors", "audio_projection.linear1.weight"
    state = load_file(weights)
    for changed, match in (
        ({k: v for k, v in state.items() if k != key}, f"missing {key}"),
        (state | {"extra": torch.zeros(1)}, "unknown extra"),
        (state | {key: torch.zeros(2)}, "do not fit"),
    ):
        save_file(changed, weights, {"format": "pt"})
        with pytest.raises(ValueError, match=rf"{tmp_path}.*{match}"):
            ClapEmbedder.load(tmp_path, "cpu")

    file, key = tmp_path / "music.pt", "module.audio_projection.2.weight"
    state = to_laion(tower.state_dict())
    for changed, match in (
        ({k: v for k, v in state.items() if k != key}, "does not fit.*Missing.*linear2.weight"),
        (state | {"module.audio_branch.extra": torch.zeros(1)}, "does not fit.*Unexpected.*extra"),
        ({"module.audio_branch.conv_block1.conv1.weight": torch.zeros(1)}, "holds no HTSAT audio tower"),
    ):
        torch.save(changed, file)
        with pytest.raises(ValueError, match=rf"(?s)music\.pt.*{match}"):
            ClapEmbedder.load(file, "cpu")


def test_damaged_files_folders_and_other_models(tower, tmp_path):
    file = tmp_path / "music.pt"
    torch.save(to_laion(tower.state_dict()), file)
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"music\.pt"):
            ClapEmbedder.load(file, "cpu")
    torch.save({"state_dict": {}, "run": print}, file)
    with pytest.raises(ValueError, match=r"music\.pt holds print: files with such objects can run code"):
        ClapEmbedder.load(file, "cpu")

    tower.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{tmp_path}: the weights are damaged"):
        ClapEmbedder.load(tmp_path, "cpu")
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}: holds a bert model, not a CLAP"):
        ClapEmbedder.load(tmp_path, "cpu")
