"""What the LM answers behind the whole context, with its likeliest tokens: made once, read by every training.

The context is read once. Questions are answered greedily, in batches of like length behind its keys and values; the
predictions of these very passes are what a cartridge is trained on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from promptcomp.batch import EncodedContext, EncodedQuery, collate
from promptcomp.config import ConfigError
from promptcomp.distilling.cartridge import LIKELIEST, TeacherAnswer
from promptcomp.distilling.work_folder import WorkFolder
from promptcomp.files import replacing
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules.objective import class_log_probs
from promptcomp.memory import Memory

_NAMES = ("lengths", "labels", "top", "log_probs")


class Interrupted(Exception):
    """A person has stopped the work; what is finished is kept."""


class Teacher:
    """The LM behind the whole context, which is read when it is first needed.

    Args:
        lm: in eval mode.
        read: gives the memory of the whole context.
        stopped: whether to end between two tokens.
    """

    def __init__(self, lm: LanguageModel, read: Callable[[], Memory | None], stopped: Callable[[], bool]) -> None:
        self.lm, self._read, self._stopped = lm, read, stopped
        self._memory: Memory | None = None
        self.seconds = 0.0
        """That all answers have taken, those of earlier calls included."""

    @property
    def memory(self) -> Memory | None:
        """The whole context."""
        if self._memory is None:
            self._memory = self._read()
        return self._memory

    def write(
        self,
        queries: Sequence[Sequence[int]],
        stop_ids: Sequence[int],
        most: int,
        on_logits: Callable[[Tensor], None] = lambda logits: None,
        **settings: Any,
    ) -> list[list[int]]:
        """The answer to each query, without the token that ends it.

        Raises:
            Interrupted: `stopped`.
        """

        def logits_came(logits: Tensor) -> None:
            if self._stopped():
                raise Interrupted
            on_logits(logits)

        batch = collate([EncodedContext((), tuple(EncodedQuery(tuple(ids), ()) for ids in queries))])
        found: dict[str, Any] = {
            "max_new_tokens": most,
            "stop_ids": tuple(stop_ids),
            "on_logits": logits_came,
            **settings,
        }
        return self.lm.generate(self.memory, batch.to(self.lm.hf.device), **found)

    def answers(
        self,
        queries: Sequence[tuple[int, ...]],
        stop_ids: Sequence[int],
        most: int,
        folder: WorkFolder,
        batch_size: int,
        seen: Callable[[int], None],
    ) -> list[TeacherAnswer]:
        """The answer to every query, in their order; those that the folder holds are not made again.

        Args:
            queries: token ids.
            stop_ids: tokens that end an answer.
            most: tokens of an answer.
            folder: keeps each batch.
            batch_size: queries at a time, the same in every call for one folder.
            seen: told how many more there are.

        Raises:
            Interrupted: a person has stopped it.
            ConfigError: a file cannot be read.
        """
        order = sorted(range(len(queries)), key=lambda number: (len(queries[number]), number))
        found: dict[int, TeacherAnswer] = {}
        for number, start in enumerate(range(0, len(order), batch_size)):
            part, path = order[start : start + batch_size], folder.answers(number)
            asked = [queries[place] for place in part]
            if not path.exists():
                self._make(asked, stop_ids, most, path)
            answers, seconds = _read_answers(path, asked)
            found |= zip(part, answers, strict=True)
            self.seconds += seconds
            seen(len(part))
        return [found[number] for number in range(len(queries))]

    def _make(self, queries: Sequence[tuple[int, ...]], stop_ids: Sequence[int], most: int, path: Path) -> None:
        tops, probs, start = [], [], time.monotonic()
        likeliest = min(LIKELIEST, self.lm.vocab_size - 1)

        def keep(logits: Tensor) -> None:
            top = logits.topk(likeliest, -1).indices
            tops.append(top.cpu())
            probs.append(class_log_probs(logits, top).cpu())

        answers = self.write(queries, stop_ids, most, keep)
        top, log_probs = torch.stack(tops, 1), torch.stack(probs, 1)  # [N, most, T]
        # the step in which an answer has ended belongs to it
        lengths = [min(len(answer) + 1, top.shape[1]) for answer in answers]
        labels = [
            [*answer, *row[len(answer) : length, 0].tolist()]
            for answer, row, length in zip(answers, top, lengths, strict=True)
        ]
        tensors = {
            "lengths": torch.tensor(lengths),
            "labels": torch.tensor([label for row in labels for label in row]),
            "top": torch.cat([row[:length] for row, length in zip(top, lengths, strict=True)]).int(),
            "log_probs": torch.cat([row[:length] for row, length in zip(log_probs, lengths, strict=True)]),
        }
        with replacing(path) as partial:
            took = {"seconds": f"{time.monotonic() - start:.3f}"}
            save_file({name: tensors[name].contiguous() for name in _NAMES}, partial, metadata=took)


def _read_answers(path: Path, queries: Sequence[tuple[int, ...]]) -> tuple[list[TeacherAnswer], float]:
    """The answers in a file, and the seconds that they have taken."""
    try:
        with safe_open(path, "pt") as file:
            lengths, *others = (file.get_tensor(name) for name in _NAMES)
            seconds = float(file.metadata()["seconds"])
        rows = zip(*(each.split(lengths.tolist()) for each in others), strict=True)
        answers = [
            TeacherAnswer(query, tuple(labels.tolist()), top, log_probs)
            for query, (labels, top, log_probs) in zip(queries, rows, strict=True)
        ]
        return answers, seconds
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); remove it to have its answers made again") from None
