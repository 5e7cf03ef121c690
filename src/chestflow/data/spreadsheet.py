"""The first sheet of an .xlsx file as text, for the few sets whose tables are workbooks.

A workbook is a zip of XML (ECMA-376, part 1, section 18): cells hold a number, an index into the shared strings, or a
string of their own. Formulas, dates and styles are not looked at.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from chestflow.errors import DataError

_SPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def _text(node: ElementTree.Element) -> str:
    return "".join(part.text or "" for part in node.iter(f"{_SPACE}t"))


def _column(reference: str) -> int:
    """``A1`` -> 0, ``AB7`` -> 27."""
    number = 0
    for letter in re.sub(r"[^A-Z]", "", reference):
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1


def _cells(archive: zipfile.ZipFile) -> Iterator[dict[int, str]]:
    """Column -> text, for each row of the first sheet."""
    shared: list[str] = []
    if "xl/sharedStrings.xml" in archive.namelist():
        shared = [_text(item) for item in ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))]
    for row in ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml")).iter(f"{_SPACE}row"):
        found: dict[int, str] = {}
        for place, cell in enumerate(row.iter(f"{_SPACE}c")):
            value = cell.findtext(f"{_SPACE}v", "")
            kind = cell.get("t", "n")
            words = shared[int(value)] if kind == "s" and value else _text(cell) if kind == "inlineStr" else value
            found[_column(cell.get("r", "")) if cell.get("r") else place] = words.strip()
        yield found


def read_sheet(path: Path) -> list[dict[str, str]]:
    """The lines below the first one by its names; what a line leaves out is empty.

    Raises:
        DataError: the file is no workbook, or its first sheet is not where workbooks have it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            lines = list(_cells(archive))
    except (zipfile.BadZipFile, KeyError, ValueError, IndexError, ElementTree.ParseError):
        raise DataError(f"{path} is not a readable .xlsx workbook: get it again from its source") from None
    header = lines[0] if lines else {}
    return [{name: line.get(column, "") for column, name in header.items() if name} for line in lines[1:]]
