"""Takes secrets out of a text that is to be shown: the screen of an error, a traceback.

It is the ground of all other modules. `segresmamba.secrets` says where the secrets are kept.
"""

from __future__ import annotations

import json
import os
import re
from urllib.parse import urlsplit, urlunsplit

VARIABLE = "SEGRESMAMBA_SECRETS"
"""Environment variable with the secrets of this process: a JSON object from marker to secret."""
HIDDEN = "***"
"""Every marker has it."""
URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>\[\]{},]+")
_WORDS = "token|secret|passw|pwd|credential|api_?key|access_?key|auth|signature"
_QUERY = re.compile(rf"([\w.-]*(?:{_WORDS}|(?<!ssl)key|sig)[\w.-]*=)[^&#]+", re.IGNORECASE)
# `password: abc` or `TOKEN=abc`.
_NAMED = re.compile(rf"""((?:{_WORDS})\w*['"]?\s?[=:]\s?['"]?)[^\s'",}}\]]{{6,}}""", re.IGNORECASE)
_SHORTEST = 6
"""Shorter secrets are not looked for in a text: every second word would have them."""


def known_secrets() -> dict[str, str]:
    """The secrets that this process knows, by marker."""
    known: dict[str, str] = json.loads(os.environ.get(VARIABLE) or "{}")
    return known


def redacted(text: str) -> str:
    """The text without secrets: known ones, logins in URLs, and what is named as one."""
    for marker, secret in sorted(known_secrets().items(), key=lambda item: -len(item[1])):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, marker)
    text = URL.sub(lambda found: without_login(found[0]), text)
    return _NAMED.sub(rf"\1{HIDDEN}", text)


def without_login(url: str) -> str:
    """The URL with `HIDDEN` for its password, or for tokens in its login or query."""
    try:
        parts = urlsplit(url)
    except ValueError:  # it is no URL, which somebody else refuses
        return url
    login, at, host = parts.netloc.rpartition("@")  # a password may contain an @
    user, colon, _ = login.partition(":")
    if colon:
        login = f"{user}:{HIDDEN}"
    elif at and parts.scheme in ("http", "https"):  # a token in the place of the user
        login = HIDDEN
    query = _QUERY.sub(rf"\1{HIDDEN}", parts.query)
    if (login, query) == (parts.netloc.rpartition("@")[0], parts.query):
        return url
    return urlunsplit(parts._replace(netloc=f"{login}{at}{host}", query=query))
