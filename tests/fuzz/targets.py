"""What others may have written, and the code that reads it: each target is one such reader.

A target begins with a sound document and changes its structure: values become absurd, keys vanish
or come twice. `mutator` then changes its bytes. The reader may accept the result or raise a
`UserError`. Anything else is a finding.
"""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
import yaml
from hypothesis import strategies as st

from launch.sweeps.sweep import Sweep
from segresmamba.config import load_config, read_config
from segresmamba.data import open_dataset
from segresmamba.data.formats.registry import FORMATS, read_source
from segresmamba.data.store import layout
from segresmamba.data.store.locations import files_at
from segresmamba.data.store.shard import _CRC_BYTES, ShardedArray
from segresmamba.data.volumes.volume import read_volume
from segresmamba.engine.checkpoints.checkpoint import Meta, _read_meta, _write_meta
from segresmamba.errors import UserError
from segresmamba.storage.digest import digest_of, json_digest
from segresmamba.storage.json_text import parse_json
from segresmamba.task.weights import check_shapes
from segresmamba.tracking.energy.ledger import SUMMED, Ledger
from segresmamba.tracking.history import read_history
from segresmamba.tracking.journal import Journal
from segresmamba.tracking.journal_lines import _CHECK
from segresmamba.tracking.mlflow.state import UploadState
from tests.data.dicom import FrameSpec, compress, write_frames
from tests.data.raw import describe, write_raw, write_series

ABSURD = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**80, 1e308, -0.5, float("nan"), float("inf"),
    "", "0", "x", "..", "../../x", "/", "\0", "\ud800", "\u2028", "1e999", "=", "[", "{", "a:b",
    [], {}, [[]], [None], {"": None}, {"x": {}}, ["x", 1, {}], [1, 2, 3], [[0.0]], "9" * 5000,
)  # fmt: skip

Change = tuple[int, str, Any]
"""Which place of a document, what happens there, and the value for it."""


@dataclass(frozen=True)
class Target:
    """One kind of file or text."""

    name: str
    strategy: st.SearchStrategy[bytes]
    """Documents whose structure is changed."""
    read: Callable[[bytes], object]
    """Reads one input; a `UserError` is an answer."""
    seal: Callable[[bytes], bytes] = bytes
    """Makes the checksums fit what the document says, so that more than these are tried."""


def changes() -> st.SearchStrategy[list[Change]]:
    """Some changes of a document's structure."""
    value = st.sampled_from(ABSURD) | st.integers() | st.floats() | st.text(max_size=8)
    kind = st.sampled_from(["put", "put", "delete", "wrap", "twice", "swap"])
    return st.lists(st.tuples(st.integers(0, 10_000), kind, value), max_size=3)


