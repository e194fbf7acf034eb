"""Optimisers of the trainer: RAdam, the paper's, and Muon, which makes more of few steps.

Muon (Jordan, 2024, https://kellerjordan.github.io/posts/muon; the size of its steps is that of Liu et al.,
arXiv 2502.16982) replaces the momentum of a matrix by the nearest one with equal singular values: directions
that gradients seldom take are learnt as fast as those that they often take. Kernels `(out, in, ...)` are
matrices `(out, in * ...)`. Written here because torch's Muon takes two-dimensional parameters alone.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

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
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shape = p.flatten(1).shape
                    alike[min(shape), max(shape)].append(p)
            for (_, longer), parameters in alike.items():
                step_size = -group["lr"] * 0.2 * math.sqrt(longer)
                directions = orthogonalised([self._ahead(p, group["momentum"]) for p in parameters])
                for p, direction in zip(parameters, directions, strict=True):
                    p.add_(direction.view_as(p), alpha=step_size)

    def _ahead(self, p: Tensor, momentum: float) -> Tensor:
        """Nesterov's momentum of a parameter, as a matrix; the state's is updated."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        average = state["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(average, momentum).flatten(1)


def orthogonalised(matrices: Sequence[Tensor]) -> list[Tensor]:
    """About U V^T of matrices U S V^T, all `(m, n)` or `(n, m)`, by Newton-Schulz steps on all at once."""
    a, b, c = NEWTON_SCHULZ
    tall = [matrix.shape[0] > matrix.shape[1] for matrix in matrices]
    x = torch.stack([matrix.T if turned else matrix for matrix, turned in zip(matrices, tall, strict=True)])
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return [matrix.T if turned else matrix for matrix, turned in zip(x, tall, strict=True)]
