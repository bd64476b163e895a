"""`promptcomp serve`: the LM is opened, and uvicorn runs the application until it is told to end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path

import uvicorn
from rich.console import Console

from promptcomp.config import ConfigError, build
from promptcomp.evaluation.formatting import many
from promptcomp.language_model import LanguageModel, LanguageModelConfig
from promptcomp.language_model.loading import pick_device
from promptcomp.plain import say
from promptcomp.prompts.artifact import PromptInfo
from promptcomp.prompts.prompt_files import lm_at, place_of_lm
from promptcomp.serving import ServeOptions
from promptcomp.serving.app import App
from promptcomp.serving.registry import Registry, header, names

_LAST = 5
"""Seconds in which clients can take in that there will be no answer."""


class _Server(uvicorn.Server):
    """A server whose answers end by themselves when they have had `grace` seconds, each with a word to its client."""

    def __init__(self, app: App, options: ServeOptions) -> None:
        self._engine, self._grace = app.engine, options.grace
        last = options.grace + _LAST
        super().__init__(uvicorn.Config(app.asgi, log_level="warning", timeout_graceful_shutdown=last))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        ending = asyncio.get_running_loop().call_later(self._grace, self._engine.end)
        await super().shutdown(sockets)
        ending.cancel()


def open_served(folder: Path, lm: str | None, dtype: str | None, device: str) -> tuple[LanguageModel, str]:
    """The LM of a registry and its name.

    Args:
        folder: the registry.
        lm: a run directory or an LM; None: the one that all prompts name.
        dtype: of its weights; None: as the prompts have it.
        device: "auto", "cpu", "cuda", ...

    Raises:
        ConfigError: there is none, or several.
    """
    infos: list[PromptInfo] = []
    for name in names(folder):
        try:
            infos.append(header(folder, name))
        except (ConfigError, FileNotFoundError):
            continue
    places = sorted({place for info in infos if (place := place_of_lm(info))})
    if lm is None and len(places) != 1:
        found = "its prompts do not say where their LM is" if infos else "no compressed prompt is in it"
        found = f"its prompts are for several: {', '.join(places)}" if places else found
        raise ConfigError(f"{folder}: {found}; name the LM to serve with --lm")
    place = lm or places[0]
    fitting = [info for info in infos if place_of_lm(info) == place] or infos
    config = fitting[0].lm if fitting else LanguageModelConfig(path=place)
    if dtype is not None:
        config = build(LanguageModelConfig, {**config.model_dump(), "dtype": dtype}, "serve")
    opened = lm_at(place, config).eval()
    if opened.tokenizer is None:
        raise ConfigError(f"{place}: has no tokenizer beside the weights")
    return opened.to(pick_device(device)), Path(place.removeprefix("builtin:")).name.replace(":", "-")


def run_server(
    folder: Path,
    lm: str | None,
    options: ServeOptions,
    console: Console,
    *,
    name: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    as_json: bool = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C, and finish what runs. `name`: of the LM; `as_json`: where it listens, and what is
    served, as one line of JSON on standard output; the others as in `open_served`.

    Raises:
        ConfigError: see `open_served`; or nobody can listen there.
    """
    key = options.api_key()
    _listening(options).close()  # to open the LM takes longer
    opened, found = open_served(folder, lm, dtype, device)
    app = App(opened, name or found, Registry(folder, opened, name or found), options, key)
    listening = _listening(options)
    infos = app.registry.infos()
    for reason in (info for info in infos.values() if isinstance(info, str)):
        say(console, f"not served: {reason}")
    good = [prompt for prompt, info in infos.items() if not isinstance(info, str)]
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{listening.getsockname()[1]}/v1"
    say(console, f"{app.name} with {many(len(good), 'prompt')} of {folder}: {url}")
    if as_json:
        print(json.dumps({"url": url, "model": app.name, "prompts": good}), flush=True)
    if key is None and options.host not in ("127.0.0.1", "localhost", "::1"):
        say(console, f"no API key: whoever reaches {options.host} is answered; set {options.api_key_env}")
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn finishes first, and then repeats it
        signal.signal(number, lambda number, frame: sys.exit(0))
    _Server(app, options).run([listening])


def _listening(options: ServeOptions) -> socket.socket:
    """
    Raises:
        ConfigError: nobody can listen there.
    """
    try:
        family, *_, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # "::" answers IPv4, too
        return socket.create_server(address[:2], family=family, dualstack_ipv6=both)
    except (OSError, TypeError, ValueError):  # the last two: a host that is no name
        where = f"{options.host}:{options.port}"
        raise ConfigError(f"{where} cannot be listened on; give another --port, or another --host") from None
