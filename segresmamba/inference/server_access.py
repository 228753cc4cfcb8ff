"""Who may ask a model server for what: its options, and the refusal of other requests."""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from segresmamba.errors import ConfigError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only programs of this machine reach."""
_OVERHEAD = 1 << 20  # bytes of a request besides its files


@dataclass(frozen=True)
class ServerOptions:
    """Who may ask for what.

    Raises:
        ConfigError: If others than programs of this machine could ask, and there is no token.
    """

    host: str = LOOPBACK[0]
    port: int = 0
    """0 takes a free one."""
    max_bytes: int = 4 << 30
    """The most that a request may have, and the voxels of a case in memory."""
    token: str | None = None
    """What a client must send as `Authorization: Bearer TOKEN`; None lets everybody in."""

    def __post_init__(self) -> None:
        if not self.is_local and not self.token:
            raise ConfigError(
                "other machines could use the server without a password",
                where="--host",
                got=self.host,
                remedy="export SEGRESMAMBA_SERVE_TOKEN=<a long random word>, which clients send as "
                "`Authorization: Bearer`; it is not encrypted, so put a proxy with TLS in front. "
                "Or leave --host out and forward the port: ssh -L 8000:127.0.0.1:8000 HOST",
            )

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine reach the server."""
        return self.host in LOOPBACK


class Guard:
    """Refuses requests of web pages, of strangers, and such as are too large."""

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self._app, self._token = app, options.token
        self._most = options.max_bytes + _OVERHEAD

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request by a refusal, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        problem = self._problem(headers)
        if problem is not None:
            await problem(scope, receive, send)
            return
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._most:  # of a request that does not say its length
                raise HTTPException(413, self._too_large())
            return message

        await self._app(scope, limited, send)

    def _problem(self, headers: Headers) -> JSONResponse | None:
        if self._token is not None:
            given = headers.get("authorization", "")
            if not compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                return refusal(401, "send Authorization: Bearer and the server's token")
        elif "origin" in headers:
            # A browser sends a form of any page to 127.0.0.1.
            return refusal(403, "requests of web pages are not answered")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._most:
            return refusal(413, self._too_large())
        return None

    def _too_large(self) -> str:
        return f"a request has at most {self._most} bytes (--max-gib)"


def refusal(status: int, text: str) -> JSONResponse:
    """An answer that says in words why there is no other."""
    return JSONResponse({"detail": text}, status)
