"""What a frozen teacher predicts behind full contexts, on disk: it reads each context with its query and target once.

One file in the cache for a teacher's weights and what is kept of a position (`TeacherCache`); in it a row for each
context with a query and a target. Any number of processes share it (the ranks of a run, trials of a sweep): a row is
there whole or not at all, whenever a process is killed, and of two that make the same row one is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from promptcomp.batch import Batch, Context
from promptcomp.config import ConfigError
from promptcomp.errors import NoSpace, is_full
from promptcomp.files import cache_folder
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.loading import settings_hash
from promptcomp.lightning_modules.objective import class_log_probs
from promptcomp.memory import weights_hash

_FORMAT = 1
_PATIENCE = 600.0
"""Seconds to wait for another process that writes."""


class TeacherCache:
    """Of every position the T likeliest tokens, with their log probabilities and that of all others together.

    Args:
        lm: the teacher, as it stays.
        top_k: T; of a smaller vocabulary all tokens but one.
        temperature: that its logits are divided by.
        where: the positions, as `LanguageModel.forward` has them.
    """

    def __init__(self, lm: LanguageModel, top_k: int, temperature: float, where: Literal["targets", "all"]) -> None:
        self._lm, self._temperature, self._where = lm, temperature, where
        self._top_k = min(top_k, lm.vocab_size - 1)
        teacher = weights_hash(lm.hf), settings_hash(lm.text_config), lm.bos_id, lm.query_in_encoder
        made_of = (*teacher, self._top_k, temperature, where, _FORMAT)
        name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
        self.path = cache_folder() / "teachers" / f"predictions-{name}.sqlite"

    def predictions(self, batch: Batch, teach: Callable[[Batch], Tensor]) -> tuple[Tensor, Tensor]:
        """Tokens [P, T] and log probabilities [P, T + 1], row for row those of the batch's logits.

        Args:
            batch: one target to a query.
            teach: the teacher's logits for some rows of it, where they are not kept.

        Raises:
            ConfigError: the file cannot be read or written.
        """
        assert len(batch.query_of) == len(batch.query_ids)
        keys = self._keys(batch)
        known = self._read(keys)
        owner = self._lm.queries_of_logits(batch, self._where)
        counts = owner.bincount(minlength=len(keys)).tolist()
        size = 4 * (2 * self._top_k + 1)
        missing = [row for row, key in enumerate(keys) if len(known.get(key, b"")) != size * counts[row]]  # or damaged
        if missing:
            made = self._make(_of_rows(batch, missing), teach)
            known |= zip((keys[row] for row in missing), made, strict=True)
            self._write({keys[row]: known[keys[row]] for row in missing})
        rows = [_unpacked(known.get(key, b""), self._top_k) for key in keys]  # nothing is before a first token
        place = owner.argsort(stable=True)  # of the positions, query by query
        top, log_probs = (torch.cat(each).to(place.device) for each in zip(*rows, strict=True))
        back = torch.empty_like(place).scatter(0, place, torch.arange(len(place), device=place.device))
        return top[back].long(), log_probs[back]

    def _make(self, batch: Batch, teach: Callable[[Batch], Tensor]) -> list[bytes]:
        """The row of each query."""
        logits = teach(batch) / self._temperature
        owner = self._lm.queries_of_logits(batch, self._where)
        order, counts = owner.argsort(stable=True), owner.bincount(minlength=len(batch.query_ids)).tolist()
        top = logits.topk(self._top_k, -1).indices
        log_probs = class_log_probs(logits, top).float()
        parts = zip(*(each[order].cpu().split(counts) for each in (top.int(), log_probs)), strict=True)
        return [b"".join(each.contiguous().numpy().tobytes() for each in part) for part in parts]

    def _keys(self, batch: Batch) -> list[bytes]:
        """Hashes of context, query and target, and of the arithmetic that they are read with."""
        context = batch.teacher_context
        device = context.ids.device.type
        reads_in = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self._lm.hf.dtype
        contexts = _token_lists(context.ids, context.mask)
        queries, targets = _token_lists(batch.query_ids, batch.query_mask), {}
        for row, target in zip(batch.query_of.tolist(), _token_lists(batch.target_ids, batch.target_mask), strict=True):
            targets[row] = target
        return [
            hashlib.sha256(json.dumps([str(reads_in), contexts[owner], query, targets[row]]).encode()).digest()
            for row, (owner, query) in enumerate(zip(batch.context_of.tolist(), queries, strict=True))
        ]

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        with self._file() as file:
            asked = ", ".join("?" * len(keys))
            return dict(file.execute(f"SELECT key, value FROM predictions WHERE key IN ({asked})", keys))

    def _write(self, rows: dict[bytes, bytes]) -> None:
        with self._file() as file, file:
            file.executemany("INSERT OR REPLACE INTO predictions VALUES (?, ?)", rows.items())

    @contextmanager
    def _file(self) -> Iterator[sqlite3.Connection]:
        """The open file; opened anew each time, so that no process holds it for another that it forks."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(os.fspath(self.path), timeout=_PATIENCE)) as file:
                file.execute("CREATE TABLE IF NOT EXISTS predictions (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
                yield file
        except (sqlite3.Error, OSError) as error:
            is_full_file = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            kind = NoSpace if is_full_file or is_full(error) else ConfigError
            raise kind(
                f"{self.path}: the teacher's predictions cannot be kept there ({error}); remove the file, name another "
                "folder with PROMPTCOMP_CACHE, or set method.teacher_cache=false"
            ) from None


def _of_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some queries of a batch with their targets, and of the contexts only theirs."""
    part, _ = batch.of_targets(torch.tensor(rows, device=batch.query_of.device))
    kept, context_of = part.context_of.unique(return_inverse=True)
    whole = batch.teacher_context
    context = Context(whole.ids[kept], whole.mask[kept], whole.task[kept])
    return replace(part, context=context, teacher_context=context, context_of=context_of)


def _token_lists(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[real].tolist() for row, real in zip(ids.cpu(), mask.cpu(), strict=True)]


def _unpacked(row: bytes, top_k: int) -> tuple[Tensor, Tensor]:
    """Tokens and log probabilities of the positions of a row."""
    positions = len(row) // (4 * (2 * top_k + 1))
    split = 4 * positions * top_k
    top = torch.from_numpy(np.frombuffer(row[:split], np.int32).copy()).view(positions, top_k)
    log_probs = torch.from_numpy(np.frombuffer(row[split:], np.float32).copy()).view(positions, top_k + 1)
    return top, log_probs
