"""Language models that answer questions: at an OpenAI-compatible endpoint or here, every answer kept in a file."""

from __future__ import annotations

from promptcomp.errors import ConfigError


def api_key(text: str, where: str) -> str:
    """The key in a text, which is empty where there is none.

    Args:
        text: as it was found, perhaps with white space around it.
        where: it was found, for the message, which never shows it.

    Raises:
        ConfigError: a request cannot carry it.
    """
    key = text.strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the key in {where} holds characters that no request can carry (a key is ASCII on one line); copy it again"
        )
    return key
