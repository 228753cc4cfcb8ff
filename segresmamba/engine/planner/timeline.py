"""Which memory is alive when: the allocations and releases of a piece of PyTorch code, in order.

It works on real tensors and on fake ones, of which nothing is allocated; so a training step can be
followed to its peak at any size and without a GPU. What a kernel takes and gives back inside one
operator is not seen; `scratch` says how much that is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Scratch = Callable[[str, Sequence[Tensor], Sequence[Tensor]], int]
"""Bytes that an operator takes beside its outputs, from its name, inputs and outputs."""


class _Event(NamedTuple):
    number: int
    change_bytes: int


class Timeline(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what the code inside it allocates and releases, not what was there before.

    Args:
        scratch: What operators take beside their outputs; None leaves it out.
    """

    def __init__(self, scratch: Scratch | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scratch = scratch
        self._events = list[_Event]()
        self._numbers = dict[int, int]()  # of living storages, by their address
        self._gradients = frozenset[int]()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator and note what it allocated."""
        result = func(*args, **(kwargs or {}))
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        there_before = {_key(tensor) for tensor in inputs}
        for tensor in outputs:
            if _key(tensor) not in there_before:
                self._note(tensor)
        if self._scratch and (taken := self._scratch(func.__name__, inputs, outputs)):
            self.aside(taken)
        return result

    def these_are_gradients(self, tensors: Iterable[Tensor]) -> None:
        """Tell the gradients of parameters, while they live, from everything else."""
        keys = [_key(tensor) for tensor in tensors]
        self._gradients |= {self._numbers[key] for key in keys if key in self._numbers}

    def aside(self, size_bytes: int) -> None:
        """Something that was not followed takes this much at this moment, and gives it back."""
        number = len(self._events)
        self._events += [_Event(number, size_bytes), _Event(number, -size_bytes)]

    def peak_bytes(self, gradient_share: float = 1.0) -> int:
        """The most that was in use at once, if only this share of the gradients is kept."""
        return max((int(a + gradient_share * g) for a, g in self._levels()), default=0)

    def _levels(self) -> Iterator[tuple[int, int]]:
        """Other memory and gradients after each event, in bytes."""
        others = gradients = 0
        for number, change_bytes in self._events:
            if number in self._gradients:
                gradients += change_bytes
            else:
                others += change_bytes
            yield others, gradients

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
