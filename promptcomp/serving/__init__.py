"""`promptcomp serve`: one LM and a folder of compressed prompts behind OpenAI's protocol, on one machine.

Nothing heavy is imported here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from promptcomp.chat import api_key as api_key_of
from promptcomp.errors import ConfigError
from promptcomp.files import read_text

_MOST_PORTS = 65535
STOPPING = 503, "the server is stopping", "stopping", 5
"""The `Refusal` of what is not answered any more."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where a server listens and what it takes on."""

    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0: every one of this machine's.")] = "127.0.0.1"
    port: Annotated[int, Option(min=0, max=_MOST_PORTS, help="0: any free one.")] = 8000
    batch_size: Annotated[int, Option(min=1, help="Answers that are written at a time.")] = 32
    cache_tokens: Annotated[
        int | None,
        Option(min=1, help="Positions that their keys and values may take together; default: no other limit."),
    ] = None
    max_waiting: Annotated[int, Option(min=0, help="Requests that may wait; further ones are refused (429).")] = 512
    max_tokens: Annotated[int, Option(min=1, help="Most tokens of an answer.")] = 2048
    max_body: Annotated[int, Option(min=1, help="Most bytes of a request.")] = 2**20
    grace: Annotated[int, Option(min=0, help="Seconds that answers have to end after SIGTERM.")] = 120
    api_key_env: Annotated[str, Option(help="Environment variable with the key that requests must carry.")] = (
        "PROMPTCOMP_API_KEY"
    )
    api_key_file: Annotated[Path | None, Option(help="A file with that key.")] = None

    def api_key(self) -> str | None:
        """The key that requests must carry; None: they need none.

        Raises:
            ConfigError: the file is missing or empty, or no request can carry its key.
        """
        if self.api_key_file is None:
            name = self.api_key_env
            return api_key_of(os.environ.get(name, ""), f"the environment variable {name}") or None
        key = api_key_of(read_text(self.api_key_file, "API key", 4096), str(self.api_key_file))
        if not key:
            raise ConfigError(f"{self.api_key_file}: is empty; write the key into it")
        return key


class Refusal(Exception):
    """A request that is not answered: the HTTP status, a sentence, a word for programs, and when to come again."""

    def __init__(self, status: int, message: str, code: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after
