"""A run's best weights as an MLflow model, and in the model registry on request.

Everything is looked up before it is made, so sending twice changes nothing. `mlflow` is handed in:
one module imports it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from segresmamba.tracking.journal import Record

STEP_TAG = "segresmamba.step"
MODEL_NAME = "best"


def send_model(
    mlflow: Any, client: Any, record: Record, source: Path, experiment_id: str, run_id: str
) -> None:
    """Log the model of a journal's record, and register it if the record names a model.

    Args:
        mlflow: The library.
        client: Its client.
        record: Of kind model.
        source: Folder with what the record's loader reads.
        experiment_id: MLflow's id of the experiment.
        run_id: MLflow's id of the run.
    """
    step = record.body["step"]
    model = _logged_model(client, experiment_id, run_id, step)
    if str(model.status) != str(mlflow.entities.LoggedModelStatus.READY):
        _upload(mlflow, client, record, source, model)
        output = mlflow.entities.LoggedModelOutput(model.model_id, step=step)
        client.log_outputs(run_id, models=[output])
        client.finalize_logged_model(model.model_id, mlflow.entities.LoggedModelStatus.READY)
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


def _upload(mlflow: Any, client: Any, record: Record, source: Path, model: Any) -> None:
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
