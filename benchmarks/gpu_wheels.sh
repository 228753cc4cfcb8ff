#!/bin/sh
# Collect the wheels that gpu_session.py needs beside Python 3.12, torch and Triton, for a machine
# with a GPU and no network:
#
#     benchmarks/gpu_wheels.sh FOLDER              here; FOLDER may take at most 60 MiB
#     pip install --no-index --no-deps FOLDER/*.whl      there
#
# Only torch, Triton and what they require are taken to be there. torch does not require numpy, so
# numpy is in the folder. It and scipy take 51 MiB as they are published; without their tests and
# packed again with LZMA, which pip unpacks too, all wheels together fit.
# Left out on purpose: obstore, which only a store at a URL needs, and mlflow, pandas, pyarrow,
# numba, SimpleITK and codecarbon, which are larger than all others together. With tracking=none
# nothing imports them; tests/test_gpu_session.py runs a session without them.
set -eu
folder=${1:?usage: benchmarks/gpu_wheels.sh FOLDER}
limit_mib=60
root=$(dirname "$0")/..
mkdir -p "$folder"
# Published as source only. DeepSpeed is pure Python unless told to build its kernels.
DS_BUILD_OPS=0 python3 -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$folder" \
    --constraint "$root/constraints.txt" deepspeed antlr4-python3-runtime \
    dynamic-network-architectures
python3 -m pip download --quiet --no-deps --dest "$folder" --only-binary=:all: \
    --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
    --constraint "$root/constraints.txt" \
    annotated-doc annotated-types click cloudpickle donfig einops google-crc32c hjson hydra-core hypothesis \
    iniconfig markdown-it-py mdurl monai msgpack nibabel numcodecs numpy nvidia-ml-py \
    omegaconf packaging pluggy psutil py-cpuinfo pydantic pydantic-core pygments pytest pytest-timeout pyyaml \
    rich safetensors scipy shellingham sortedcontainers submitit tqdm typer typing-inspection zarr
python3 - "$folder"/*.whl <<'PYTHON'
import os
import sys
from zipfile import ZIP_LZMA, ZipFile

for path in sys.argv[1:]:
    with ZipFile(path) as wheel, ZipFile(f"{path}.part", "w") as smaller:
        kept = {entry.filename: entry for entry in wheel.infolist()
                if "tests" not in entry.filename.split("/")[:-1]}
        for name, entry in kept.items():
            content = wheel.read(entry)
            if name.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if line.split(",")[0] in kept).encode()
            smaller.writestr(entry, content, ZIP_LZMA)
    os.replace(f"{path}.part", path)
PYTHON
size_mib=$(du -sm "$folder" | cut -f1)
echo "$size_mib MiB of at most $limit_mib MiB in $folder"
test "$size_mib" -le "$limit_mib"
