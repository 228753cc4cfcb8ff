"""The allocations and releases of a piece of PyTorch code, in order, and their peak.

This works with real and with fake tensors. Fake ones allocate nothing, so a training step can be
followed at any size and without a GPU. Memory that a kernel takes and frees within one operator is
not seen, but for operators with a formula that tells it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segresmamba.planner.footprint import storage_key


class _Event(NamedTuple):
    number: int
    change_bytes: int


class Timeline(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what the code inside it allocates and releases. Older tensors do not count.

    Args:
        workspace_bytes: The most memory that a call of an operator has in use beside its arguments,
            its results included, from the operator and its arguments; 0 where that is not known.
    """

    def __init__(
        self, workspace_bytes: Callable[[object, Sequence[Any]], int] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._workspace_bytes = workspace_bytes
        self._events = list[_Event]()
        self._numbers = dict[int, int]()  # of living storages, by storage_key
        self._left_out = frozenset[int]()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator and note what it allocated."""
        if self._workspace_bytes is not None and (size := self._workspace_bytes(func, args)):
            self.add_transient(size)
        result = func(*args, **(kwargs or {}))
        there_before = {storage_key(tensor) for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            key, storage = storage_key(tensor), tensor.untyped_storage()
            if key in there_before or key in self._numbers:
                continue
            size_bytes, number = storage.nbytes(), len(self._events)
            self._numbers[key] = number
            self._events.append(_Event(number, size_bytes))
            # PyTorch keeps the Python object of a storage for as long as the storage itself, so the
            # finaliser runs when the memory is freed. Releases at exit are of no interest.
            weakref.finalize(storage, self._release, key, size_bytes).atexit = False
        return result

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these living tensors, not even before this call."""
        keys = [storage_key(tensor) for tensor in tensors]
        self._left_out |= {self._numbers[key] for key in keys if key in self._numbers}

    def add_transient(self, size_bytes: int) -> None:
        """Add memory that was not followed, as if it were taken and freed at this moment."""
        number = len(self._events)
        self._events += [_Event(number, size_bytes), _Event(number, -size_bytes)]

    def peak_bytes(self) -> int:
        """The most that was in use at once."""
        changes = (
            event.change_bytes for event in self._events if event.number not in self._left_out
        )
        return max(itertools.accumulate(changes), default=0)

    def _release(self, key: int, size_bytes: int) -> None:
        self._events.append(_Event(self._numbers.pop(key), -size_bytes))


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
