"""Where a run's journal is sent in MLflow, and how much of it: mlflow.json in the run folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import TypeAdapter

from segresmamba.config import TrackingConfig
from segresmamba.config.tracking import server_login, with_password
from segresmamba.errors import ConfigError
from segresmamba.storage.atomic import write_text
from segresmamba.storage.digest import json_digest
from segresmamba.storage.json_text import parse_json
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking.mlflow.first_look import page_of_runs
from segresmamba.tracking.mlflow.login import SERVERS, running_server
from segresmamba.tracking.protocol import TrackingError

LOCK_NAME = ".mlflow.lock"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SQLITE_PREFIX = "sqlite:///"
_UI = "http://127.0.0.1:5000"  # where `mlflow ui` listens


@dataclass
class UploadState:
    """The destination of a journal, and how much of it has arrived there.

    Attributes:
        uri: MLflow tracking URI.
        experiment: Name of the MLflow experiment.
        group: Name of the sweep or cross-validation that the run belongs to, if any.
        artifacts: File URI of the folder for artifacts, if `uri` is a database. A server has its
            own folder.
        journal: Id of the journal. A folder with another journal is sent from the beginning.
        experiment_id: MLflow's id of the experiment, once there is one.
        run_id: MLflow's id of the run, once there is one.
        sent_bytes: Offset in the journal up to which MLflow has everything.
        last_step: Latest step sent of each metric.
        parent_id: MLflow's id of the group's run, once there is one.
        nodes: Offset up to which MLflow has the samples of each node.
        attempts: Each further attempt that was seen, by the number of its record in the journal
            and the step that it went on from.
    """

    uri: str
    experiment: str
    artifacts: str
    journal: str = ""
    experiment_id: str | None = None
    run_id: str | None = None
    sent_bytes: int = 0
    last_step: dict[str, int] = field(default_factory=dict)
    group: str | None = None
    parent_id: str | None = None
    nodes: dict[str, int] = field(default_factory=dict)
    attempts: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse a URI that is none, with a ValueError."""
        urlsplit(self.uri)

    @classmethod
    def load(cls, folder: Path) -> UploadState:
        """Read mlflow.json of a run folder.

        Raises:
            TrackingError: If it is missing or unreadable.
        """
        path = RunFolder(folder).mlflow
        try:
            content = parse_json(path.read_bytes())
            state = TypeAdapter(cls).validate_python(content)
            # Files of earlier versions have no checksum.
            if (written := content.pop("checksum", None)) not in (None, json_digest(content)):
                raise ValueError(f"its checksum is not {written}")
        except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
            raise TrackingError(
                "the file that says which MLflow a run is sent to cannot be read",
                where=path,
                got=error.strerror
                if isinstance(error, OSError)
                else " ".join(str(error).split())[:200],
                remedy="name the folder of a run",
            ) from error
        return state

    def save(self, folder: Path) -> None:
        """Write mlflow.json; a crash leaves the old one or the new one.

        Raises:
            OSError: If it cannot be written.
        """
        content = asdict(self)
        content["checksum"] = json_digest(content)
        write_text(RunFolder(folder).mlflow, json.dumps(content, indent=1))

    def restart(self, journal: str, attempts: Sequence[tuple[int, int]] = ()) -> None:
        """Forget the run in MLflow, and go back to the start of the journal.

        Args:
            journal: Id of the journal.
            attempts: The attempts that are known to be in it.
        """
        self.journal = journal
        self.attempts = list(attempts)
        self.experiment_id = self.run_id = self.parent_id = None
        self.sent_bytes = 0
        self.last_step = {}
        self.nodes = {}

    @property
    def is_database(self) -> bool:
        """Whether `uri` is a database that is written directly, without a server."""
        return _scheme(self.uri) in DATABASES

    @property
    def sqlite_file(self) -> Path | None:
        """The file of an SQLite database; None for any other destination."""
        if not self.uri.startswith(SQLITE_PREFIX):
            return None
        return Path(unquote(self.uri.removeprefix(SQLITE_PREFIX).partition("?")[0]))

    @property
    def connection_uri(self) -> str:
        """The URI to connect to: of a database with its password, of a server without a login."""
        return with_password(self.uri) if self.is_database else server_login(self.uri)[0]

    @property
    def shown_uri(self) -> str:
        """The URI without a password, which an earlier version may have stored in it."""
        parts = urlsplit(self.uri)
        if not parts.password:
            return self.uri
        return urlunsplit(
            parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@"))
        )

    @property
    def ui_hint(self) -> str:
        """The command or the URL that shows the run.

        A plain click on an experiment ends among pages for language models; so the command is
        followed by a comment with the page of the runs, once the experiment is there.
        """
        if self.is_database:
            command = f"mlflow ui --backend-store-uri {shlex.quote(self.shown_uri)}"
            if self.experiment_id is None:
                return command
            return f"{command}  # then {_UI}/#{page_of_runs(self.experiment_id)}"
        if self.run_id is None:
            return self.shown_uri
        return f"{self.shown_uri}/#/experiments/{self.experiment_id}/runs/{self.run_id}"


