"""How the manifest names an image or a mask that is not simply one file: a path, and after it what to take of it.

Parts follow the path, each once, in any order:

- ``@top,left``: a mask that is a crop and lies there in the full image;
- ``@resized``: a mask that shows the full image at another resolution;
- ``@slice=K``: slice K of a volume file, from 0 at the feet, as a picture or as a picture's mask;
- ``@value=V`` or ``@value=V+W``: of a mask of classes, what has one of these values; without it all above 0;
- ``@class=C``: what such a mask shows, a number of :data:`LESIONS`, whatever value the source uses for it;
- ``@window=LOW,HIGH``: a volume of grey values, of which 0 stands for LOW and 255 for HIGH Hounsfield units.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What the classes of infection masks mean, the same for every set.
LESIONS = {1: "ground glass", 2: "consolidation"}
#: Ends the reference of a mask that shows the full image at another resolution, and is resized to it.
RESIZED = "@resized"

_NUMBER = r"-?\d+(?:\.\d+)?"
_PART = re.compile(
    rf"@(?:(?P<resized>resized)|(?P<top>\d+),(?P<left>\d+)|slice=(?P<slice>\d+)|value=(?P<values>\d+(?:\+\d+)*)"
    rf"|class=(?P<lesion>\d+)|window=(?P<low>{_NUMBER}),(?P<high>{_NUMBER}))$"
)


@dataclass(frozen=True)
class Reference:
    """A path and what to take of it; see the module."""

    path: Path
    corner: tuple[int, int] | None = None  # (top, left) in pixels
    resized: bool = False
    slice: int | None = None  # from 0 at the feet
    values: tuple[int, ...] = ()  # () is all above 0
    lesion: int | None = None  # of LESIONS
    window: tuple[float, float] | None = None  # HU at grey 0 and at grey 255

    @classmethod
    def parse(cls, text: str | Path) -> Reference:
        """The inverse of :meth:`__str__`; a text without parts is a path."""
        rest = os.fspath(text)
        found: dict[str, Any] = {}
        while match := _PART.search(rest):
            part = match.groupdict()
            if part["resized"]:
                new: dict[str, Any] = {"resized": True}
            elif part["top"] is not None:
                new = {"corner": (int(part["top"]), int(part["left"]))}
            elif part["slice"] is not None:
                new = {"slice": int(part["slice"])}
            elif part["values"] is not None:
                new = {"values": tuple(int(value) for value in part["values"].split("+"))}
            elif part["lesion"] is not None:
                new = {"lesion": int(part["lesion"])}
            else:
                new = {"window": (float(part["low"]), float(part["high"]))}
            if new.keys() & found.keys():
                break  # the path itself ends like a part
            found |= new
            rest = rest[: match.start()]
        return cls(Path(rest), **found)

    def __str__(self) -> str:
        parts = [str(self.path)]
        if self.slice is not None:
            parts.append(f"slice={self.slice}")
        if self.values:
            parts.append("value=" + "+".join(map(str, self.values)))
        if self.lesion is not None:
            parts.append(f"class={self.lesion}")
        if self.window is not None:
            parts.append(f"window={self.window[0]:g},{self.window[1]:g}")
        if self.corner is not None:
            parts.append(f"{self.corner[0]},{self.corner[1]}")
        if self.resized:
            parts.append("resized")
        return "@".join(parts)


def mask_reference(
    path: Path,
    top: int | None = None,
    left: int | None = None,
    *,
    resized: bool = False,
    slice: int | None = None,
    values: tuple[int, ...] = (),
    lesion: int | None = None,
) -> str:
    """A mask in the manifest: its path, and what to take of it.

    Args:
        path: the mask's file.
        top: where a crop lies in the full image, with ``left``, in pixels.
        left: see ``top``.
        resized: the mask shows the full image at another resolution.
        slice: of a volume file, from 0 at the feet.
        values: of a mask of classes; () takes all above 0.
        lesion: what they show, of :data:`LESIONS`.
    """
    corner = None if top is None or left is None else (top, left)
    return str(Reference(path, corner, resized, slice, values, lesion))


def parse_mask_reference(reference: str) -> tuple[Path, tuple[int, int] | None]:
    """The file of a mask and (top, left) of a crop, or None for a mask of the full image."""
    found = Reference.parse(reference)
    return found.path, found.corner
