"""The connector: which positions of a request come from a compressed prompt, and the writing of their pages.

vLLM makes one beside its scheduler and one in its worker. A request that cannot be served is held as one that waits for
its pages, and the worker reports them as failed: it ends with an error (HTTP 500), and the others go on.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.logger import init_logger

from promptcomp.vllm_connector.shelf import FIELD, PLACEHOLDER, PromptShelf, Refused, Served

logger = init_logger("vllm.promptcomp")
_LAYER = re.compile(r"\.(\d+)\.")
Layers = list[tuple[Tensor, Tensor]]


@dataclass
class PageLoads(KVConnectorMetadata):
    """What the worker has to do in a step."""

    loads: list[tuple[Served, int, list[int]]] = field(default_factory=list)
    """Prompt, its first slot that is not in a page yet, and the request's blocks."""
    refused: dict[str, int] = field(default_factory=dict)
    """Request that must fail -> its first block."""


class PromptConnector(KVConnectorBase_V1):
    """Fills pages from the registry of `kv_connector_extra_config`."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._shelf = PromptShelf(vllm_config)
        self._block = vllm_config.cache_config.block_size
        self._named: dict[str, Served | Refused] = {}
        self._step = PageLoads()
        self._held: OrderedDict[str, Layers] = OrderedDict()
        self._failed: set[int] = set()
        self._ended: set[str] = set()
        if role == KVConnectorRole.SCHEDULER:
            self._look_around()

    def _look_around(self) -> None:
        """Say what there is; hashing the LM's weights now keeps the first request from waiting for it."""
        names = self._shelf.names()
        logger.info("%d compressed prompts in %s", len(names), self._shelf.folder)
        for name in names:
            try:
                logger.info("compressed prompt %s: %d slots", name, self._shelf.find(name).slots)
            except Refused as error:
                logger.warning("%s", error)

    @property
    def requires_kv_delivery(self) -> bool:
        """Nothing is handed on."""
        return False

    # ---- beside the scheduler

    def on_new_request(self, request: Any) -> None:
        """Find the prompt that a request names, and keep its pages apart from those of all others."""
        params = request.kv_transfer_params
        if not isinstance(params, dict) or FIELD not in params:
            return
        lora = request.lora_request
        try:
            prompt = self._shelf.find(params[FIELD], None if lora is None else lora.lora_path)
            _check(request, prompt)
            found: Served | Refused = prompt
        except Exception as error:  # anything else would end the engine, and with it everybody's requests
            logger.warning("request %s is refused: %s", request.request_id, error)
            found = error if isinstance(error, Refused) else Refused(repr(error))
        self._named[request.request_id] = found
        own = found.sha256 if isinstance(found, Served) else f"refused {request.request_id}"
        request.cache_salt = f"{FIELD} {own} {request.cache_salt or ''}"
        request.block_hashes.clear()
        request.update_block_hashes()
        request.skip_reading_prefix_cache = False  # it would keep the connector from being asked

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """The slots that are in no page yet; a refused request waits for one position that will fail."""
        found = self._named.get(request.request_id)
        if isinstance(found, Refused):
            return 1, True
        return (0 if found is None else max(0, found.slots - num_computed_tokens)), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note what the worker has to load, also after a preemption."""
        found = self._named.get(request.request_id)
        if not num_external_tokens or found is None:
            return
        numbers = list(blocks.get_block_ids()[0])
        if isinstance(found, Refused):
            self._step.refused[request.request_id] = numbers[0]
        else:
            self._step.loads.append((found, found.slots - num_external_tokens, numbers))

    def build_connector_meta(self, scheduler_output: Any) -> PageLoads:
        """What has been noted since the step before."""
        step, self._step = self._step, PageLoads()
        return step

    def request_finished(self, request: Any, block_ids: Sequence[int]) -> tuple[bool, None]:
        """Forget it."""
        self._named.pop(request.request_id, None)
        return False, None

    # ---- in the worker

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Write the pages of this step's requests."""
        step = self._get_connector_metadata()
        assert isinstance(step, PageLoads)
        for found, first, blocks in step.loads:
            try:
                layers = self._layers(found)
            except Exception as error:  # whatever is wrong with a file is this request's trouble alone
                logger.error("%s", error)
                self._failed.update(blocks[first // self._block : -(-found.slots // self._block)])
            else:
                self._write(forward_context, layers, first, found.slots, blocks)
        self._failed.update(step.refused.values())
        self._ended.update(step.refused)

    def _layers(self, found: Served) -> Layers:
        """Keys and values from the file, or as they were read before."""
        if found.sha256 not in self._held:
            self._held[found.sha256] = self._shelf.load(found)
        self._held.move_to_end(found.sha256)
        while len(self._held) > 1 and sum(map(_size, self._held.values())) > self._shelf.cached_bytes:
            self._held.popitem(last=False)
        return self._held[found.sha256]

    def _write(self, forward_context: Any, layers: Layers, first: int, end: int, blocks: Sequence[int]) -> None:
        """Positions `first` to `end`, by the attention code's own way of writing pages (their layouts differ)."""
        position = torch.arange(first, end)
        place = torch.tensor(blocks)[position // self._block] * self._block + position % self._block
        for name, layer in forward_context.no_compile_layers.items():
            number = _LAYER.search(name)
            if number is None or getattr(layer, "kv_cache", None) is None:
                continue
            pages = layer.kv_cache
            keys, values = (each[first:end].to(pages.device) for each in layers[int(number[1])])
            layer.impl.do_kv_cache_update(layer, keys, values, pages, place.to(pages.device))

    def get_finished(self, finished_req_ids: set[str]) -> tuple[None, set[str] | None]:
        """Refused requests, whose waiting ends."""
        ended, self._ended = self._ended, set()
        return None, ended or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Pages that were not written."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Everything is there when `start_load_kv` returns."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""


def _check(request: Any, found: Served) -> None:
    """
    Raises:
        Refused: the request does not stand behind the prompt's slots.
    """
    ids = request.prompt_token_ids or ()
    if len(ids) <= found.slots or any(token != PLACEHOLDER for token in ids[: found.slots]):
        raise Refused(f"needs {found.slots} times the token {PLACEHOLDER} and a query; start vLLM with PromptGate", 400)
    if request.sampling_params is None or request.sampling_params.prompt_logprobs is not None:
        raise Refused("slots have no tokens, and so no prompt_logprobs", 400)


def _size(layers: Layers) -> int:
    return sum(tensor.nbytes for pair in layers for tensor in pair)
