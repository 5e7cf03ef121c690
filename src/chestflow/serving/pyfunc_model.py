"""The served model, as MLflow loads it from code: a table of files in, a table of answers out.

The input's column ``image`` holds a file's bytes in base64: PNG, JPEG, DICOM, NIfTI, or a zip of one DICOM series.
Without MLflow the same answers come from :class:`chestflow.serving.answer.Predictor`.
"""

from __future__ import annotations

import base64
import binascii
import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import yaml
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from chestflow.serving.answer import UNREADABLE, Answer, Predictor

COLUMNS = {
    "filename": "string",
    "status": "string",
    "reason": "string",
    "detail": "string",
    "label": "string",
    "probability": "double",
    "low": "double",
    "high": "double",
    "threshold": "double",
    "ratio": "string",
    "ratio_from": "string",
    "network": "string",
    "model": "string",
    "notice": "string",
}
#: A zip that unpacks to more than this is refused: 4096 slices of 1024 x 1024 at 16 bits are 8 GiB.
ZIP_BYTES = 8 << 30


def signature() -> ModelSignature:
    """Columns in and out."""
    return ModelSignature(
        inputs=Schema([ColSpec("string", "image"), ColSpec("string", "filename", required=False)]),
        outputs=Schema([ColSpec(kind, name) for name, kind in COLUMNS.items()]),
    )


class ChestflowModel(mlflow.pyfunc.PythonModel):
    """Answers from the artifact ``bundle``."""

    def load_context(self, context: Any) -> None:
        """Find the bundle; networks are loaded with the first picture that needs them."""
        folder = Path(context.artifacts["bundle"])
        self.predictor = Predictor(folder, _label(folder, context.model_config or {}))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row of :data:`COLUMNS` for each row of ``image`` and, if given, ``filename``."""
        names = model_input["filename"] if "filename" in model_input else [None] * len(model_input)
        return pd.DataFrame(
            [self._answer(image, name) for image, name in zip(model_input["image"], names, strict=True)],
            columns=list(COLUMNS),
        )

    def _answer(self, image: str, name: str | None) -> dict[str, Any]:
        label = name if isinstance(name, str) else "image"
        with tempfile.TemporaryDirectory(prefix="chestflow-") as folder:
            try:
                path = _unpack(base64.b64decode(image, validate=True), Path(folder))
                answer = self.predictor.answer(path, name=label)
            except (binascii.Error, ValueError, TypeError, zipfile.BadZipFile):
                answer = Answer(
                    label, UNREADABLE, self.predictor.model, reason="not_an_image", detail="no file in base64"
                )
        values = {**answer.plain(), "filename": answer.file, "ratio": str(answer.ratio)}
        return {column: values[column] for column in COLUMNS}


def _label(folder: Path, config: dict[str, Any]) -> str:
    """Name and version where MLflow loaded the model from its registry, else name and content."""
    fetched = folder.parent.parent / "registered_model_meta"
    if fetched.exists():
        known = yaml.safe_load(fetched.read_text()) or {}
        if {"model_name", "model_version"} <= known.keys():
            return f"{known['model_name']} v{known['model_version']}"
    return str(config.get("model", "unregistered"))


def _unpack(content: bytes, folder: Path) -> Path:
    """Write a file's bytes under a name of ours; a zip becomes a folder of its members, their own names dropped.

    Raises:
        ValueError: a zip that would fill the disk.
    """
    if not content.startswith(b"PK\x03\x04"):
        nifti = content[:2] == b"\x1f\x8b" or content[344:347] in (b"n+1", b"ni1")
        path = folder / ("image" + (".nii.gz" if content[:2] == b"\x1f\x8b" else ".nii" if nifti else ""))
        path.write_bytes(content)
        return path
    series = folder / "series"
    series.mkdir()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if sum(member.file_size for member in members) > ZIP_BYTES:
            raise ValueError("the zip unpacks to too much")
        for index, member in enumerate(members):
            (series / f"{index:05d}.dcm").write_bytes(archive.read(member))
    return series


mlflow.models.set_model(ChestflowModel())
