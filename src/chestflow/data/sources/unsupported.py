"""Public sets that are wanted and have no adapter, with the reason; `chestflow data list` shows them.

An adapter is written from the source's own files or from public code that reads them, never from memory: a layout that
could not be checked that way stays here until somebody can.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unsupported:
    """A set that cannot be read yet."""

    name: str
    title: str
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    licence: str
    link: str
    reason: str


SETS: tuple[Unsupported, ...] = (
    Unsupported(
        name="bimcv_covid19",
        title="BIMCV-COVID19+",
        modalities=("cxr",),
        classes=("covid19",),
        licence="its own research agreement",
        link="https://bimcv.cipf.es/bimcv-projects/bimcv-covid19/",
        reason="the layout of its subject and session folders, and of the masks that paper 001 used, was not verified",
    ),
    Unsupported(
        name="ricord_1c",
        title="MIDRC-RICORD-1C",
        modalities=("cxr",),
        classes=("covid19",),
        licence="CC BY-NC 4.0 (as usually cited)",
        link="https://wiki.cancerimagingarchive.net/pages/viewpage.action?pageId=70230281",
        reason="the layout of its DICOM download was not verified; covidx reads it as COVIDx 8 and later pack it",
    ),
)
