"""What mkdocs does besides: two pages made from the code, and links to files that are no pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.main import get_command

from launch.__main__ import app as launch
from segresmamba.cli.main import app as segresmamba
from segresmamba.config.settings import groups

_OUTSIDE = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    for place, lines in (
        ("reference/commands.md", _commands()),
        ("reference/settings.md", _settings()),
    ):
        files.append(File.generated(config, place, content="\n".join(lines) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave the folder at the repository, or leave their text where it is unknown.

    Raises:
        PluginError: If there is no such file.
    """
    folder = Path(config.docs_dir)

    def outside(link: re.Match[str]) -> str:
        text, path, anchor = link.groups(default="")
        target = ((folder / page.file.src_uri).parent / path).resolve()
        if target.is_relative_to(folder.resolve()):
            return link[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri}: there is no {path}")
        if not config.repo_url:
            return text
        place = target.relative_to(folder.resolve().parent)
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{place}{anchor})"

    return _OUTSIDE.sub(outside, markdown)


def _commands() -> Iterator[str]:
    yield "# Commands\n"
    yield "The same texts as with `--help`. `key=value` sets any of the [settings](settings.md).\n"
    for program, app in (("segresmamba", segresmamba), ("python -m launch", launch)):
        group: Any = get_command(app)  # of Typer's own copy of click
        for name, command in group.commands.items():
            if not command.hidden:
                yield from _command(f"{program} {name}", command)


def _command(name: str, command: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    yield f"## {name}\n"
    yield f"    {name} {' '.join(command.collect_usage_pieces(context))}\n"
    yield f"{_plain(command.help)}\n"
    if command.params:
        yield "| argument | default | meaning |\n|---|---|---|"
    for one in command.params:
        is_option = one.param_type_name == "option"
        shown = " ".join(one.opts + one.secondary_opts) if is_option else one.name.upper()
        has_default = one.default not in (None, (), []) and not callable(one.default)
        default = f"`{one.default}`" if has_default else ""
        yield _row(f"`{shown}`", default, _plain(one.help))
    yield ""


def _settings() -> Iterator[str]:
    yield "# Settings\n"
    yield "Every command that trains takes these as `key=value`. A default is that of a run without"
    yield "a word. `segresmamba settings KEY` prints the same.\n"
    for group in groups():
        yield f"## {group.title}\n"
        yield f"{_plain(group.help)}\n"
        if group.presets:
            yield f"Presets: {', '.join(f'`{one}`' for one in group.presets)}.\n"
        if group.settings:
            yield "| setting | default | type | meaning |\n|---|---|---|---|"
        for one in group.settings:
            yield _row(f"`{one.key}`", f"`{one.default}`", _plain(one.kind), _plain(one.help))
        yield ""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(text: str | None) -> str:
    """Help as paragraphs, each on one line."""
    paragraphs = re.split(r"\n\s*\n", re.sub(r"[\b\f]", "", text or "").strip())
    return "\n\n".join(" ".join(one.split()) for one in paragraphs).replace("<", "&lt;")
