"""Whether the images of a case are given in the order of the channels, as far as names say it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from segresmamba.data.formats.source import strip_ending
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

NUMBERED = re.compile(r"(.+)_(\d{4})")
"""A name without its ending as nnU-Net has them: the case, and the number of the channel."""
_WORD = re.compile(r"[^\W_]+")


def require_channel_order(paths: Sequence[Path], channels: Sequence[str]) -> None:
    """Refuse images whose names say other channels than they are given for.

    Args:
        paths: One for each channel.
        channels: The names of the network's channels.

    Raises:
        DataError: Names the first image that is out of order.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        logger.warning(
            "the same file is given for several channels: %s", ", ".join(map(str, paths))
        )
    said = _numbers(paths, channels) or _names(paths, channels)
    for number, (path, channel) in enumerate(zip(paths, channels, strict=True)):
        if said[number] not in (None, channel):
            raise DataError(
                "the images are named as other channels than they are given for",
                where=path,
                got=f"image {number + 1}, which the network takes for {channel}; its name says "
                f"{said[number]}",
                remedy=f"give the images in this order: {', '.join(channels)}; or rename the file",
            )


def plain(name: str) -> str:
    """A channel's name as it is compared: without marks, in small letters."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _numbers(paths: Sequence[Path], channels: Sequence[str]) -> list[str] | None:
    """The channel that nnU-Net's number gives each file of one case; None without such numbers."""
    matches = [NUMBERED.fullmatch(strip_ending(path.name)) for path in paths]
    found = [(match[1], int(match[2])) for match in matches if match]
    numbers = [number for _, number in found]
    one_case = len(found) == len(paths) and len({case for case, _ in found}) == 1
    if not one_case or sorted(numbers) != list(range(len(channels))):
        return None
    return [channels[number] for number in numbers]


def _names(paths: Sequence[Path], channels: Sequence[str]) -> list[str | None]:
    """The channel that each file's name has as a word; None if it has none, or several."""
    own = [plain(channel) for channel in channels]
    words = [{plain(word) for word in _WORD.findall(strip_ending(path.name))} for path in paths]
    common = set.intersection(*words)  # the name of the case, such as CT_001
    named = [
        [channel for channel, name in zip(channels, own, strict=True) if name in some - common]
        for some in words
    ]
    return [some[0] if len(some) == 1 else None for some in named]
