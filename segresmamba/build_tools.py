"""What Triton needs of a machine besides its package; asked without importing Triton or torch.

At its first use on a GPU, Triton compiles small C programs that start its kernels.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

INSTALL_BUILD_TOOLS = (
    "apt-get install gcc libc6-dev python3-dev (dnf install gcc python3-devel; "
    "conda install gxx_linux-64, then export CC=$CONDA_PREFIX/bin/x86_64-conda-linux-gnu-gcc)"
)


def missing_build_tool() -> str | None:
    """The first thing that Triton's build would miss here, by the rules of its runtime/build.py."""
    compiler = os.environ.get("CC")
    if compiler is not None:
        if shutil.which(compiler) is None:
            return f"a C compiler (CC={compiler} cannot be run)"
    elif not any(shutil.which(name) for name in ("gcc", "clang")):
        return "a C compiler (no gcc or clang on the PATH, and CC is not set)"
    # Debian's own scheme for what users install says nothing about where Python's headers are.
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    header = Path(sysconfig.get_path("include", scheme), "Python.h")
    return None if header.exists() else f"Python.h (not in {header.parent})"
