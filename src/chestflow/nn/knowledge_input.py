"""Grey values of CT slices to network input, by the statistics of Self-Trans (paper 003) or by CxrInput's."""

from __future__ import annotations

from chestflow.nn.input import CxrInput

#: Mean and deviation of grey values in [0, 1] in the published code of Self-Trans, of three equal channels.
SELF_TRANS = (0.4527,), (0.3317,)


def input_layer(normalise: str, channels: int) -> CxrInput:
    """The input layer; ``selftrans`` standardises by :data:`SELF_TRANS`, every other name is CxrInput's.

    Raises:
        ValueError: an unknown name, or neither 1 nor 3 channels.
    """
    if normalise == "selftrans":
        return CxrInput("fixed", channels, *SELF_TRANS)
    return CxrInput(normalise, channels)  # type: ignore[arg-type]
