"""Adam of the one vector that all learned parameters are parts of."""

from __future__ import annotations

import torch
from torch.optim import Adam

from hipnn_pyg.ops import available, cpu, takes


class VectorAdam(Adam):
    """:class:`torch.optim.Adam` of one parameter, whose :meth:`update` is its ``step()`` sooner.

    Args:
        vector: the parameter.
        lr: learning rate; read anew in each step.
    """

    def __init__(self, vector: torch.nn.Parameter, lr: float = 1e-3) -> None:
        super().__init__([vector], lr=lr, betas=(0.9, 0.999), fused=True)
        self.own = vector.device.type == "cpu" and takes(vector) and not available("cpu")

    def update(self) -> None:
        """One step along the gradient, with the state and the arithmetic of ``step()``.

        On a CPU it is one kernel where there are kernels: PyTorch's, with what it asks before and
        after, takes as long as a tenth of the gradient of few atoms. Hooks are not called.
        """
        settings = self.param_groups[0]
        (vector,) = settings["params"]
        state, gradient = self.state[vector], vector.grad
        if not (self.own and state) or gradient is None:
            self.step()  # which makes the state
            return
        moments = state["exp_avg"], state["exp_avg_sq"], state["step"]
        rates = (settings["lr"], *settings["betas"], settings["eps"])
        cpu.adam(vector, gradient.contiguous(), moments, rates)
