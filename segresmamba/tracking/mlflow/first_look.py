"""What MLflow's pages show of an experiment before anybody has chosen columns.

MLflow guesses the kind of an experiment, often wrongly, and shows its runs without any metric. Tags
of the experiment say that models are trained in it, and hold a view with the columns that matter:
the one that MLflow's own button "Share" would store. A link in the description opens the view.
"""

from __future__ import annotations

import json
from typing import Any

STATE_TAG = "segresmamba.state"
"""How a run ended: MLflow has no status for a run that was preempted."""
_VIEW = "segresmamba"
# Columns of MLflow's table from left to right, with their widths in pixels, in which the names fit.
_FIXED = {"1": 73, "attributes.`Run Name`": 170, "runDateAndNestInfo": 130, "duration": 80}
_CHOSEN = {
    "metrics.`evaluation/dice/mean`": 160,
    "metrics.`evaluation/hd95_mm/mean`": 195,
    "metrics.`validation/dice/mean`": 160,
    "metrics.`memory/device_peak_allocated_gib`": 255,
    "metrics.`memory/host_peak_gib`": 180,
    "metrics.`time/step_s`": 100,
    "metrics.`energy/energy_kwh`": 155,
    f"tags.`{STATE_TAG}`": 150,
    "attributes.`Dataset`": 200,
}


def first_look(experiment_id: str) -> dict[str, str]:
    """The tags of an experiment."""
    widths = _FIXED | _CHOSEN
    view = {
        "selectedColumns": list(_CHOSEN),
        "columnOrder": list(widths),
        "columnWidths": widths,
    }
    query = f"workflowType=machine_learning&viewStateShareKey={_VIEW}"
    link = f"#/experiments/{experiment_id}/runs?{query}"
    return {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{_VIEW}": json.dumps(view),
        "mlflow.note.content": f"[Runs with their scores, memory, step time and energy]({link})",
    }


def prepare_experiment(client: Any, experiment: Any) -> None:
    """Give an experiment those of the tags that it has not; what a user has changed stays."""
    for key, text in first_look(experiment.experiment_id).items():
        if key not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, key, text)
