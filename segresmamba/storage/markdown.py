"""Names and values as text in Markdown: what they contain is shown, and never markup."""

from __future__ import annotations

import re
from urllib.parse import quote

# An underscore within a word, as most names have it, is no markup.
_MARKUP = re.compile(r"[\\`*|\[\]#~$!]|(?<!\w)_|_(?!\w)")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# A line that begins like this is an item of a list; one of these alone underlines a heading.
_AT_START = re.compile(r"^(\d{0,9})([-+.)](?=\s|$)|[-=](?=[-=]*$))")


def text(value: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    line = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(value.split()))
    escaped = _MARKUP.sub(r"\\\g<0>", re.sub("[&<>]", lambda found: _ENTITIES[found[0]], line))
    return _AT_START.sub(r"\1\\\2", escaped)


def destination(name: str) -> str:
    """A file's name as the destination of a link in angle brackets."""
    return re.sub(r"[^\w .,+=@-]", lambda found: quote(found[0], safe=""), name)
