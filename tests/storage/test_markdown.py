from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segresmamba.report import write_report
from segresmamba.storage.markdown import destination, text
from tests.report.recorded import record_run

EVIL = "a|b`c`<img src=x onerror=alert(1)>\n\n# [click](http://evil) ![x](y) **z** &lt;"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("segresmamba_small, lr 0.0001", "segresmamba_small, lr 0.0001"),
        ("1.50", "1.50"),
        ("+0.1000", "+0.1000"),
        ("a|b", r"a\|b"),
        ("`rm -rf`", r"\`rm -rf\`"),
        ("<b>new</b> & more", "&lt;b&gt;new&lt;/b&gt; &amp; more"),
        ("two\nlines\r\n\u2028three", "two lines three"),
        ("_x_ *y* ~~z~~", r"\_x\_ \*y\* \~\~z\~\~"),
        ("[a](b) ![c](d)", r"\[a\](b) \!\[c\](d)"),
        ("# title", r"\# title"),
        ("- item", r"\- item"),
        ("12. item", r"12\. item"),
        ("===", r"\==="),
        ("back\\slash|", "back\\\\slash\\|"),
        ("\x1b[31mred", "\ufffd\\[31mred"),
    ],
)
def test_markup_in_a_name_is_shown_and_not_obeyed(value: str, shown: str) -> None:
    assert text(value) == shown


@given(st.text())
def test_no_text_ends_its_line_or_its_cell_or_opens_a_tag(value: str) -> None:
    shown = text(value)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"[<>]", shown)
    assert not re.search(r"[|`*\[\]]", re.sub(r"\\.", "", shown))


def test_the_name_of_a_picture_stays_within_its_link() -> None:
    assert destination("a b.png") == "a b.png"
    assert destination("a>\n<b%.png") == "a%3E%0A%3Cb%25.png"


def test_a_report_of_hostile_names_has_the_lines_of_a_harmless_one(tmp_path: Path) -> None:
    def lines(name: str, model: str, case: str) -> list[str]:
        root = tmp_path / str(len(model))
        record_run(root, name, model=model, cases={case: 0.5})
        made = write_report([str(root)], root / "out", uri=lambda: "")
        return made.markdown.read_text().splitlines()

    harmless = lines("run", "network", "case")
    hostile = lines(EVIL.replace("/", ""), EVIL, "case")
    assert len(hostile) == len(harmless)
    assert not [line for line in hostile if "<img" in line or re.search(r"(?<!\\)\]\(http", line)]
    bars = [re.sub(r"\\.", "", line).count("|") for line in hostile]
    assert bars == [line.count("|") for line in harmless]
