"""Optimisers of the trainer: RAdam, the paper's, and Muon, which makes more of few steps.

Muon (Jordan, 2024, https://kellerjordan.github.io/posts/muon; the size of its steps is that of Liu et al.,
arXiv 2502.16982) replaces the momentum of a matrix by the nearest one with equal singular values: directions
that gradients seldom take are learnt as fast as those that they often take. Kernels `(out, in, ...)` are
matrices `(out, in * ...)`. Written here because torch's Muon takes two-dimensional parameters alone.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

OPTIMISERS = ("radam", "muon")
MIN_SIDE = 8  # The layers from and to real and imaginary parts have a smaller side: they are RAdam's.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's: five steps bring singular values to between 0.7 and 1.2


def optimisers(
    name: str, parameters: list[nn.Parameter], learning_rate: float
) -> dict[str, torch.optim.Optimizer]:
    """The optimisers of OPTIMISERS' `name`, by their names in a training state.

    "radam": one for all parameters. "muon": RAdam for biases, gains and small matrices, Muon for the others.
    """
    matrices = []
    if name == "muon":
        matrices = [p for p in parameters if p.ndim > 1 and min(p.flatten(1).shape) >= MIN_SIDE]
    taken = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in taken]
    chosen: dict[str, torch.optim.Optimizer] = {
        "optimizer": torch.optim.RAdam(rest, lr=learning_rate, foreach=True)
    }
    if matrices:
        chosen["muon"] = Muon(matrices, learning_rate)
    return chosen


class Muon(torch.optim.Optimizer):
    """Moves every matrix by 0.2 lr per number (RMS), as much as Adam does: learning rates carry over."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                average = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(average, group["momentum"]).flatten(1)
                size = 0.2 * math.sqrt(max(ahead.shape))
                p.add_(orthogonalised(ahead).view_as(p), alpha=-group["lr"] * size)


def orthogonalised(matrix: Tensor) -> Tensor:
    """About U V^T of a matrix U S V^T `(m, n)`, by Newton-Schulz steps."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if is_tall else matrix
    x = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x
