"""Bytes of live tensors on CPU, counted exactly: what `torch.cuda.max_memory_allocated` says on a GPU.

torch's own `torch.distributed._tools.mem_tracker.MemTracker` counts in the same way and refuses frozen weights.
Workspaces inside kernels are not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within the block, every storage that an operation makes is counted while it lives; `known` storages are too."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in known:
            self._add(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.current

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        number, size = storage._cdata, storage.nbytes()
        before = self._sizes.get(number)
        if before is None:
            weakref.finalize(storage, self._remove, number)
        if before != size:  # new, or resized (FSDP2 frees and fills its buffers so)
            self._sizes[number] = size
            self.current += size - (before or 0)
            self.peak = max(self.peak, self.current)

    def _remove(self, number: int) -> None:
        self.current -= self._sizes.pop(number)


def peak_allocated(device: torch.device, tracked: LiveBytes | None) -> int:
    """Highest number of bytes since the last restart, on CPU from the tracker and on a GPU from CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    assert tracked is not None
    return tracked.peak