def open_state(folder: Path, config: TrackingConfig, root: Path) -> UploadState:
    """The state of a run folder for the MLflow that the configuration names.

    A resumed run continues its upload; if it is resumed with another MLflow or experiment, the
    upload begins there from the start of the journal.

    Raises:
        ConfigError: If MLflow cannot be reached through such a URI.
    """
    uri = tracking_uri(config, root)
    artifacts = (root.resolve() / "mlartifacts").as_uri()
    try:
        state = UploadState.load(folder)
    except TrackingError:
        # Nothing is lost without it: the upload finds its run in MLflow by the journal's id.
        state = None
    if state is None or (state.uri, state.experiment) != (uri, config.experiment):
        state = UploadState(uri=uri, experiment=config.experiment, artifacts=artifacts)
    if state.group != config.group:
        state.group, state.parent_id = config.group, None
    return state


def run_hint(folder: Path, config: TrackingConfig, root: Path) -> str:
    """The command or the URL that shows a run, before or after it has begun, as `Tracker.ui_hint`.

    Raises:
        ConfigError: If MLflow cannot be reached through the configured URI.
    """
    if not config.enabled:
        return str(RunFolder(folder).journal)
    return open_state(folder, config, root).ui_hint


def tracking_uri(config: TrackingConfig, root: Path) -> str:
    """The configured tracking URI, with an absolute path.

    If none is configured, it is the server that `slurm/mlflow.sh` runs for `root`. Without such a
    server, or if it is another user's, it is the file mlflow.db in `root`, which is also what that
    server shows.

    Raises:
        ConfigError: If MLflow cannot be reached through such a URI.
    """
    if config.uri is None:
        return running_server(root) or sqlite_uri(root.resolve() / "mlflow.db")
    try:
        scheme, parts = _scheme(config.uri), urlsplit(config.uri)
        has_address = scheme == "sqlite" or (bool(parts.hostname) and parts.port != 0)
        is_known = has_address and scheme in DATABASES + SERVERS
    except ValueError:  # the port is not a number, or a bracket is not closed
        is_known = False
    if not is_known:
        raise ConfigError(
            "MLflow cannot be reached through such a URI",
            where="tracking.uri",
            got=config.uri,
            remedy="give http://host:5000, postgresql://user@host/db or sqlite:////path/mlflow.db,"
            " or leave it out for an SQLite file in run.root",
        )
    if config.uri.startswith(SQLITE_PREFIX):
        # The uploader and a later sync may have another working folder.
        return f"{SQLITE_PREFIX}{Path(config.uri.removeprefix(SQLITE_PREFIX)).resolve()}"
    return config.uri.rstrip("/")


def sqlite_uri(path: Path) -> str:
    """The URI of an SQLite file. A ? in its path would begin a query, and a % a character."""
    return SQLITE_PREFIX + str(path).replace("%", "%25").replace("?", "%3F")


def _scheme(uri: str) -> str:
    """The scheme without a database driver: postgresql of postgresql+psycopg://..."""
    return urlsplit(uri).scheme.partition("+")[0]
