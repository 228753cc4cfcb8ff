#!/bin/bash
# Installs the project into /opt/segresmamba, in both kinds of container: constraints.txt says which
# versions. Run in a copy of the repository, on an image with Python, nvcc and a C++ compiler.
#
#   MAMBA=no    leaves mamba-ssm and causal-conv1d out, whose kernels take long to build
set -euo pipefail

python3 -m venv /opt/segresmamba
pip=(/opt/segresmamba/bin/python -m pip install --no-cache-dir --constraint constraints.txt)
# Sources without a pyproject.toml (deepspeed) would be built with whatever is newest.
"${pip[@]}" setuptools hatchling editables wheel packaging ninja
"${pip[@]}" --no-build-isolation --use-pep517 '.[bench,export,postgresql,rivals,sample]'
if [[ ${MAMBA:-yes} != no ]]; then
    # mamba-ssm leaves its Mamba-1 kernels out unless it is told to keep them.
    CAUSAL_CONV1D_FORCE_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE \
        "${pip[@]}" --no-build-isolation --no-deps --no-binary causal-conv1d,mamba-ssm \
        causal-conv1d mamba-ssm
    "${pip[@]}" mamba-ssm
fi
