"""A run's best weights as an MLflow model, and in the model registry on request.

Everything is looked up before it is made, so sending twice changes nothing.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

from segresmamba.tracking.journal import JournalRecord
from segresmamba.tracking.mlflow.client import library
from segresmamba.tracking.mlflow.state import UploadState

STEP_TAG = "segresmamba.step"
MODEL_NAME = "best"


def send_model(client: Any, record: JournalRecord, source: Path, state: UploadState) -> None:
    """Log the model of a journal's record, and register it if the record names a model.

    Args:
        client: MLflow's client.
        record: Of kind model.
        source: Folder with what the record's loader reads.
        state: Of a run that is in MLflow.
    """
    with warnings.catch_warnings():
        # About its own type hints when it is imported, and about an example it could do without.
        warnings.simplefilter("ignore", UserWarning)
        mlflow = library()
        mlflow.set_tracking_uri(state.connection_uri)  # where it looks a model up
        _send(mlflow, client, record, source, state)


def _send(
    mlflow: Any, client: Any, record: JournalRecord, source: Path, state: UploadState
) -> None:
    step, run_id = record.body["step"], str(state.run_id)
    model = _logged_model(client, str(state.experiment_id), run_id, step)
    ready = mlflow.entities.LoggedModelStatus.READY
    if str(model.status) != str(ready):
        _upload(mlflow, client, record, source, model)
        outputs = client.get_run(run_id).outputs
        known = {output.model_id for output in outputs.model_outputs} if outputs else set()
        if model.model_id not in known:  # MLflow refuses a second one
            output = mlflow.entities.LoggedModelOutput(model.model_id, step=step)
            client.log_outputs(run_id, models=[output])
        client.finalize_logged_model(model.model_id, ready)
    if record.body["register"]:
        _register(client, record.body["register"], model.model_id, run_id, step)


def _logged_model(client: Any, experiment_id: str, run_id: str, step: int) -> Any:
    """The model of this run and step, begun anew if there is none; an upload may have been cut."""
    query = f"source_run_id = '{run_id}' AND tags.`{STEP_TAG}` = '{step}'"
    found = client.search_logged_models([experiment_id], query)
    if found:
        return found[0]
    return client.create_logged_model(
        experiment_id, MODEL_NAME, source_run_id=run_id, tags={STEP_TAG: str(step)}
    )


def _upload(mlflow: Any, client: Any, record: JournalRecord, source: Path, model: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_NAME
        mlflow.pyfunc.save_model(
            path,
            loader_module=record.body["loader"],
            data_path=str(source),
            signature=_signature(mlflow),
            pip_requirements=record.body["requirements"],
            mlflow_model=mlflow.models.Model(
                run_id=model.source_run_id, model_uuid=model.model_id, model_id=model.model_id
            ),
        )
        client.log_model_artifacts(model.model_id, str(path))


def _signature(mlflow: Any) -> Any:
    """One column "image", a path, a list of paths or an array in each row; a label for each."""
    types = mlflow.types.schema
    image = types.ColSpec(types.AnyType(), "image")
    label = types.ColSpec(types.AnyType(), "label")
    return mlflow.models.ModelSignature(types.Schema([image]), types.Schema([label]))


def _register(client: Any, name: str, model_id: str, run_id: str, step: int) -> None:
    """Add the model as the next version of a registered one, unless it is one already."""
    try:
        client.create_registered_model(name)
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if any(version.tags.get(STEP_TAG) == str(step) for version in versions):
        return
    source = f"models:/{model_id}"
    client.create_model_version(name, source, run_id, {STEP_TAG: str(step)}, model_id=model_id)
