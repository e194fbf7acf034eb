"""CLAP embeddings of audio, for the Kernel Audio Distance (`kad`).

embedder = ClapEmbedder.load("music_audioset_epoch_15_esc_90.14.pt")  # which kadtk takes for music
distance = kad(embedder.embed(originals, 44100), embedder.embed(reconstructions, 44100))
"""

import math
import re
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lincae.data.audio import resample
from lincae.interface import check_audio, check_finite
from lincae.interop.hub import fetching, read_pickle
from lincae.machine import resolve_device

SAMPLE_RATE = 48000
WINDOW_S = 10
N_MELS = 64


def kad(reference: Tensor, evaluated: Tensor) -> float:
    """Kernel Audio Distance (Chung et al., 2025) of embeddings (N, D) and (M, D).

    This is 100 times the unbiased squared maximum mean discrepancy with the kernel
    `exp(-d^2 / (2 b^2 + 1e-8))` of the Euclidean distance d, in float64: 0 on average for two draws of one
    distribution. b is the median distance (the lower of two middle ones) within the reference, one scale for
    all models; kadtk 1.1.0 takes the evaluated set, which is `kad` with its arguments swapped. Raises
    ValueError for sets of fewer than two items, other shapes and non-finite values.
    """
    for name, items in (("reference", reference), ("evaluated", evaluated)):
        if items.ndim != 2 or len(items) < 2 or items.shape[1:] != reference.shape[1:] or not items.numel():
            raise ValueError(f"{name} embeddings must be (2 or more, D), of one D, got {tuple(items.shape)}")
        check_finite(items, f"the {name} embeddings", ("item", "dimension"))
    x = reference.double()
    y = evaluated.double()
    distances = torch.cdist(x, x)
    is_pair = torch.ones_like(distances, dtype=torch.bool).triu(1)
    scale = 2 * distances[is_pair].median().square() + 1e-8

    def within(items: Tensor) -> Tensor:
        kernel = (-torch.cdist(items, items).square() / scale).exp().fill_diagonal_(0)
        return kernel.sum() / (len(items) * (len(items) - 1))

    between = (-torch.cdist(x, y).square() / scale).exp().mean()
    return 100 * (within(x) + within(y) - 2 * between).item()


class ClapEmbedder:
    """The audio tower of a CLAP without feature fusion, and its front end.

    `model`: a `ClapAudioModelWithProjection` of transformers (extra `clap`); `name`: where it came from.
    """

    def __init__(self, model: torch.nn.Module, name: str = "clap", device: str | torch.device = "auto"):
        from torchaudio.transforms import MelSpectrogram

        _check_config(model.config, name)
        self.name = name
        self.device = resolve_device(device)
        self.model = model.eval().to(self.device)
        # LAION's front end, as ClapFeatureExtractor with frequency_min=50 (its default of 0 is 2 dB off).
        bands = {"f_min": 50.0, "f_max": 14000.0, "n_mels": N_MELS, "norm": "slaney", "mel_scale": "slaney"}
        self._mel = MelSpectrogram(SAMPLE_RATE, n_fft=1024, hop_length=480, **bands).to(self.device)

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device = "auto") -> "ClapEmbedder":
        """From a hub id or folder in transformers' format, or a `.pt` file of LAION (HTSAT tiny or base).

        "laion/larger_clap_music" is not the checkpoint that kadtk takes for music, and gives other distances.

        Raises ImportError without transformers; FileNotFoundError; OSError for a hub id that cannot be
        fetched; ValueError, naming the source, for feature fusion, another kind of model, a damaged file,
        and missing, unknown or misshapen tensors.
        """
        _transformers()
        path = Path(source)
        device = resolve_device(device)
        if path.is_file():
            return cls(_from_laion(path), path.name, device)
        is_hub_id = str(source).count("/") == 1 and not str(source).startswith((".", "/"))
        if not path.is_dir() and (not is_hub_id or path.suffix in (".pt", ".pth")):
            raise FileNotFoundError(f"{source}: no such file or folder, and not the id of a hub repository")
        return cls(_from_transformers(str(source)), str(source), device)

    @torch.no_grad()
    def embed(self, audio: Tensor, sample_rate: int, hop_s: float = 1.0, batch_size: int = 16) -> Tensor:
        """Audio (B, T) to L2-normalised embeddings (windows, D) on the CPU, float32, item after item.

        A window of 10 s begins every `hop_s` within the signal, as in kadtk; what reaches beyond its end is
        silence. Audio is taken as it is: kadtk rounds and clips it to 16 bits first. `batch_size`: windows at
        a time. Raises as `check_audio`; ValueError for a hop below one sample, or `batch_size` < 1.
        """
        audio = resample(check_audio(audio).detach().float(), sample_rate, SAMPLE_RATE)
        window = WINDOW_S * SAMPLE_RATE
        hop = round(hop_s * SAMPLE_RATE)
        if hop < 1 or batch_size < 1:
            allowed = f"hop_s >= 1 / {SAMPLE_RATE} and batch_size >= 1"
            raise ValueError(f"need {allowed}, got {hop_s} and {batch_size}")
        n_windows = math.ceil(audio.shape[1] / hop)
        padded = F.pad(audio, (0, max(0, (n_windows - 1) * hop + window - audio.shape[1])))
        embeddings = []
        for item in padded.unfold(1, window, hop)[:, :n_windows]:  # views: 1 s hops are ten times the audio
            for start in range(0, n_windows, batch_size):
                mel = self._mel(item[start : start + batch_size].to(self.device))
                mel_db = 10 * mel.clamp(min=1e-10).log10()
                made = self.model(mel_db.transpose(1, 2)[:, None])  # (B, 1, N, mel bins)
                embeddings.append(F.normalize(made.audio_embeds, dim=1).cpu())
        return torch.cat(embeddings)


