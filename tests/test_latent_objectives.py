"""Equations 1 to 5 with values by hand, and the discriminator."""

import pytest
import torch

import lincae
from lincae.reencoder import training as objectives
from lincae.reencoder.training import (
    LatentDiscriminator,
    adversarial_loss,
    discriminator_loss,
    with_fixed_weights,
)


def test_equation_1():
    prediction, target = torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[0.5, 1.0]]])
    assert objectives.latent_l1(prediction, target).item() == pytest.approx((0.5 + 3.0) / 2)
    with pytest.raises(ValueError, match="latents must agree"):
        objectives.latent_l1(prediction, target[..., :1])


def test_equation_3():
    """Two layers, two items: |r - f|_1 / |f|_1 is 3/2 and 1/4 for the first, 0 and 2/2 for the second."""
    real = [torch.tensor([[1.0, 2.0], [5.0, 5.0]]), torch.tensor([[3.0], [1.0]])]
    fake = [torch.tensor([[1.0, -1.0], [5.0, 5.0]]), torch.tensor([[4.0], [-1.0]])]
    expected = ((3 / 2 + 1 / 4) + (0 + 2)) / 2
    assert objectives.feature_matching(real, fake).item() == pytest.approx(expected)
    # maps twice as large on both sides weigh the same; the gradient reaches the made maps alone
    real = torch.rand(2, 5, requires_grad=True)
    fake = torch.rand(2, 5, requires_grad=True)
    one = objectives.feature_matching([real], [fake])
    torch.testing.assert_close(objectives.feature_matching([2 * real], [2 * fake]), one)
    one.backward()
    assert real.grad is None
    assert fake.grad.any()


def test_equations_2_and_4():
    assert adversarial_loss(torch.tensor([1.0, 0.0, 3.0])).item() == pytest.approx((0 + 1 + 4) / 3)
    real, fake = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 2.0])
    expected = (0 + 0.25) / 2 + (0 + 4) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx(expected)


def test_fixed_weights_pass_gradients_to_the_input_alone():
    discriminator = LatentDiscriminator(4)
    z = torch.randn(1, 5, 30, requires_grad=True)
    score, _ = with_fixed_weights(discriminator, z)
    torch.testing.assert_close(score, discriminator(z)[0])
    score.sum().backward()
    assert z.grad.any()
    assert all(p.grad is None for p in discriminator.parameters())


def test_discriminator_is_the_papers():
    """Kernels (3, 7) x 5, then (3, 3), strides and padding 1, 256 channels."""
    with torch.device("meta"):
        layers = LatentDiscriminator().layers
    assert [layer.kernel_size for layer in layers] == [(3, 7)] * 5 + [(3, 3)]
    assert {layer.stride for layer in layers} == {layer.padding for layer in layers} == {(1, 1)}
    assert [layer.in_channels for layer in layers] == [1] + [256] * 5
    discriminator = LatentDiscriminator(4)
    score, maps = discriminator(torch.randn(2, 5, 30))
    assert score.shape == (2, 1, 5, 10)
    assert [tuple(m.shape) for m in maps] == [(2, 4, 5, 30 - 4 * i) for i in range(1, 6)]
    assert discriminator(torch.randn(1, 5, 21))[0].shape == (1, 1, 5, 1)
    with pytest.raises(ValueError, match=r"21 frames or more, got \(1, 5, 20\)"):
        discriminator(torch.randn(1, 5, 20))


def test_mel_loss_of_decodes_reaches_the_latents_and_is_zero_at_the_target():
    torch.manual_seed(0)
    model = lincae.Autoencoder(lincae.recipe("test").autoencoder, "untrained").requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))  # the default initialisation decodes silence
    target = torch.randn(2, 8, 24)
    assert objectives.decoded_mel_loss(model, target, target).item() == pytest.approx(0, abs=1e-5)
    prediction = (0.5 * target).requires_grad_()
    loss = objectives.decoded_mel_loss(model, prediction, target)
    loss.backward()
    assert loss.item() > 0.01
    assert torch.isfinite(prediction.grad).all()
    assert prediction.grad.any()
    torch.testing.assert_close(
        model.decode_with_gradient(target, seed=3), model.eval().decode(target, seed=3)
    )
    with pytest.raises(ValueError, match="a gradient reaches 256 latent frames, got 257"):
        model.decode_with_gradient(torch.randn(1, 8, 257))
