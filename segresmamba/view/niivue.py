"""NiiVue, which draws volumes in the browser: one file of its npm package, pinned by a digest.

The file (2.3 MB) is not in the repository. `make train` and `make test` install it where there is
npm, and a wheel that is built afterwards carries it.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from segresmamba.errors import BackendMissingError, DataError
from segresmamba.storage.atomic import atomic_path

VERSION = "0.69.0"
PAGE = Path(__file__).parent / "page"
"""Folder of the page's files; NiiVue's licence lies there too."""
SCRIPT = PAGE / f"niivue-{VERSION}.js"

_PACKAGE = f"@niivue/niivue@{VERSION}"
_ARCHIVE = f"niivue-niivue-{VERSION}.tgz"
_MEMBER = "package/dist/niivue.umd.js"
# `npm view @niivue/niivue@0.69.0 dist.integrity`
_SHA512 = "YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA=="
_REMEDY = (
    "`segresmamba view --install-niivue npm` fetches it with npm and checks its digest. Without "
    f"npm: run `npm pack {_PACKAGE}` on another machine, copy {_ARCHIVE} here, and give "
    f"`segresmamba view --install-niivue {_ARCHIVE}`"
)


def require_niivue() -> None:
    """Refuse to show a page without its library.

    Raises:
        BackendMissingError: Says how to install it.
    """
    if not SCRIPT.exists():
        raise BackendMissingError(
            "NiiVue, which draws the volumes in the browser, is not installed",
            where=SCRIPT,
            got="no such file",
            remedy=_REMEDY,
        )


def install(source: str) -> Path:
    """Put NiiVue's file beside the page. Does nothing if it is there.

    Args:
        source: "npm", or the package's archive (.tgz).

    Returns:
        The file.

    Raises:
        UserError: If npm cannot fetch the package, or the archive is another one.
    """
    if SCRIPT.exists():
        return SCRIPT
    with TemporaryDirectory() as folder:
        archive = _fetched(Path(folder)) if source == "npm" else Path(source)
        _require_pinned(archive)
        with tarfile.open(archive) as package:
            content = package.extractfile(_MEMBER)
            assert content is not None, _MEMBER
            script = content.read()
    try:
        with atomic_path(SCRIPT) as temporary:
            temporary.write_bytes(script)
    except OSError as error:
        raise DataError(
            "NiiVue cannot be installed into the package's folder",
            where=PAGE,
            got=error.strerror,
            remedy="install it as the user who has installed segresmamba",
        ) from error
    return SCRIPT


def _fetched(folder: Path) -> Path:
    """The package's archive, fetched by npm from the registry that it is configured for."""
    # Without retries: an offline machine shall say so at once.
    command = ["npm", "pack", _PACKAGE, "--silent", "--fetch-retries=0"]
    try:
        subprocess.run(
            [*command, "--pack-destination", folder], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
        raise BackendMissingError(
            "npm could not fetch NiiVue",
            where=" ".join(command),
            got=(said or str(error)).splitlines()[-1],
            remedy=_REMEDY,
        ) from error
    return folder / _ARCHIVE


def _require_pinned(archive: Path) -> None:
    try:
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    except OSError as error:
        raise DataError(
            "NiiVue's package cannot be read", where=archive, got=error.strerror, remedy=_REMEDY
        ) from error
    if found != _SHA512:
        raise DataError(
            f"this is not the package of NiiVue {VERSION}",
            where=archive,
            got=f"sha512-{found}",
            remedy=f"it must have sha512-{_SHA512}. {_REMEDY}",
        )