def documents(
    sound: Any, write: Callable[[Any], bytes] = lambda content: json.dumps(content).encode()
) -> st.SearchStrategy[bytes]:
    """A document with changes of its structure."""
    return changes().map(lambda some: write(_changed(copy.deepcopy(sound), some)))


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a document with each of its keys."""
    keys = content.keys() if isinstance(content, dict) else range(len(content))
    for key in keys:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])


def _changed(content: Any, some: list[Change]) -> Any:
    """The document after some changes of its structure."""
    box = [content]
    for place, kind, value in some:
        places = list(_places(box))
        where, key = places[place % len(places)]
        if kind == "put":
            where[key] = copy.deepcopy(value)
        elif kind == "wrap":
            where[key] = [where[key]]
        elif kind == "twice" and isinstance(where, list) and where is not box:
            where.append(copy.deepcopy(where[key]))
        elif kind == "swap":
            other, name = places[(place // 7) % len(places)]
            where[key] = copy.deepcopy(other[name])
        elif kind == "delete" and where is not box:
            del where[key]
    return box[0]


def config_words() -> Target:
    """`key=value` overrides. The bytes of words end at a NUL, as those of a process do."""
    sound = [
        "model=segresnet", "train.lr=1e-3", "data.patch=[32,32,32]", "cluster.env={A:b,C:1}",
        "cluster.setup=['module load x']", "data.regions={WT:[1,2],TC:[1]}", "run.name=a",
        "data.store=https://me:pw@host/x", "tracking.uri=postgresql://me:pw@h/db", "seed=1",
        "model.dims=[8,8]", "train.fold=0", "cluster=slurm", "train.warmup_steps=1",
    ]  # fmt: skip
    values = st.sampled_from(ABSURD).map(str) | st.text(max_size=6)
    keys = st.sampled_from([word.partition("=")[0] for word in sound]) | st.text(max_size=6)
    special = st.sampled_from([*"=,[]{}()'\"\\:$~+@*#", "${", "}", "range(", "tag(", " ", "\n"])
    word = (
        st.sampled_from(sound)
        | st.builds("{}={}".format, keys, values)
        | st.builds(
            lambda text, at, extra: text[: at % len(text)] + extra + text[at % len(text) :],
            st.sampled_from(sound), st.integers(0, 99), special,
        )
    )  # fmt: skip
    words = st.lists(word, max_size=2).map(
        lambda some: "\0".join(some).encode(errors="surrogatepass")
    )
    return Target("config words", words, lambda written: load_config(_words(written)))


def _words(written: bytes) -> list[str]:
    return written.decode(errors="surrogateescape").split("\0") if written else []


def config_file(folder: Path) -> Target:
    """config.yaml of a run."""
    path = folder / "config.yaml"
    sound = load_config(["data=sample"]).model_dump(mode="json")
    inputs = documents(sound, lambda content: yaml.safe_dump(content).encode(errors="replace"))
    return Target("config.yaml", inputs, _reader(path, lambda: read_config(path)))


def dataset_json(folder: Path) -> Target:
    """dataset.json of an nnU-Net raw dataset."""
    raw = write_raw(folder / "raw", [(4, 4, 4)])
    path = describe(raw)
    sound = json.loads(path.read_text())
    listed = sound | {"dataset": {"case_0": {"images": ["a.nii"], "label": "b.nii"}}}
    read = _reader(path, lambda: read_source(raw, "nnunet"))
    return Target("dataset.json", documents(sound) | documents(listed), read)


def datalists(folder: Path) -> Target:
    """Lists of the Decathlon, of MONAI and of DICOM, with the format found out or given."""
    folder.mkdir()
    path = folder / "dataset.json"
    entry = {"image": ["a.nii", "b.nii"], "label": "c.nii", "fold": 0, "patient": "p"}
    sound = {
        "name": "x", "modality": {"0": "CT", "1": "PET"}, "labels": {"0": "background", "1": "a"},
        "channel_names": {"0": "CT"}, "training": [entry, entry | {"label": "d.nii", "fold": 1}],
        "validation": [entry | {"label": "e.nii"}],
    }  # fmt: skip

    def read() -> None:
        for name in ("auto", *FORMATS):
            try:
                read_source(folder, name)
            except UserError:
                continue

    return Target("datalists", documents(sound), _reader(path, read))


def journal(folder: Path) -> Target:
    """journal.jsonl of a run."""
    folder.mkdir()
    path = folder / "journal.jsonl"
    written = Journal(path, name="x")
    written.append("params", values={"train": {"lr": 1}})
    written.append("tags", values={"energy.country": "USA", "a": "b"})
    written.append("metrics", step=1, epoch=0.5, values={"train/loss": 0.5, "energy/energy_kwh": 1})
    written.append("artifact", path="x", folder="y")
    written.append("dataset", name="x", digest="0", source="s", profile={"cases": 1})
    written.append("model", path="best", step=1, loader="m", requirements=["a"], register=None)
    written.append("status", status="finished", host="h", pid=1)
    written.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    inputs = documents(lines, _as_lines)
    return Target("journal", inputs, _reader(path, lambda: read_history(folder)), _sealed_lines)


def _as_lines(records: Any) -> bytes:
    records = records if isinstance(records, list) else [records]
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _sealed_lines(written: bytes) -> bytes:
    return b"\n".join(map(_sealed_line, written.split(b"\n")))


def _sealed_line(line: bytes) -> bytes:
    content, mark, _ = line.rpartition(_CHECK)
    return content + mark + digest_of([content]).encode() + b'"}' if mark else line


def _sealed_json(key: str) -> Callable[[bytes], bytes]:
    """Sets the checksum that a JSON document keeps under this key, if it has the key."""

    def seal(written: bytes) -> bytes:
        try:
            content = parse_json(written)
            if content.pop(key, None) is None:
                return written
            return json.dumps(content | {key: json_digest(content)}).encode()
        except (ValueError, AttributeError, TypeError):  # not JSON, or not an object
            return written

    return seal


def ledger(folder: Path) -> Target:
    """emissions.json of a run."""
    folder.mkdir()
    path = folder / "emissions.json"
    facts = {
        "cpu_power": "a", "gpu_power": "b", "ram_power": "c", "intensity_g_per_kwh": 1.0,
        "country": "USA", "intensity_source": "x",
    }  # fmt: skip
    segment = {**dict.fromkeys(SUMMED, 0.5), **facts}
    segments = {"local/0/n": segment, "local/1/n": segment}
    sound = {"schema": 1, "segments": segments, "digest": ""}

    def read() -> None:
        Ledger(folder).totals()
        Ledger(folder).power()

    return Target("ledger", documents(sound), _reader(path, read), _sealed_json("digest"))


def upload_state(folder: Path) -> Target:
    """mlflow.json of a run."""
    folder.mkdir()
    state = UploadState("sqlite:///x", "e", "file:///a", nodes={"n": 1}, last_step={"a": 1})
    state.save(folder)
    path = folder / "mlflow.json"
    sound = json.loads(path.read_text())

    def read() -> None:
        found = UploadState.load(folder)
        _ = found.ui_hint, found.shown_uri, found.sqlite_file, found.is_database

    seal = _sealed_json("checksum")
    return Target("mlflow.json", documents(sound), _reader(path, read), seal)


def sweep_manifest(folder: Path) -> Target:
    """manifest.json of a sweep and, after a NUL, what a trial of a search has recorded."""
    folder.mkdir()
    search = {
        "words": ["train.lr=1e-3,1e-4"], "storage": None, "digest": "0", "sample": {"train.lr": "1"}
    }  # fmt: skip
    trial = {
        "number": 0, "words": ["train.lr=1e-3"], "digest": "0", "run": "r", "state": "waiting",
        "job": None, "values": {"train.lr": "1e-3"}, "pruned_at": None, "dice": None,
    }  # fmt: skip
    sound = {"name": "x", "search": search, "trials": [trial, trial | {"number": 1}]}
    record = {"digest": "0", "values": {"train.lr": "1e-3"}, "pruned_at": None}
    parts = st.builds(lambda *both: b"\0".join(both), documents(sound), documents(record))

    def read(written: bytes) -> None:
        manifest, _, recorded = written.partition(b"\0")
        (folder / "manifest.json").write_bytes(manifest)
        (folder / "trial-000.json").write_bytes(recorded)
        sweep = Sweep.read(folder)
        for one in sweep.trials:
            sweep.settings(one)

    return Target("sweep manifest", parts, read)


def checkpoint_meta(folder: Path) -> Target:
    """meta.json of a checkpoint."""
    folder.mkdir()
    _write_meta(folder, Meta(4, 2, 0, "digest", {"a.weight": [1, 2]}, {"rank-00000.pt": "crc"}))
    path = folder / "meta.json"
    sound = json.loads(path.read_text())

    def read() -> None:
        meta = _read_meta(folder, 4)
        check_shapes(meta.shapes, {"a.weight": [1, 2]}, folder)

    seal = _sealed_json("digest")
    return Target("checkpoint meta", documents(sound), _reader(path, read), seal)


def store_manifest(store: Path) -> Target:
    """dataset.json of a store, and what a run takes from it."""
    path = store / "dataset.json"
    sound = json.loads(path.read_text())
    sound["cases"] = dict(list(sound["cases"].items())[:2])

    def read() -> None:
        dataset = open_dataset(store)
        for case_id in dataset.case_ids[:2]:
            case = dataset[case_id]
            _ = case.normalisation_C4, case.affine, case.original
            case.crop((0, 0, 0), (2, 2, 2))

    seal = _sealed_json("checksum")
    return Target("store manifest", documents(sound), _reader(path, read), seal)


def zarr_json(store: Path) -> Target:
    """zarr.json of a stored image."""
    path = store / "case_0" / layout.IMAGE / "zarr.json"
    sound = json.loads(path.read_text())
    dataset = open_dataset(store)

    def read() -> None:
        dataset._case.cache_clear()
        dataset["case_0"].crop((0, 0, 0), (2, 2, 2))

    return Target("zarr.json", documents(sound), _reader(path, read))


def shard(store: Path) -> Target:
    """The shard of a stored image."""
    path = layout.shard_file(store / "case_0" / layout.IMAGE, 4)
    sound, dataset = path.read_bytes(), open_dataset(store)
    chunks = ShardedArray(files_at(store), f"case_0/{layout.IMAGE}")._index.size // 2

    def read() -> None:
        dataset._case.cache_clear()
        case = dataset["case_0"]
        case.crop((0, 0, 0), case.shape_DHW)

    seal = partial(_sealed_shard, chunks=chunks)
    return Target("shard", _patched(sound), _reader(path, read), seal)


def _sealed_shard(written: bytes, chunks: int) -> bytes:
    content, begin = bytearray(written), len(written) - 16 * chunks - _CRC_BYTES
    if begin < 0:
        return written
    parts = [
        (offset, offset + count)
        for offset, count in struct.iter_unpack("<QQ", content[begin:-_CRC_BYTES])
    ]
    for start, end in [*parts, (begin, len(content))]:
        if start + _CRC_BYTES <= end <= len(content):
            crc = google_crc32c.value(bytes(content[start : end - _CRC_BYTES]))
            content[end - _CRC_BYTES : end] = crc.to_bytes(_CRC_BYTES, "little")
    return bytes(content)


_PLACES = (
    "LOCAL", "LIST", "LIST 1", "LIST 2", "s%d.raw 0 3 1", "s%d.raw 0 3 0", "s%d.raw 3 0 -1",
    "s%d.raw 0 1", "s%d.raw", "s%99999d.raw 0 3 1", "%s%s%n", "s0.raw", "/dev/zero",
)  # fmt: skip
"""Where a header may say that its voxels lie."""


def headers(folder: Path) -> list[Target]:
    """Headers of NIfTI-1, NIfTI-2, NRRD, MetaImage, TIFF and DICOM files, and of DICOM slices.

    NRRD and MetaImage also with the voxels in a file for each slice.
    """
    folder.mkdir()
    voxels = np.arange(1, 65, dtype=np.int16).reshape(4, 4, 4)
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(folder / "a.nii")
    nib.Nifti2Image(voxels, np.eye(4)).to_filename(folder / "b.nii")
    for name in ("c.nrrd", "d.mha", "e.tif"):
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / name))
    write_frames(folder / "f.dcm", [FrameSpec(voxels[..., z], 2.0 * z) for z in range(4)])
    series = [folder / "series", folder / "series, compressed"]
    for one in series:
        write_series(one, voxels)
    compress(series[1] / "000.dcm")
    names = {
        "NIfTI-1": "a.nii", "NIfTI-2": "b.nii", "NRRD": "c.nrrd", "MetaImage": "d.mha",
        "TIFF": "e.tif", "DICOM frames": "f.dcm",
    }  # fmt: skip
    for kind, name, old, new in (
        ("NRRD, files", "g.nhdr", b"encoding: raw", b"encoding: raw\ndata file: s%d.raw 0 3 1"),
        ("MetaImage, files", "h.mhd", b"LOCAL", b"LIST\ns0.raw\ns1.raw\ns2.raw\ns3.raw"),
    ):
        header = (folder / names[kind.removesuffix(", files")]).read_bytes()
        begin = header.index(old)
        (folder / name).write_bytes(header[:begin] + new + b"\n")
        names[kind] = name
        for number in range(4):
            place = folder / f"{kind}.d" / f"s{number}.raw"
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(voxels[..., number].tobytes())
    targets = [_header(kind, folder / name, folder / f"{kind}.d") for kind, name in names.items()]
    slices = [_header(f"DICOM {one.name}", one / "000.dcm", one) for one in series]
    return [*targets, *slices]


def _header(kind: str, path: Path, folder: Path) -> Target:
    """The header of one file, in a folder that may hold other slices of its series."""
    folder.mkdir(exist_ok=True)
    content, place = path.read_bytes(), folder / path.name
    words = st.sampled_from(ABSURD).map(str) | _numbers().map(str) | st.sampled_from(_PLACES)
    is_text = kind.startswith(("NRRD", "MetaImage"))
    texts = st.lists(st.tuples(st.integers(0, 30), words), max_size=2 if is_text else 0)

    def changed(patched: bytes, words: list[Any]) -> bytes:
        lines = patched.split(b"\n")
        for line, word in words:
            if line < len(lines):
                key, mark, _ = lines[line].partition(b" ")
                lines[line] = key + mark + word.encode(errors="replace")
        return b"\n".join(lines)

    def read(written: bytes) -> None:
        place.unlink(missing_ok=True)  # an earlier volume may be mapped
        place.write_bytes(written)
        read_volume([folder if kind.startswith("DICOM series") else place])

    return Target(kind, st.builds(changed, _patched(content), texts), read)


def _numbers() -> st.SearchStrategy[int]:
    return st.sampled_from(
        [0, 1, -1, 2, 7, 255, 256, 32767, -32768, 2**31 - 1, 10**5]
    ) | st.integers(-(2**31), 2**31 - 1)


def _patched(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with up to four other numbers at any place."""
    places, forms = st.integers(0, len(content)), st.sampled_from(["<h", "<i", "<f", "<q", "<d"])

    def patched(some: list[tuple[int, str, int]]) -> bytes:
        changed = bytearray(content)
        for at, form, number in some:
            if at + struct.calcsize(form) <= len(changed):
                struct.pack_into(form, changed, at, _fitting(form, number))
        return bytes(changed)

    return st.lists(st.tuples(places, forms, _numbers()), max_size=4).map(patched)


def _fitting(form: str, number: int) -> float:
    if form in ("<f", "<d"):
        return float(number)
    bits = 8 * struct.calcsize(form)
    return (number + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


def _reader(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    """A reader of the file `path` that takes the file's content."""

    def written(content: bytes) -> object:
        path.write_bytes(content)
        return read()

    return written


def all_targets(folder: Path, store: Path) -> list[Target]:
    """Every target, with its files below `folder`; `store` is copied."""
    stores = [Path(shutil.copytree(store, folder / f"store-{number}")) for number in range(3)]
    return [
        config_words(),
        config_file(folder),
        dataset_json(folder / "raw"),
        datalists(folder / "lists"),
        journal(folder / "journal"),
        ledger(folder / "ledger"),
        upload_state(folder / "mlflow"),
        sweep_manifest(folder / "sweep"),
        checkpoint_meta(folder / "meta"),
        store_manifest(stores[0]),
        zarr_json(stores[1]),
        shard(stores[2]),
        *headers(folder / "headers"),
    ]
