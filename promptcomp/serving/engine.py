"""Continuous batching: one thread makes the next token of all answers at once; requests join and leave between tokens.

Queries behind the same memory are read together; then their rows are joined to those that run, whatever memories
(vectors, keys and values, encoder states, none) these stand behind.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from promptcomp.batch import EncodedContext, EncodedQuery, collate
from promptcomp.config import ConfigError
from promptcomp.errors import is_out_of_memory
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.generation import Rows, Settings, choose, start
from promptcomp.memory import Memory
from promptcomp.serving import STOPPING, Refusal

Event = int | Literal["stop", "length"] | Exception
"""A token; why an answer has ended; or why there is none."""
_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Continuation:
    """An answer that is wanted or being written."""

    memory: Memory | None
    ids: tuple[int, ...]
    """Of the query; behind a decoder-only LM's memory not empty."""
    settings: Settings
    positions: int
    """That its keys and values take in the end."""
    tell: Callable[[Event], None]
    """Called from the engine's thread."""
    unwanted: bool = False
    """Set from any thread: nobody waits for it any more."""
    tokens: list[int] = field(default_factory=list)
    place: int = 0
    """Tokens that the LM has gone on with; fewer than there are after it had to begin anew."""


class Engine:
    """The LM and the answers that it writes.

    Args:
        lm: in eval mode, on its device; nobody else may use it.
        rows: answers at a time.
        positions: of keys and values of all of them; None: no limit.
        waiting: requests that may wait.
    """

    def __init__(self, lm: LanguageModel, rows: int, positions: int | None = None, waiting: int = 512) -> None:
        self.lm, self.rows, self.positions = lm, rows, positions
        self.running: list[Continuation] = []
        self.waiting: deque[Continuation] = deque()
        self._most_waiting = waiting
        self._entering: list[Continuation] = []
        self._state: Rows | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def end(self) -> None:
        """Finish the current token and end; answers that are not finished are told so."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def stop(self) -> None:
        """`end`, and wait for it."""
        self.end()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether answers are written."""
        return self._thread.is_alive()

    def submit(self, wanted: Continuation) -> None:
        """
        Raises:
            Refusal: too many wait already, it does not fit the cache even alone, or this is the end.
        """
        if self.positions is not None and wanted.positions > self.positions:
            said = f"prompt, query and answer take {wanted.positions} positions, the cache here has {self.positions}"
            raise Refusal(400, f"{said}; ask for fewer max_tokens", "context_length_exceeded")
        with self._changed:
            if self._stopping:
                raise Refusal(*STOPPING)
            if len(self.waiting) >= self._most_waiting + max(0, self.rows - len(self.running)):
                raise Refusal(429, f"{len(self.waiting)} requests wait already; come again later", "queue_full", 1)
            self.waiting.append(wanted)
            self._changed.notify()

    @torch.no_grad()
    def _work(self) -> None:
        while self._admit():
            try:
                self._round()
            except Exception as error:
                self._begin_anew(error)
        for each in (*self.running, *self._entering, *self.waiting):
            each.tell(Refusal(*STOPPING))

    def _admit(self) -> bool:
        """Take in as many of those that wait, in their order, as there is room for; False: the end."""
        with self._changed:
            while not (self.running or self._entering or self.waiting or self._stopping):
                self._changed.wait()
            while self.waiting and len(self.running) + len(self._entering) < self.rows:
                first = self.waiting[0]
                if not first.unwanted:
                    widths = [each.positions for each in (first, *self.running, *self._entering)]
                    if self.positions is not None and len(widths) * max(widths) > self.positions:
                        break
                    self._entering.append(first)
                self.waiting.popleft()
            return not self._stopping

    def _round(self) -> None:
        """The next token of every answer."""
        groups: dict[int, list[Continuation]] = {}
        for each in self._entering:
            groups.setdefault(id(each.memory), []).append(each)
        for group in groups.values():
            self._enter(group)
            self._entering = [each for each in self._entering if each not in group]
        if self._state is None:
            return
        tokens = self._chosen(self._state.hidden)
        going = [row for row, token in enumerate(tokens) if self._goes_on(self.running[row], token)]
        if len(going) < len(self.running):
            self.running = [self.running[row] for row in going]
            if not going:
                self._state = None
                return
            self._state.select(torch.tensor(going, device=self.lm.hf.device))
            self._state.trim()
        self._state.step(torch.tensor([tokens[row] for row in going], device=self.lm.hf.device))

    def _enter(self, group: Sequence[Continuation]) -> None:
        """Read the queries behind one memory and join them to what runs."""
        queries = tuple(EncodedQuery(each.ids, ()) for each in group)
        batch = collate([EncodedContext((), queries)]).to(self.lm.hf.device)
        try:
            state = start(self.lm, group[0].memory, batch, 1)  # that each answer fits the window was seen before
        except Exception as error:
            if is_out_of_memory(error):
                raise
            for each in group:
                each.tell(error)
            return
        if self._state is None:
            self._state = state
        else:
            self._state.join(state)  # type: ignore[arg-type]  # both are of the one LM
        self.running += group

    def _chosen(self, hidden: Tensor) -> list[int | None]:
        """The next token of each answer; None: the LM's numbers are none."""
        logits = self.lm.head(hidden)
        chosen: list[int | None] = list(logits.argmax(-1).tolist())
        finite = hidden.isfinite().all(-1).tolist()
        for row, each in enumerate(self.running):
            if each.place < len(each.tokens):
                chosen[row] = each.tokens[each.place]
            elif not finite[row]:
                chosen[row] = None
            elif each.settings.draws:
                chosen[row] = int(choose(logits[row : row + 1], each.settings))
        return chosen

    def _goes_on(self, each: Continuation, token: int | None) -> bool:
        """Tell an answer's next token, and whether more is wanted."""
        if each.unwanted:
            return False
        if token is None:
            each.tell(ConfigError("the LM behind this prompt gives no finite numbers"))
            return False
        if token in each.settings.stop_ids:
            each.tell("stop")
            return False
        if each.place == len(each.tokens):
            each.tokens.append(token)
            each.tell(token)
        each.place += 1
        if each.place == each.settings.max_new_tokens:
            each.tell("length")
            return False
        return True

    def _begin_anew(self, error: Exception) -> None:
        """After an error: where memory ran out, half as many at a time, from where they were; otherwise tell all."""
        failed, self._state = [*self.running, *self._entering], None
        self.running, self._entering = [], []
        if is_out_of_memory(error) and len(failed) > 1:
            self.rows = max(1, len(failed) // 2)
            _log.warning("out of memory with %d answers at a time; from now on %d", len(failed), self.rows)
            for each in failed:
                each.place = 0
            with self._changed:
                self.waiting.extendleft(reversed(failed))
            return
        if not is_out_of_memory(error):
            _log.error("answers were lost", exc_info=error)
        for each in failed:
            each.tell(error)
