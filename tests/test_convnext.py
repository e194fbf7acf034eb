import pytest
import torch

from lincae.vae.convnext import AdaptiveLayerNorm, ConvNeXtBlock, GlobalResponseNorm


def test_grn_equals_its_definition():
    norm = GlobalResponseNorm(3)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(norm(x), x), "identity at the start"
    with torch.no_grad():
        norm.gain.copy_(torch.tensor([0.5, -1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.0, -0.3]))
    squares = x.double() ** 2
    length = torch.stack([squares[b].sum(dim=0).sqrt() for b in range(2)]).float()
    response = length / length.mean(dim=1, keepdim=True)
    expected = x * (1 + norm.gain * response[:, None]) + norm.bias
    torch.testing.assert_close(norm(x), expected)


def test_adaptive_norm_starts_as_layer_norm_and_then_follows_its_condition():
    generator = torch.Generator().manual_seed(0)
    norm = AdaptiveLayerNorm(4, 2)
    x, condition = torch.randn(2, 6, 4, generator=generator), torch.randn(2, 2, generator=generator)
    plain = torch.nn.functional.layer_norm(x, (4,), eps=1e-6)
    torch.testing.assert_close(norm(x, condition), plain)
    with torch.no_grad():
        norm.project.bias.copy_(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 5.0]))
    expected = plain * torch.tensor([2.0, 1, 1, 1]) + torch.tensor([0, 0, 0, 5.0])
    torch.testing.assert_close(norm(x, condition), expected)


@pytest.mark.parametrize("frames", [1, 50])
def test_block_keeps_the_shape_and_mixes_only_its_kernel_before_grn(frames):
    block = ConvNeXtBlock(8, 16)
    x = torch.randn(2, 8, frames, generator=torch.Generator().manual_seed(1))
    y = block(x)
    assert y.shape == x.shape
    changed = x.clone()
    changed[:, :, 0] += 1
    # GRN starts as the identity, so the reach is that of the depth-wise convolution: three frames
    assert torch.equal(block(changed)[:, :, 4:], y[:, :, 4:])
    assert not torch.equal(block(changed)[:, :, 0], y[:, :, 0])


@pytest.mark.parametrize(
    ("sizes", "condition", "named"),
    [
        ({}, torch.zeros(1, 2), "built without a condition"),
        ({"condition_channels": 2}, None, "needs a condition"),
        ({"kernel": 4}, None, "kernel must be odd, got 4"),
    ],
)
def test_refusals(sizes, condition, named):
    with pytest.raises(ValueError, match=named):
        ConvNeXtBlock(4, 8, **sizes)(torch.zeros(1, 4, 3), condition)
