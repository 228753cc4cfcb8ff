"""What MLflow's pages show of an experiment before anybody has chosen columns or charts.

MLflow 3 opens an experiment as one of language models unless the URL or the browser's memory says
otherwise, shows its runs without any metric, and compares runs by a metric of its own choice. Tags
of the experiment say that models are trained in it, and hold a view with the columns and bars that
matter: the one that MLflow's own button "Share" would store. Links in the description open the
view.
"""

from __future__ import annotations

import json
from typing import Any

STATE_TAG = "segresmamba.state"
"""How a run ended: MLflow has no status for a run that was preempted."""
_VIEW = "segresmamba"
# Columns of MLflow's table from left to right, with their widths in pixels, in which the names fit.
_FIXED = {"1": 73, "attributes.`Run Name`": 170, "runDateAndNestInfo": 130, "duration": 80}
_METRICS = {
    "evaluation/dice/mean": 160,
    "evaluation/hd95_mm/mean": 195,
    "validation/dice/mean": 160,
    "memory/device_peak_allocated_gib": 255,
    "memory/host_peak_gib": 180,
    "time/step_s": 100,
    "energy/energy_kwh": 155,
}
_CHOSEN = {f"metrics.`{name}`": width for name, width in _METRICS.items()} | {
    f"tags.`{STATE_TAG}`": 150,
    "attributes.`Dataset`": 200,
}
_BARS = "At a glance"
"""The section of the bars. MLflow sorts sections by name, and this one comes first."""


def first_look(experiment_id: str) -> dict[str, str]:
    """The tags of an experiment."""
    widths = _FIXED | _CHOSEN
    view = {
        "selectedColumns": list(_CHOSEN),
        "columnOrder": list(widths),
        "columnWidths": widths,
        "compareRunSections": [{"uuid": _VIEW, "name": _BARS, "display": True}],
        "compareRunCharts": [
            {
                "type": "BAR",
                "uuid": f"{_VIEW}-{name}",
                "metricSectionId": _VIEW,
                "metricKey": name,
                "runsCountToCompare": 10,
            }
            for name in _METRICS
        ],
    }
    table = f"#{page_of_runs(experiment_id)}"
    return {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{_VIEW}": json.dumps(view),
        # In one line: MLflow shows the first line of a description and folds the rest.
        "mlflow.note.content": f"[Runs with their scores, memory, step time and energy]({table}), "
        f"[the same as bars]({table}&compareRunsMode=CHART)",
    }


def page_of_runs(experiment_id: str) -> str:
    """The page of MLflow with the runs of an experiment, in the view of the tags."""
    query = f"workflowType=machine_learning&viewStateShareKey={_VIEW}"
    return f"/experiments/{experiment_id}/runs?{query}"


def prepare_experiment(client: Any, experiment: Any) -> None:
    """Give an experiment those of the tags that it has not; what a user has changed stays."""
    for key, text in first_look(experiment.experiment_id).items():
        if key not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, key, text)
