"""AdamW whose state lies in the host's memory.

Weights and gradients stay on the device; the two moments are on the CPU, where a step is computed from copies of both,
parameter by parameter. Gradients are clipped before, on the device. The numbers are those of AdamW on the CPU; the
price is a copy of gradients and weights in every step. Sharded parameters have their shards copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class HostAdamW(torch.optim.AdamW):
    """See the module docstring; arguments and saved state are those of torch.optim.AdamW."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` computes the gradients."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_one(parameter, group)
        return result

    def _step_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        value, grad = parameter.detach().cpu(), parameter.grad
        assert grad is not None
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(value), torch.zeros_like(value)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            state[key] = state[key].cpu()  # Lightning moves what it has loaded to the device
        adamw(
            [value],
            [grad.cpu()],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            foreach=False,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        parameter.copy_(value)
