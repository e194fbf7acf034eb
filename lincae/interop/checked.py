"""What the models of this wing share, whoever made them. Axis legend: see `lincae.interface`."""

from torch import Tensor

from lincae.interface import check_audio, check_latents


class Checked:
    """An `AutoencoderLike` that checks what it is given. A subclass says who it is (`name`, `fingerprint`),
    what the latents of audio are and what latents sound like."""

    name: str

    def __init__(self, sample_rate: int, hop: float, latent_channels: int):
        """`hop`: samples a latent frame. Raises ValueError for what is not positive."""
        for setting, value in (("sample_rate", sample_rate), ("hop", hop)):
            if value <= 0:
                raise ValueError(f"{setting} must be positive, got {value}")
        self.sample_rate = sample_rate
        self.hop = hop
        self.latent_rate = sample_rate / hop
        self.latent_channels = latent_channels

    def _latents_of(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, C, L), whose last frame silence fills."""
        raise NotImplementedError

    def _audio_of(self, z: Tensor, seed: int) -> Tensor:
        """All the audio (B, T) that latents (B, C, L) hold."""
        raise NotImplementedError

    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, T) to latents (B, C, L). Raises as `check_audio`."""
        return self._latents_of(check_audio(audio))

    def decode(self, z: Tensor, length: int | None = None, seed: int = 0) -> Tensor:
        """Latents (B, C, L) to audio (B, length), all that they hold by default.

        Raises as `check_latents`, and ValueError for a length that they do not hold.
        """
        check_latents(z, self.latent_channels, name=f"latents of {self.name}")
        audio = self._audio_of(z, seed)
        held = audio.shape[1]
        length = held if length is None else length
        if not 1 <= length <= held:
            frames = f"what {z.shape[2]} latent frames hold"
            raise ValueError(f"length must lie in 1..{held}, {frames}, got {length}")
        return audio[:, :length]
