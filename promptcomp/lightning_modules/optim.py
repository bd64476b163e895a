"""The optimiser that all methods share: AdamW over named parameters and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from promptcomp.checkpoints.named_state import keep_state_by_name
from promptcomp.errors import ConfigError
from promptcomp.lightning_modules.method_config import OptimConfig


def learning_rate_factor(step: int, max_steps: int, optim: OptimConfig) -> float:
    """Share of `optim.lr` in the step with this number (from 0)."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - optim.warmup_steps) / max(1, max_steps - optim.warmup_steps))
    falling = 1.0 - progress if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * falling


def make_optimizer(
    named: Sequence[tuple[str, nn.Parameter]], optim: OptimConfig, *, on_host: bool = False
) -> torch.optim.Optimizer:
    """AdamW over named parameters; matrices decay, vectors do not. `on_host`: with its state in the CPU's memory.

    Raises:
        ConfigError: one is in float16, in which AdamW's second moments and epsilon are 0: it would become NaN.
    """
    if narrow := [name for name, parameter in named if parameter.dtype == torch.float16]:
        raise ConfigError(
            f"float16 has too small a range to train in it ({narrow[0]}); set lm.dtype to bfloat16 or float32, or "
            "give a model in memory as model.float()"
        )
    groups: list[dict[str, Any]] = [
        {"params": [(n, p) for n, p in named if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [(n, p) for n, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    kept = [group for group in groups if group["params"]]
    optimizer_class = HostAdamW if on_host else torch.optim.AdamW
    optimizer = optimizer_class(kept, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    keep_state_by_name(optimizer)
    return optimizer


class HostAdamW(torch.optim.AdamW):
    """AdamW whose state lies in the host's memory; arguments and saved state are those of torch.optim.AdamW.

    Weights and gradients stay on the device; the two moments are on the CPU, where a step is computed from copies of
    both, parameter by parameter. Gradients are clipped before, on the device. The numbers are those of AdamW on the
    CPU; the price is a copy of gradients and weights in every step. Sharded parameters have their shards copied.
    """

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
        averages, squares, steps = [state["exp_avg"]], [state["exp_avg_sq"]], [state["step"]]
        settings: dict[str, Any] = {key: group[key] for key in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
        settings |= dict(zip(("beta1", "beta2"), group["betas"], strict=True), foreach=False)
        adamw([value], [grad.cpu()], averages, squares, [], steps, **settings)
        parameter.copy_(value)
