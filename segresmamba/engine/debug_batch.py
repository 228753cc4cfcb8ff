"""`segresmamba debug-batch`: repeat the batch of a skipped step, and find the first broken value.

The crops are read again by their numbers, augmented as in training, and taken through the network
with the weights of that step, one micro batch after the other. The first value that is not finite
is looked for where it can arise: stored voxels, augmentation, weights, the output of each layer,
loss, and on the way back the gradient at the output of each layer and of each parameter.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segresmamba import data
from segresmamba.config import read_config
from segresmamba.errors import CheckpointError, UserError
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.precision import Autocast, spare_small_maps
from segresmamba.task.ranks import device_for
from segresmamba.task.task import Task
from segresmamba.task.weights import check_shapes, first_not_finite, shapes_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Diagnosis:
    """What one micro batch of a skipped step gives when it is repeated."""

    rank: int
    crops: list[int]
    cases: list[str]
    loss_then: str
    """The loss in training."""
    cause: str | None
    """Where the first value that is not finite arises; None if all are finite here."""

    def __str__(self) -> str:
        cause = self.cause or "all values are finite on this machine"
        return f"rank {self.rank}, crops {self.crops} of {self.cases}: {cause}"


def debug_batch(run: Path, step: int | None = None, store: str | None = None) -> list[Diagnosis]:
    """Repeat the batch of a skipped step in this process.

    Args:
        run: A run folder.
        step: A step that was skipped; None takes the last one.
        store: Where the dataset lies here; None takes data.store.

    Returns:
        A diagnosis of each micro batch: first those whose loss was not finite in training.

    Raises:
        UserError: If the run has skipped no such step, or its weights or data cannot be read.
    """
    folder = RunFolder(run)
    config = read_config(folder.config)
    record = _record(folder, step)
    if store is not None:
        data_here = config.data.model_copy(update={"store": store})
        config = config.model_copy(update={"data": data_here})
    task, device = Task.from_config(config), device_for(config.train.device)
    network = task.network()
    weights_step = _load_weights(network, folder.skipped_weights)
    logger.info(
        "step %d again, with the weights of step %d, in %s on %s",
        *(record["step"], weights_step, config.train.precision, device),
    )
    broken_first = sorted(record["batches"], key=lambda b: b["loss"] not in {"nan", "inf", "-inf"})
    repeated = _Repeated(task, network.to(device), device)
    repeated.loss.step = record["step"] - 1
    return [
        Diagnosis(
            b["rank"], b["crops"], b["cases"], b["loss"], next(repeated.findings(b["crops"]), None)
        )
        for b in broken_first
    ]


def _record(folder: RunFolder, step: int | None) -> dict[str, Any]:
    lines = folder.skipped.read_text(encoding="utf-8") if folder.skipped.exists() else ""
    # A job that was killed may have cut a line, and steps that were trained twice have two.
    records: dict[int, dict[str, Any]] = {}
    for line in lines.splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            records[record["step"]] = record
    if not records or (step is not None and step not in records):
        raise UserError(
            "the run has not skipped this step" if records else "the run has skipped no step",
            where=folder.skipped,
            got="STEP" if step is None else f"step {step}",
            remedy=f"give one of {sorted(records)[-10:]}" if records else "there is nothing to do",
        )
    return records[max(records) if step is None else step]


def _load_weights(network: nn.Module, path: Path) -> int:
    """Load the weights into the network, finite or not; return the step that they are of."""
    try:
        content = torch.load(path, "cpu", weights_only=True)
        weights, step = content["weights"], int(content["step"])
    except Exception as error:  # torch raises whatever damaged bytes provoke
        raise CheckpointError(
            "the weights at the skipped step cannot be read",
            where=path,
            got=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="train the run again from its last checkpoint: the step is repeated",
        ) from error
    shapes = {name: list(value.shape) for name, value in weights.items()}
    check_shapes(shapes, shapes_of(network), path)
    network.load_state_dict(weights)
    return step


class _Repeated:
    """The network and the data, ready to take micro batches through."""

    def __init__(self, task: Task, network: nn.Module, device: torch.device) -> None:
        self._task, self._network, self._device = task, network.train(), device
        if device.type == "cpu" and task.config.train.precision == "bf16":
            spare_small_maps(network)
        self._forward = Autocast(network, task.config.train.precision)
        self.loss = task.loss()
        self._outputs, self._gradients = list[str](), list[str]()
        for name, module in network.named_modules():  # one comes after those inside it
            label = f"{name or 'the network'} ({type(module).__name__})"
            module.register_forward_hook(partial(self._see, label))

    def findings(self, crops: list[int]) -> Iterator[str]:
        """Where values of a micro batch are not finite, from its input to its gradients."""
        config = self._task.config
        loader = data.make_loader(
            self._task.dataset,
            self._task.split["train"],
            config.data.model_copy(update={"workers": 0}),
            config.seed,
            rank=0,
            world_size=1,
            micro_batch=len(crops),  # whose numbers follow one another
            start_index=crops[0],
        )
        batch = next(loader).to(self._device)
        x_BCDHW, label_BDHW = data.augment(batch, config.augment, config.seed)
        for what, images in (("input", batch.image_BCDHW), ("augmentation", x_BCDHW)):
            for number, case_id, image in zip(crops, batch.case_ids, images, strict=True):
                if broken := _broken(image):
                    yield f"{what}: {broken} in crop {number}, of case {case_id}"
        if name := first_not_finite(self._network.state_dict().items()):
            yield f"weight: {name} is not finite"
        self._network.zero_grad()
        self._outputs.clear()
        loss = self.loss(self._forward(x_BCDHW), label_BDHW)
        yield from self._outputs
        if not loss.isfinite():
            yield f"loss: it is {float(loss.detach())}, and the logits are all finite"
        self._gradients.clear()
        loss.backward()
        yield from self._gradients
        gradients = [(n, p.grad) for n, p in self._network.named_parameters() if p.grad is not None]
        if name := first_not_finite(gradients):
            yield f"gradient: that of the parameter {name} is not finite"
        if not nn.utils.get_total_norm([gradient for _, gradient in gradients]).isfinite():
            yield "gradient: its norm is not finite, and its elements all are"

    def _see(self, label: str, _: nn.Module, inputs: Any, outputs: Any) -> None:
        """A hook after each module's forward pass."""
        fed = "broken" if any(map(_broken, _tensors(inputs))) else "finite"
        for output in _tensors(outputs):
            if broken := _broken(output):
                self._outputs.append(f"layer {label}: {broken} in its output, from {fed} input")
            if output.requires_grad:
                output.register_hook(  # type: ignore[no-untyped-call]
                    partial(self._see_gradient, label)
                )

    def _see_gradient(self, label: str, gradient: Tensor) -> None:
        if broken := _broken(gradient):
            self._gradients.append(f"gradient: {broken} at the output of layer {label}")


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of floats among a module's inputs or outputs."""
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]


def _broken(values: Tensor) -> str:
    """How many values are not finite, in words; nothing if all are."""
    count = int((~values.isfinite()).sum())
    return f"{count} of {values.numel()} values are not finite" if count else ""
