"""A model over HTTP: a client sends the images of a case, and gets its label map back.

    GET  /model                      channels, labels and limits, as JSON
    POST /segment?format=nifti       multipart/form-data, for each channel a NIfTI file, or a zip
                                     file of a DICOM series, by its name; with probabilities=true
                                     a zip file of the label map and its probabilities comes back

Nothing that a client sends becomes a path: files get names of their own in a temporary folder, and
are read as NIfTI or DICOM whatever they are called. Headers of other formats can name further files
of this machine, so these formats are refused.
"""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Callable
from contextlib import asynccontextmanager, contextmanager, nullcontext
from http import HTTPStatus
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING
from urllib.parse import quote

import uvicorn
from anyio import from_thread, to_thread
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from segresmamba import __version__
from segresmamba.data.volumes.geometry import ras_grid, spacing_mm
from segresmamba.data.volumes.voxel_file import VoxelFile, open_voxels
from segresmamba.errors import ConfigError, DataError, UserError, is_passing
from segresmamba.inference.label_map import ENDINGS
from segresmamba.inference.model import SegmentationModel
from segresmamba.inference.output_folder import writing_probabilities_of
from segresmamba.inference.server_access import Guard, ServerOptions, refusal
from segresmamba.inference.server_upload import write_upload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

logger = logging.getLogger(__name__)

WARNINGS = "X-Segresmamba-Warnings"
"""Header of an answer: doubts about the case, such as voxels of a size that training had not."""
_VOXEL_BYTES = 4  # float32
_WAITING = 32
"""Requests at a time, those that wait for the network included; more are answered with 503."""
_FORMATS = ("nifti", "nrrd", "mha")
_QUESTIONS = ("format", "probabilities")
"""What the address of a request can ask for."""
_TRUE, _FALSE = ("true", "1"), ("false", "0")


class ModelServer:
    """A bound socket, and the model behind it.

    Args:
        model: The model.
        options: Where to listen, and what to refuse.

    Raises:
        ConfigError: If the server cannot listen there.
    """

    def __init__(self, model: SegmentationModel, options: ServerOptions) -> None:
        is_v6 = ":" in options.host
        self._socket = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((options.host, options.port))
            self._socket.listen()  # so that a client that knows the address is not refused
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise ConfigError(
                "the server cannot listen there",
                where="--host, --port",
                got=f"{options.host}, {options.port}: {error}",
                remedy="name an address of this machine and a free port; --port 0 takes one",
            ) from error
        host = f"[{options.host}]" if is_v6 else options.host
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        app = model_app(model, options, is_ending=lambda: self._server.should_exit)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app, log_config=None, access_log=False, server_header=False,
                limit_concurrency=_WAITING,
            )
        )  # fmt: skip

    def run(self) -> None:
        """Answer until a signal ends it; a case that is computed then is given up."""
        with self._socket:
            self._server.run(sockets=[self._socket])


def model_app(
    model: SegmentationModel,
    options: ServerOptions,
    is_ending: Callable[[], bool] = lambda: False,
) -> Starlette:
    """The application of a model, for `ModelServer` or another ASGI server.

    Args:
        model: The model; it computes one case at a time.
        options: What to refuse.
        is_ending: Whether the server is to end, so that nobody waits for a case any more.
    """
    service = _Service(model, options.max_bytes, is_ending)
    routes = [
        Route("/model", service.describe, methods=["GET"]),
        Route("/segment", service.segment, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_answer})
    app.add_middleware(Guard, options)
    if options.is_local:
        # A web page elsewhere can make its own name mean 127.0.0.1, but it cannot change the name
        # that the browser sends.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    return app


async def _http_answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, error.detail)


