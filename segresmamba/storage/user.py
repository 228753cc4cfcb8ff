"""The user of this process."""

from __future__ import annotations

import getpass
import os


def user_name() -> str:
    """The user's name, or their number where it has none, as in a container (`docker run -u`)."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())
