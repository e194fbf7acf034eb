import pytest
import torch

from lincae.data.stereo import filtered, room, upmix, widener

RATE = 8000


def stems(n=3, seconds=1.0):
    return 0.1 * torch.randn(n, round(seconds * RATE), generator=torch.Generator().manual_seed(0))


def test_is_a_pure_function_of_the_seed_and_linear_in_the_stems():
    x, y = stems(), stems().flip(-1)
    one = upmix(x, RATE, 3)
    assert one.shape == (2, RATE)
    torch.testing.assert_close(upmix(x, RATE, 3), one)
    assert not torch.allclose(upmix(x, RATE, 4), one)
    torch.testing.assert_close(upmix(x + 2 * y, RATE, 3), one + 2 * upmix(y, RATE, 3))
    with pytest.raises(ValueError, match=r"stems must have shape"):
        upmix(x[0], RATE, 0)


def test_images_differ_in_balance_and_width():
    """Over seeds, one stem is heard left and right of the centre, and never as plain mono."""
    balances, coherences = [], []
    for seed in range(12):
        left, right = upmix(stems(1), RATE, seed)
        balances.append((left.norm() / right.norm()).log().item())
        coherences.append(abs(torch.nn.functional.cosine_similarity(left, right, dim=0).item()))
    assert min(balances) < -0.3
    assert max(balances) > 0.3
    assert max(coherences) < 1 - 1e-4


def test_widening_vanishes_in_mono():
    """Left + right of a stem without a room is the panned stem alone."""
    audio, response = stems(1)[0], widener(RATE, torch.Generator().manual_seed(0))
    side = filtered(audio, response)
    impulse = torch.tensor([1.0, 0.0, 0.0, 2.0])  # a causal convolution
    heard = filtered(impulse, torch.tensor([0.0, 3.0, 1.0]))
    torch.testing.assert_close(heard, torch.tensor([0.0, 3.0, 1.0, 0.0]), atol=1e-6, rtol=0)
    left, right = 0.6 * audio + side, 0.8 * audio - side
    torch.testing.assert_close(left + right, 1.4 * audio)
    assert response.norm().item() == pytest.approx(1)


def test_room_decays_by_60_db():
    tail = room(RATE, 0.5, torch.Generator().manual_seed(0))
    assert tail.norm().item() == pytest.approx(1)
    assert not tail[: RATE // 100].any()
    first, last = tail[RATE // 100 :][:200].std(), tail[-200:].std()
    assert 20 * torch.log10(first / last).item() == pytest.approx(57, abs=3)
