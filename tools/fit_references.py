"""Fit what the linear references of `lincae.interop.references` are made of, on recorded music.

    python tools/fit_references.py FOLDER=WEIGHT ...       # the training folders of free-music

Writes `data/checkpoints/linear_references.safetensors` in half precision: the first principal components of
blocks of two MDCT frames (Karhunen-Loeve transform), and the mean log spectrum of music, the level of the
noise of "resample+noise". No sound can be had back from either.
"""

import sys

import torch
from safetensors.torch import save_file

from lincae.data.corpora import Corpora, weighted_folders
from lincae.interop.references import BLOCK, FITTED, MDCT_BINS, NOISE_FFT, SAMPLE_RATE, mdct_bands

N_CROPS, CROP_S = 400, 5
N_COMPONENTS = BLOCK // 4  # rates from 4x on


def main(folders: list[str]) -> None:
    corpora = Corpora(weighted_folders(folders), SAMPLE_RATE)
    crops = corpora.crops(range(N_CROPS), CROP_S * SAMPLE_RATE, seed=0)

    frames = crops.unfold(1, 2 * MDCT_BINS, MDCT_BINS) @ mdct_bands(MDCT_BINS, MDCT_BINS).T
    whole_blocks = frames[:, : frames.shape[1] // 2 * 2]
    blocks = whole_blocks.reshape(-1, BLOCK).double()
    covariance = blocks.T @ blocks / len(blocks)
    _, vectors = torch.linalg.eigh(covariance)
    basis = vectors.flip(1)[:, :N_COMPONENTS]

    window = torch.hann_window(NOISE_FFT)
    spectra = torch.stft(crops, NOISE_FFT, window=window, return_complex=True)
    magnitude = (0.5 * (spectra.abs().square() + 1e-8).log().mean((0, 2))).exp()
    # The magnitude of white noise of unit variance in such frames is the norm of the window.
    noise_spectrum = magnitude / window.norm()

    tensors = {"basis": basis.half().contiguous(), "noise_spectrum": noise_spectrum.half()}
    save_file(tensors, FITTED, {"data": corpora.description})
    print(f"{FITTED}: {corpora.description}")


if __name__ == "__main__":
    main(sys.argv[1:])