def _transformers():
    try:
        import transformers
    except ImportError as error:
        raise ImportError("CLAP embeddings need transformers: pip install 'lincae[clap]'") from error
    return transformers


def _check_config(config, source: str) -> None:
    if config.enable_fusion:
        raise ValueError(f"{source}: CLAP with feature fusion is not supported, take one without (`unfused`)")
    if config.num_mel_bins != N_MELS:
        raise ValueError(f"{source}: needs {N_MELS} mel bins, has {config.num_mel_bins}")


def _from_transformers(source: str) -> torch.nn.Module:
    from safetensors import SafetensorError

    transformers = _transformers()
    # not AutoConfig: in transformers 5.0 it does not know an audio tower alone
    with fetching(source):
        values, _ = transformers.PreTrainedConfig.get_config_dict(source)
    kinds = {"clap": transformers.ClapConfig, "clap_audio_model": transformers.ClapAudioConfig}
    kind = values.get("model_type")
    if kind not in kinds:
        raise ValueError(f"{source}: holds a {kind} model, not a CLAP")
    config = kinds[kind].from_dict(values)
    config = getattr(config, "audio_config", config)
    _check_config(config, source)

    class AudioTower(transformers.ClapAudioModelWithProjection):
        _keys_to_ignore_on_load_unexpected = [r"^text_", r"^logit_scale"]  # noqa: RUF012

    try:
        model, report = AudioTower.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{source}: the weights are damaged or do not fit: {error}") from error
    problems = {"missing": report["missing_keys"], "unknown": report["unexpected_keys"]}
    if found := [f"{kind} {', '.join(sorted(keys)[:3])}" for kind, keys in problems.items() if keys]:
        raise ValueError(f"{source} does not fit a CLAP audio tower: {'; '.join(found)}")
    return model


# ---------------------------------------------------------------- LAION's files

DROPPED = re.compile(r"\.(spectrogram_extractor|logmel_extractor|spec_augmenter|tscam_conv|head|attn_mask)\b")
RENAMED = {  # LAION -> transformers, in this order
    "audio_branch.": "audio_model.audio_encoder.",
    ".attn.proj.": ".attention.output.dense.",
    ".attn.": ".attention.self.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".bn0.": ".batch_norm.",
    "audio_projection.0.": "audio_projection.linear1.",
    "audio_projection.2.": "audio_projection.linear2.",
}


def _from_laion(path: Path) -> torch.nn.Module:
    """The audio tower of a LAION checkpoint; its size from the shapes of the tensors."""
    content = read_pickle(path)
    state = {}
    for key, value in content.get("state_dict", content).items():
        key = key.removeprefix("module.")
        if not key.startswith(("audio_branch.", "audio_projection.")) or DROPPED.search(key):
            continue
        for theirs, ours in RENAMED.items():
            key = key.replace(theirs, ours)
        if ".qkv." in key:
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            state |= {key.replace("qkv", name): part for name, part in parts}
        else:
            state[key] = value
    if any("fusion_model" in key or "mel_conv2d" in key for key in state):
        raise ValueError(f"{path}: CLAP with feature fusion is not supported, take one without")
    transformers = _transformers()
    try:
        model = transformers.ClapAudioModelWithProjection(_laion_config(state))
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path} holds no HTSAT audio tower of LAION's CLAP: lacks {error}") from error
    _check_config(model.config, str(path))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit a CLAP audio tower: {error}") from error
    return model.float()


def _laion_config(state: dict[str, Tensor]):
    """The ClapAudioConfig of a renamed audio tower: tiny, base, or another of its kind."""
    tower = "audio_model.audio_encoder."
    bias = "attention.self.relative_position_bias_table"
    blocks = re.findall(rf"layers\.(\d+)\.blocks\.\d+\.{bias}", "\n".join(state))
    depths = Counter(sorted(map(int, blocks)))
    return _transformers().ClapAudioConfig(
        patch_embeds_hidden_size=state[f"{tower}patch_embed.proj.weight"].shape[0],
        depths=list(depths.values()),
        num_attention_heads=[state[f"{tower}layers.{k}.blocks.0.{bias}"].shape[1] for k in depths],
        hidden_size=state[f"{tower}norm.weight"].shape[0],
        num_mel_bins=state[f"{tower}batch_norm.weight"].shape[0],
        projection_dim=state["audio_projection.linear1.weight"].shape[0],
        enable_fusion=False,
    )
