"""Which memory is alive when: the allocations and releases of a piece of PyTorch code, in order.

It works on real tensors and on fake ones, of which nothing is allocated; so a training step can be
followed to its peak at any size and without a GPU. What a kernel takes and gives back inside one
operator is not seen.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Event(NamedTuple):
    number: int
    change_bytes: int


class Timeline(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what the code inside it allocates and releases, not what was there before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._events = list[_Event]()
        self._numbers = dict[int, int]()  # of living storages, by their address
        self._left_out = frozenset[int]()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator and note what it allocated."""
        result = func(*args, **(kwargs or {}))
        there_before = {_key(tensor) for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            if _key(tensor) not in there_before:
                self._note(tensor)
        return result

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these, which are alive now, from their allocation on."""
        keys = [_key(tensor) for tensor in tensors]
        self._left_out |= {self._numbers[key] for key in keys if key in self._numbers}

    def aside(self, size_bytes: int) -> None:
        """Something that was not followed takes this much at this moment, and gives it back."""
        number = len(self._events)
        self._events += [_Event(number, size_bytes), _Event(number, -size_bytes)]

    def peak_bytes(self) -> int:
        """The most that was in use at once."""
        changes = (
            event.change_bytes for event in self._events if event.number not in self._left_out
        )
        return max(itertools.accumulate(changes), default=0)

    def _note(self, tensor: Tensor) -> None:
        key, storage = _key(tensor), tensor.untyped_storage()
        if key in self._numbers:
            return
        size_bytes, number = storage.nbytes(), len(self._events)
        self._numbers[key] = number
        self._events.append(_Event(number, size_bytes))
        # PyTorch keeps the Python object of a storage for as long as the storage itself.
        weakref.finalize(storage, self._release, key, size_bytes).atexit = False

    def _release(self, key: int, size_bytes: int) -> None:
        self._events.append(_Event(self._numbers.pop(key), -size_bytes))


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
