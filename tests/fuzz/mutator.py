"""Cheap changes of bytes, so that one document of Hypothesis' becomes many inputs.

Hypothesis knows how a document is built and needs milliseconds for one; most readers refuse or
accept it in less. What is done here takes microseconds.
"""

from __future__ import annotations

import random
import re
import struct

_TOKEN = re.compile(rb'"[^"\\]{0,80}"|[\w.+-]{1,80}')
_TOKENS = (
    b"null", b"true", b"{}", b"[]", b'""', b'"\\u0000"', b'"\\ud800"', b"0", b"-1", b"1e999",
    b"NaN", b"2147483648", b"9223372036854775808", b"9" * 5000, b"..", b"../../x", b"/", b"\0",
    b"\xff", "\u2028".encode(), b"\n", b"\r\n", b",", b":", b"=", b"{", b"}", b"[", b"]",
    b"${a}", b"&a", b"*a", b"!!python/object:x.y", b"[" * 20_000,
    b"\n" * 70_000, b" " * 70_000, b"%s%n%d",
)  # fmt: skip
"""What is put in the place of words, numbers and texts of a document, besides its own."""
_FORMS = ("<B", "<H", "<I", "<Q", ">H", ">I")
_EXTREMES = (0, 1, -1, 2, 7, 255, 256, 2**15 - 1, -(2**15), 10**5, 2**31 - 1, -(2**31), 2**63 - 1)
_LONGEST_SPAN = 40


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The bytes after one to four changes."""
    own = _TOKEN.findall(content)
    for _ in range(rng.choice((1, 1, 2, 4))):  # with many, little would be accepted
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.randint(1, _LONGEST_SPAN))
        head, span, tail = content[:start], content[start:end], content[end:]
        kind = rng.choice(
            ("flip", "pack", "token", "token", "token", "insert", "cut", "twice", "end")
        )
        if kind == "flip" and span:
            content = head + bytes([span[0] ^ 1 << rng.randrange(8)]) + span[1:] + tail
        elif kind == "pack":
            form = rng.choice(_FORMS)
            bits = 8 * struct.calcsize(form)
            number = struct.pack(form, rng.choice(_EXTREMES) % (1 << bits))
            content = (head + number + content[start + len(number) :])[: len(content)]
        elif kind == "token" and (found := _TOKEN.search(content, start)):
            token = rng.choice(rng.choice((own or _TOKENS, _TOKENS)))
            content = content[: found.start()] + token + content[found.end() :]
        elif kind == "insert":
            content = head + rng.choice(_TOKENS) + span + tail
        elif kind == "cut":
            content = head + tail
        elif kind == "twice":
            at = rng.randrange(len(content) + 1)
            content = content[:at] + span + content[at:]
        elif kind == "end" and rng.randrange(4) == 0:  # most of what is cut off says no more
            content = head
    return content
