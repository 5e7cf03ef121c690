"""What the sections of params.yaml are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]
Count = Annotated[int, Field(ge=1)]


def _off(value: Any) -> Any:
    return "off" if value is False else value


#: For settings with the choice ``off``: `dvc exp run -S` writes it without quotes, which reads as false.
CanBeOff = BeforeValidator(_off)


class Section(BaseModel):
    """A part of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)