class _Service:
    """What the addresses stand for."""

    def __init__(
        self, model: SegmentationModel, max_bytes: int, is_ending: Callable[[], bool]
    ) -> None:
        self._model, self._max_bytes, self._is_ending = model, max_bytes, is_ending
        self._one_at_a_time = Lock()

    async def describe(self, request: Request) -> Response:
        """The channels to send, and what the values of a label map mean."""
        return JSONResponse(
            {
                "channels": list(self._model.channel_names),
                "labels": self._model.labels,
                "preprocessing": self._model.preprocessing.model_dump(mode="json"),
                "formats": list(_FORMATS),
                "max_bytes": self._max_bytes,
                "segresmamba": __version__,
            }
        )

    async def segment(self, request: Request) -> Response:
        """Segment the case whose channels the form has."""
        names, kind = self._model.channel_names, request.query_params.get("format", "nifti")
        if kind not in _FORMATS:
            raise HTTPException(422, f"format is one of {', '.join(_FORMATS)}, not {kind!r}")
        asked = request.query_params.get("probabilities", "false")
        if asked not in (*_TRUE, *_FALSE):
            raise HTTPException(422, f"probabilities is true or false, not {asked!r}")
        if unknown := sorted(request.query_params.keys() - _QUESTIONS):
            known = ", ".join(_QUESTIONS)
            raise HTTPException(422, f"unknown: {', '.join(unknown)}; known are {known}")
        with TemporaryDirectory(prefix="segresmamba-serve-") as name:
            folder = Path(name)

            def is_unwanted() -> bool:
                return self._is_ending() or from_thread.run(request.is_disconnected)

            try:
                async with self._form(request) as form:
                    files = self._in_order(form.multi_items())
                    return await to_thread.run_sync(
                        lambda: self._answer(
                            files,
                            folder,
                            ENDINGS[kind],
                            is_unwanted,
                            probabilities=asked in _TRUE,
                        )
                    )
            except (UserError, OSError) as error:
                return _error_answer(error, folder, names)

    @asynccontextmanager
    async def _form(self, request: Request) -> AsyncIterator[FormData]:
        """The files that a request has.

        Raises:
            HTTPException: If it is no form, or has something else than files or too many of them.
        """
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise self._no_files("a request without a form")
        try:
            form = await request.form(max_files=len(self._model.channel_names), max_fields=0)
        except HTTPException as error:
            if error.status_code != HTTPStatus.BAD_REQUEST:
                raise
            raise self._no_files(f"another form: {error.detail}") from error
        try:
            yield form
        finally:
            await form.close()

    def _no_files(self, got: str) -> HTTPException:
        names = self._model.channel_names
        return HTTPException(
            422,
            f"send a file for each of the channels {', '.join(names)}, in a field of its name, as "
            f"curl -F {names[0]}=@FILE does; got {got}",
        )

    def _in_order(self, items: list[tuple[str, UploadFile | str]]) -> list[UploadFile]:
        """The files of a form in the order of the channels.

        Raises:
            HTTPException: If a channel is missing or comes twice, or a field is no channel's.
        """
        names = self._model.channel_names
        given = {name: value for name, value in items if isinstance(value, UploadFile)}
        if set(given) == {"image"} and len(names) == 1:
            given = {names[0]: given["image"]}
        if sorted(given) != sorted(names) or len(items) != len(names):
            raise self._no_files(", ".join(name for name, _ in items) or "none")
        return [given[name] for name in names]

    def _answer(
        self,
        files: list[UploadFile],
        folder: Path,
        ending: str,
        is_unwanted: Callable[[], bool],
        *,
        probabilities: bool,
    ) -> Response:
        """Segment files of a client; runs in a thread."""

        def go_on(done: int, total: int) -> None:
            if is_unwanted():
                raise _UnwantedError

        paths = [
            write_upload(upload.file, folder, number, self._max_bytes)
            for number, upload in enumerate(files)
        ]
        self._refuse_large([open_voxels(path) for path in paths])
        answer = folder / "answer"
        answer.mkdir()
        out = answer / f"label{ending}"
        try:
            with self._one_at_a_time, _warnings() as found:
                go_on(0, 0)  # the client may have gone while it waited
                case = self._model.read(paths)
                with (
                    writing_probabilities_of(self._model, case, answer, "label")
                    if probabilities
                    else nullcontext()
                ) as planes:
                    self._model.segment_prepared(case, planes, go_on).save(out)
        except _UnwantedError:
            return refusal(503, "the server is ending")
        if probabilities:
            out = Path(shutil.make_archive(str(answer), "zip", answer))
        headers = {"Content-Disposition": f'attachment; filename="{out.name}"'}
        if found:
            text = "; ".join(found)
            for path, name in reversed(list(zip(paths, self._model.channel_names, strict=True))):
                text = text.replace(str(path), name)
            headers[WARNINGS] = quote(_without(folder, text), safe=" ;:,.()-+/")
        return Response(out.read_bytes(), media_type="application/octet-stream", headers=headers)

    def _refuse_large(self, files: list[VoxelFile]) -> None:
        """Refuse a case by its headers, before memory is taken for it.

        A small file may say that it holds a large volume, or one of large voxels, which would be
        resampled to many small ones.

        Raises:
            DataError: If its voxels take more memory than a request may.
        """
        for file in files:
            shape_DHW, affine = ras_grid(file.shape_XYZ, file.affine)
            own_3 = spacing_mm(affine)
            target_3 = self._model.preprocessing.target_mm(own_3, str(file.path)) or own_3
            more = prod(max(1.0, a / b) for a, b in zip(own_3, target_3, strict=True))
            needed = prod(shape_DHW) * more * _VOXEL_BYTES * len(files)
            if not needed <= self._max_bytes:
                sizes = " x ".join(f"{size:g}" for size in own_3)
                raise DataError(
                    "the image is larger than this server takes",
                    where=file.path,
                    got=f"{file.shape_XYZ} voxels of {sizes} mm (D, H, W): {needed:.4g} bytes "
                    "on the network's grid",
                    remedy=f"send at most {self._max_bytes} bytes; --max-gib raises the limit",
                )


class _UnwantedError(Exception):
    """Nobody waits for the case any more."""


@contextmanager
def _warnings() -> Iterator[dict[str, None]]:
    """Collect the warnings of this package while a block runs, each once."""
    found: dict[str, None] = {}
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.update({record.getMessage(): None})  # type: ignore[method-assign]
    package = logging.getLogger("segresmamba")
    package.addHandler(handler)
    try:
        yield found
    finally:
        package.removeHandler(handler)


def _error_answer(error: UserError | OSError, folder: Path, names: tuple[str, ...]) -> JSONResponse:
    """An error as a client sees it: with the names of channels, and no path of this machine."""
    if is_passing(error):
        logger.error("a case cannot be segmented now: %s", error)
        return refusal(503, "the server cannot do this now; try again later")
    if not isinstance(error, UserError):
        raise error
    text = {
        "detail": error.problem,
        "where": _without(folder, error.where),
        "got": _without(folder, error.got),
        "remedy": _without(folder, error.remedy),
    }
    channel, slash, member = text["where"].partition("/")  # a series has numbered files of its own
    number = channel.partition(".")[0]
    if number.isdecimal() and int(number) < len(names):
        text["where"] = names[int(number)] + slash + member
    return JSONResponse(text, 422)


def _without(folder: Path, text: str) -> str:
    return text.replace(f"{folder}/", "").replace(str(folder), "")
