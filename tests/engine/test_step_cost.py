"""What a step costs the host: reads for which it waits, and operations that it queues.

The counter sees every operation of PyTorch, on a CPU as on a GPU, without a profiler. What the
scans do inside differs: their Triton backend is counted afterwards, on tensors without data.
"""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from segresmamba.engine import train
from segresmamba.engine.outcome import QueuedStep
from segresmamba.engine.trainer import Trainer
from segresmamba.engine.zero import ZeroEngine
from segresmamba.ops.kernels import TriOperands
from segresmamba.ops.triton import scan, tri
from tests.engine.tiny import tiny_config
from tests.no_convolutions import NoConvolutions

aten = torch.ops.aten
# Operations whose result the host needs before it goes on: numbers, and sizes that depend on data.
READS = {
    *(aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select),
    *(aten._unique2, aten.unique_dim, aten.repeat_interleave),
}
# Beside views, these queue nothing.
NO_WORK = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
SCANS = {
    torch.ops.segresmamba.tri_scan: lambda *arguments: tri.tri_forward(
        TriOperands(*arguments[:9]), arguments[9]
    ),
    torch.ops.segresmamba.tri_scan_backward: lambda dy, operands, slices, _: tri.tri_backward(
        dy, TriOperands(*operands), slices
    ),
}
# What makes a tensor of host values. For a GPU it is followed by a copy for which the host waits.
UPLOADS = {aten.lift_fresh}
# All changes of both presets of augmentation.
CHANGES = (
    *("flip", "affine", "rotation", "scaling", "noise", "gamma", "blur", "intensity_scale"),
    *("intensity_shift", "contrast", "low_resolution", "inverse_gamma"),
)
# Here tensors of host memory are meant to be: batches, and numbers on their way to pinned memory.
ON_THE_HOST = ("stream/batch.py", "stream/intensity.py")


class Cost(TorchDispatchMode):
    """Counts operations by name while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter[Any]()
        self.queued = 0
        """Operations that give the device something to do."""
        self.scans = list[tuple[Any, Any]]()
        self.reads, self.uploads = list[str](), list[str]()
        """The lines that made the host wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = func.overloadpacket
        self.calls[call] += 1
        if call in SCANS:
            self.scans.append((call, tree_map_only(torch.Tensor, _without_data, args)))
        elif not (func.is_view or call in NO_WORK or func.namespace == "profiler"):
            self.queued += 1
        if call in READS | UPLOADS:
            frames = traceback.extract_stack(limit=9)[:-1]
            lines = [f"{frame.filename}:{frame.lineno}" for frame in reversed(frames)]
            if not any(frame.filename.endswith(ON_THE_HOST) for frame in frames):
                (self.reads if call in READS else self.uploads).append(" < ".join(lines))
        return func(*args, **(kwargs or {}))


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def queued_by_triton(scans: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch) -> int:
    """Kernels that the Triton backend starts for these scans, and other operations it queues."""
    started = list[object]()
    for module in (tri, scan):
        monkeypatch.setattr(module, "launch", lambda kernel, *_, **__: started.append(kernel))
    with Cost() as cost:
        for call, arguments in scans:
            SCANS[call](*arguments)
    return cost.queued + len(started)


class CountedError(Exception):
    """Ends a run whose third step has been counted."""


def third_step(monkeypatch: pytest.MonkeyPatch, store: Path, root: Path, *overrides: str) -> Cost:
    """The cost of a step that no record or checkpoint follows, with every change of its crops."""
    queue = Trainer._train_step

    def counted(self: Trainer, *arguments: Any) -> bool:
        if self.step < 2:
            return queue(self, *arguments)
        with Cost() as cost:
            queue(self, *arguments)
        raise CountedError(cost)

    monkeypatch.setattr(Trainer, "_train_step", counted)
    every = ("train.max_steps=9", "train.log_every=9", "train.fold=none", "train.precision=bf16")
    changes = [f"augment.{name}_probability=1" for name in CHANGES]
    with pytest.raises(CountedError) as caught, NoConvolutions():
        train(tiny_config(store, root, *every, *changes, *overrides))
    found: Cost = caught.value.args[0]
    return found


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_step_makes_the_host_wait_once_at_most(
    monkeypatch: pytest.MonkeyPatch, tiny_store: Path, tmp_path: Path, stage: int
) -> None:
    cost = third_step(monkeypatch, tiny_store, tmp_path, f"train.zero_stage={stage}")
    # At stage 0 the one wait is that for the step before. DeepSpeed reads the norm at the others,
    # and makes a number on the device for each group of weights just before.
    assert len(cost.reads) == (0 if stage == 0 else 1), cost.reads
    own = [lines for lines in cost.uploads if "deepspeed" not in lines]
    assert own == []


# What `launch train` takes by default, and what `configure` proposes.
@pytest.mark.parametrize("network", ["segresmamba", "segresmamba_fine"])
@pytest.mark.parametrize("augment", ["default", "nnunet"])
def test_a_step_of_a_default_network_queues_less_than_2000_operations(
    monkeypatch: pytest.MonkeyPatch, tiny_store: Path, tmp_path: Path, network: str, augment: str
) -> None:
    # As many layers as by default. Their widths do not change how many operations there are.
    default = (f"model={network}", "model.dims=[8,16,32,64]", "model.d_state=16",
               "data.patch=[64,16,16]")  # fmt: skip
    fine = ("model.fine_channels=8",) if network == "segresmamba_fine" else ()
    more = ("train.batch_size=1", f"augment={augment}")
    cost = third_step(monkeypatch, tiny_store, tmp_path, *default, *fine, *more)
    triton = queued_by_triton(cost.scans, monkeypatch)
    assert cost.scans
    assert cost.queued + triton < 2000, (cost.queued, triton, cost.calls.total())
    assert cost.reads == cost.uploads == []


def test_the_host_reads_a_step_when_it_has_queued_the_next_forward_pass(
    monkeypatch: pytest.MonkeyPatch, tiny_store: Path, tmp_path: Path
) -> None:
    order = list[str]()

    def noted(owner: type, name: str, note: str) -> None:
        works = getattr(owner, name)

        def note_and_work(*arguments: Any, **more: Any) -> Any:
            order.append(note)
            return works(*arguments, **more)

        monkeypatch.setattr(owner, name, note_and_work)

    noted(ZeroEngine, "forward", "forward")
    noted(QueuedStep, "__init__", "queued")
    noted(QueuedStep, "outcome", "read")
    settings = ("train.log_every=4", "train.checkpoint_every=3", "train.fold=none")
    train(tiny_config(tiny_store, tmp_path, *settings))
    # Step 3 is saved and step 4 recorded: what they have come to is read at once.
    steps = ["", " queued ", " read queued ", " read queued read ", " queued read"]
    assert " ".join(order) == "forward".join(steps)
