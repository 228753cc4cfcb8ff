"""The file of full weights: safetensors, with facts in its header. It is never a pickle.

The header's `__metadata__` has

    format           "pt", as other tools expect
    segresmamba      version of this layout
    facts            what is known of the weights, as JSON
    facts_digest
    weights_digest   of names, types, shapes and values
    aliases          as JSON: further names of tensors that a library names twice

Earlier versions wrote a dictionary with `torch.save`: "weights", the facts, and "digests" of both
(the first versions none). Such files are read with `weights_only`, which makes tensors and plain
values and runs no code.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load
from torch import Tensor

from segresmamba.storage.digest import digest_of, json_digest
from segresmamba.storage.json_text import parse_json

_VERSION = 1
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# What the first versions saved, which wrote no digests.
_WITHOUT_DIGESTS = {"weights", "step", "dice", "labels", "channel_names", "preprocessing"}


def write_file(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write weights and facts, of plain types only.

    The library's own writer is not used. It keeps the weights in memory a second time, renames over
    whatever `path` is, a device included, and reports a full disk without its number.

    Raises:
        OSError: If the file cannot be written.
    """
    aliases = _aliases(weights)
    stored = {name: values for name, values in weights.items() if name not in aliases}
    # Large elements first: each tensor is then aligned, as the library's writer has it.
    ordered = sorted(stored.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {
        "__metadata__": {
            "format": "pt",
            "segresmamba": str(_VERSION),
            "facts": json.dumps(facts),
            "facts_digest": json_digest(facts),
            "weights_digest": _weights_digest(weights),
            **({"aliases": json.dumps(aliases)} if aliases else {}),
        }
    }
    end = 0
    for name, values in ordered:
        start, end = end, end + values.nbytes
        header[name] = {
            "dtype": _DTYPES[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        file.write(text)
        for _, values in ordered:
            file.write(_bytes_of(values))


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a file, checked against their digest; the weights are not read.

    Raises:
        Exception: If the file is missing or damaged, whatever the bytes provoke.
    """
    if is_safetensors(path):
        with path.open("rb") as file:
            return _facts(_metadata(file))
    # A mapped file is read where a tensor is used, and no tensor is used here.
    return _former(path, mmap=True)[1]


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and facts of a file, checked against their digests.

    Raises:
        Exception: As `read_facts`.
    """
    # Neither form is mapped: should another computer replace the file meanwhile, access to a mapped
    # page could kill this process, where reading raises an error.
    if not is_safetensors(path):
        return _former(path, mmap=False)
    content = path.read_bytes()
    metadata, weights = _metadata(BytesIO(content)), load(content)
    aliases: dict[str, str] = parse_json(metadata.get("aliases", "{}"))
    weights |= {name: weights[kept] for name, kept in aliases.items()}
    _compare("weights", metadata["weights_digest"], _weights_digest(weights))
    return weights, _facts(metadata)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do, whatever its name is."""
    with path.open("rb") as file:
        return file.read(_LENGTH_BYTES + 1)[_LENGTH_BYTES:] == b"{"


def has_facts(path: Path) -> bool:
    """Whether a safetensors file is one that `write_file` wrote."""
    with path.open("rb") as file:
        return "segresmamba" in _header(file).get("__metadata__", {})


def _compare(what: str, written: str, found: str) -> None:
    """Refuse content whose digest is not the one that was written with it."""
    if found != written:
        raise ValueError(f"checksum of the {what}: {found}, written with {written}")


def _weights_digest(weights: Mapping[str, Tensor]) -> str:
    """The digest of names, types, shapes and values, however the file stores them."""

    def parts() -> Iterator[Any]:
        for name, values in sorted(weights.items()):
            yield f"{name} {values.dtype} {list(values.shape)}\n".encode()
            yield _bytes_of(values)

    return digest_of(parts())


def _aliases(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The names of tensors that are the same memory as one before them, and the name of that."""
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, values in weights.items():
        place = (values.data_ptr(), values.dtype, values.shape, values.stride())
        if values.numel() and first.setdefault(place, name) != name:
            aliases[name] = first[place]
    return aliases


def _bytes_of(values: Tensor) -> Any:
    return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _header(file: BinaryIO) -> dict[str, Any]:
    size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    text = file.read(size) if size < 1 << 30 else b""  # a damaged length may be any number
    header: dict[str, Any] = parse_json(text)
    return header


def _metadata(file: BinaryIO) -> dict[str, str]:
    metadata: dict[str, str] = _header(file).get("__metadata__", {})
    if "segresmamba" not in metadata:
        raise ValueError("no facts about the weights: segresmamba did not write this file")
    if int(metadata["segresmamba"]) > _VERSION:
        raise ValueError("a newer version of segresmamba wrote this file")
    return metadata


def _facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    facts: dict[str, Any] = parse_json(metadata["facts"])
    _compare("facts", metadata["facts_digest"], json_digest(facts))
    return facts


def _former(path: Path, *, mmap: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an earlier version wrote. The weights are compared only if they are not mapped."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):  # as those of torch.save are
            raise ValueError(
                "neither safetensors nor a file of torch.save: a bare pickle, or damaged"
            )
    content: dict[str, Any] = torch.load(path, "cpu", weights_only=True, mmap=mmap)
    digests = content.pop("digests", None)
    if digests is None and (unknown := content.keys() - _WITHOUT_DIGESTS):
        raise ValueError(f"unknown entries: {sorted(map(str, unknown))}")
    weights: dict[str, Tensor] = content.pop("weights")
    if digests is not None:
        _compare("facts", digests["facts"], json_digest(content))
        if not mmap:
            _compare("weights", digests["weights"], _weights_digest(weights))
    return weights, content
