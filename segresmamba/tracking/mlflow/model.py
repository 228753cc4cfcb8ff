"""A run's best weights as a model in MLflow, and in its model registry on request.

Everything is looked up before it is made, so sending it twice changes nothing.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

from segresmamba.tracking.journal import JournalRecord
from segresmamba.tracking.mlflow.client import error_name, library
from segresmamba.tracking.mlflow.state import UploadState

STEP_TAG = "segresmamba.step"
MODEL_NAME = "best"


def send_model(client: Any, record: JournalRecord, source: Path, state: UploadState) -> None:
    """Log the model of a journal's record, and register it if the record names a model.

    Args:
        client: MLflow's client.
        record: A record of kind model.
        source: Folder with what the record's loader reads.
        state: The state of a run that is in MLflow.
    """
    with warnings.catch_warnings():
        # MLflow warns about its own type hints on import, and about a missing input example.
        warnings.simplefilter("ignore", UserWarning)
        mlflow = library()
        mlflow.set_tracking_uri(state.connection_uri)  # MLflow looks models up there
        step, run_id = record.body["step"], str(state.run_id)
        query = f"source_run_id = '{run_id}' AND tags.`{STEP_TAG}` = '{step}'"
        found = client.search_logged_models([state.experiment_id], query) or [
            client.create_logged_model(
                state.experiment_id, MODEL_NAME, source_run_id=run_id, tags={STEP_TAG: str(step)}
            )
        ]
        model = found[0]
        ready = mlflow.entities.LoggedModelStatus.READY
        if str(model.status) != str(ready):  # it is new, or a kill cut its upload
            _upload(mlflow, client, record, source, model)
            outputs = client.get_run(run_id).outputs
            known = {output.model_id for output in outputs.model_outputs} if outputs else set()
            if model.model_id not in known:  # MLflow refuses a second one
                output = mlflow.entities.LoggedModelOutput(model.model_id, step=step)
                client.log_outputs(run_id, models=[output])
            client.finalize_logged_model(model.model_id, ready)
        if record.body["register"]:
            _register(client, record.body["register"], model.model_id, run_id, step)


def _upload(mlflow: Any, client: Any, record: JournalRecord, source: Path, model: Any) -> None:
    types = mlflow.types.schema
    # A row's image is a path, a list of paths or an array, so its type is left open.
    image = types.Schema([types.ColSpec(types.AnyType(), "image")])
    label = types.Schema([types.ColSpec(types.AnyType(), "label")])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_NAME
        mlflow.pyfunc.save_model(
            path,
            loader_module=record.body["loader"],
            data_path=str(source),
            signature=mlflow.models.ModelSignature(image, label),
            pip_requirements=record.body["requirements"],
            mlflow_model=mlflow.models.Model(
                run_id=model.source_run_id, model_uuid=model.model_id, model_id=model.model_id
            ),
        )
        client.log_model_artifacts(model.model_id, str(path))


def _register(client: Any, name: str, model_id: str, run_id: str, step: int) -> None:
    """Make the model the next version of the registered model `name`, unless it is one already."""
    try:
        client.create_registered_model(name)
    except Exception as error:
        if error_name(error) != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if any(version.tags.get(STEP_TAG) == str(step) for version in versions):
        return
    source = f"models:/{model_id}"
    client.create_model_version(name, source, run_id, {STEP_TAG: str(step)}, model_id=model_id)
