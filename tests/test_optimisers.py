"""Muon: orthogonal steps of a known size, for matrices alone."""

import pytest
import torch
from torch import nn

from lincae.interop.recipes import recipe
from lincae.training.optimisers import Muon, optimisers, orthogonalised


@pytest.mark.parametrize("shapes", [[(8, 8)], [(12, 40), (40, 12), (12, 40)]])
def test_orthogonalised_has_equal_singular_values_and_the_same_directions(shapes):
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    for matrix, result in zip(matrices, orthogonalised(matrices), strict=True):
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.T @ result @ vh.T
        assert inner.diagonal().min() > 0.6
        assert inner.diagonal().max() < 1.3
        assert (inner - inner.diagonal().diag()).abs().max() < 1e-4


def test_every_parameter_has_one_optimiser_and_small_matrices_stay_with_radam():
    parts = nn.ModuleList([nn.Conv2d(2, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(16, 2), nn.GroupNorm(4, 16)])
    parameters = list(parts.parameters())
    radam, muon = optimisers("muon", parameters, 1e-2).values()
    groups = [group["params"] for part in (radam, muon) for group in part.param_groups]
    assert [id(p) for p in groups[1]] == [id(parts[0].weight), id(parts[1].weight)]
    assert sorted(id(p) for group in groups for p in group) == sorted(id(p) for p in parameters)
    assert len(optimisers("radam", parameters, 1e-2)) == 1


def test_a_step_of_muon_has_the_size_of_one_of_adam():
    weight = nn.Parameter(torch.zeros(16, 8, 3, 3))
    weight.grad = 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=1e-2).step()
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2e-2, rel=0.25)
    assert (weight * weight.grad).sum() < 0  # downhill


def test_an_unknown_optimiser_is_an_error_that_names_the_known():
    with pytest.raises(ValueError, match="radam, muon, got 'sgd'"):
        recipe("test", optimiser="sgd")
