"""Options of sbatch that differ from site to site, as submitit's parameters."""

from __future__ import annotations

from typing import Any

from segresmamba.config import ClusterConfig
from segresmamba.config.slurm_values import sbatch_options

# When Slurm writes a mail, unless cluster.sbatch has another --mail-type.
_MAIL_TYPE = "END,FAIL"


def with_site_options(parameters: dict[str, Any], cluster: ClusterConfig) -> dict[str, Any]:
    """The parameters of an executor with what a site, or the user for one job, asks for besides.

    Args:
        parameters: Submitit's parameters that every job has, some of which the launcher has chosen.
        cluster: The settings.
    """
    # A job may wait for another one of the launcher's and for one of the user's.
    dependencies = [parameters.get("dependency"), cluster.dependency]
    rest: dict[str, Any] = {
        "reservation": cluster.reservation,
        "licenses": cluster.licenses,
        "mail-type": _MAIL_TYPE if cluster.mail_user else None,
        **sbatch_options(cluster.sbatch),
    }
    chosen: dict[str, Any] = {
        "gpus_per_node": cluster.gpus or parameters.get("gpus_per_node"),
        "gpus_per_task": cluster.gpus_per_task,
        "mem_per_gpu": cluster.mem_per_gpu,
        "nodelist": cluster.nodelist,
        "exclusive": cluster.exclusive or None,
        "comment": parameters.get("comment") or cluster.comment,
        "dependency": ",".join(filter(None, dependencies)) or None,
        "mail_user": cluster.mail_user,
        "additional_parameters": parameters["additional_parameters"]
        | {name: value for name, value in rest.items() if value is not None},
    }
    return parameters | {name: value for name, value in chosen.items() if value is not None}
