"""Bounds that CT is clipped to before it is stored, from a first pass over all cases.

Training clips CT to percentiles of the foreground of all cases. What lies beyond, such as the noise
of air, takes space in a store but reaches no network.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from segresmamba.data.conversion.case import case_foreground
from segresmamba.data.conversion.case_pool import outcomes
from segresmamba.data.conversion.plan import ConversionPlan
from segresmamba.data.conversion.store_folder import StoreFolder
from segresmamba.data.preprocessing import ct_normalisation
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)


def lacks_ct_bounds(plan: ConversionPlan, *, overwrite: bool) -> bool:
    """Whether the policy clips CT and the store's conversion has not begun, which fixes bounds."""
    begun = not overwrite and StoreFolder.read_header(plan.out) is not None
    return "ct-clipped" in plan.storage.policy.intensity and not begun


def with_ct_bounds(plan: ConversionPlan, workers: int) -> ConversionPlan:
    """The plan with the bounds that a first pass over all cases finds.

    Refused cases are left out: converting them reports why.

    Raises:
        DataError: If no case has a foreground.
    """
    kinds = plan.storage.policy.intensity
    logger.info("reading all cases once, for the bounds that CT is clipped to")
    read = outcomes(case_foreground, plan, plan.dataset.cases, workers)
    # In the order of the cases: processes end in any order, and sums of floats depend on it.
    found = [one for _, one in sorted(read, key=lambda pair: pair[0]) if isinstance(one, tuple)]
    bounds: list[tuple[float, float] | None] = []
    for channel, kind in enumerate(kinds):
        if kind != "ct-clipped":
            bounds.append(None)
            continue
        samples = [foreground[channel] for foreground in found]
        if not any(samples):
            raise DataError(
                "CT cannot be clipped to the foreground of all cases: there is none",
                where=plan.source,
                got=f"{len(found)} readable cases without a labelled voxel",
                remedy="correct the labels, or convert with --intensity ct, which names each case",
            )
        whole = ct_normalisation(samples)
        bounds.append((whole.low, whole.high))
        name = plan.dataset.channel_names[channel]
        logger.info("%s is clipped to %.6g and %.6g", name, whole.low, whole.high)
    return replace(plan, storage=plan.storage.model_copy(update={"clip": tuple(bounds)}))
