"""What exported files do besides the model, so that an app feeds raw pixels and reads probabilities.

preprocess: {scale: 1/255, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], order: bgr, layout: nhwc}
postprocess: {softmax: true, names: classes.txt}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, StrictBool, WithJsonSchema

from prunec.compiler.errors import PlanError
from prunec.compiler.plan.classes import ClassNames
from prunec.compiler.plan.options import wrong
from prunec.compiler.plan.schema import Part


def _number(value: Any) -> float:
    try:
        if isinstance(value, str):
            over, _, under = value.partition("/")
            found = float(over) / float(under or 1)
        elif isinstance(value, bool):
            raise ValueError
        else:
            found = float(value)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise wrong("must be a number, or a fraction such as 1/255") from error
    if not math.isfinite(found):
        raise wrong("must be a finite number")
    return found


def _positive(value: Any) -> float:
    found = _number(value)
    if found <= 0:
        raise wrong("must be greater than 0")
    return found


def _one_or_several(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


_NUMBER = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[-+.\deE]+(/[-+.\deE]+)?$"}]}
_SEVERAL = {"anyOf": [*_NUMBER["anyOf"], {"type": "array", "minItems": 1, "items": _NUMBER}]}
Number = Annotated[float, PlainValidator(_number)]
Positive = Annotated[float, PlainValidator(_positive)]


class Preprocess(Part):
    """What files do to raw pixels, in this order: their channels are put in the model's order, they are scaled, the
    mean is taken off, and they are divided by the deviation. The data of the plan are what the model takes."""

    usage = "a mapping with keys such as 'mean' and 'std'"

    scale: Annotated[float, PlainValidator(_positive), WithJsonSchema(_NUMBER)] = 1.0
    """What pixels are multiplied with before the mean is taken off: 1/255 for torchvision's mean and deviation."""
    mean: Annotated[
        tuple[Number, ...], Field(min_length=1), BeforeValidator(_one_or_several), WithJsonSchema(_SEVERAL)
    ] = (0.0,)
    """A number, or one for each channel of the model's."""
    std: Annotated[
        tuple[Positive, ...], Field(min_length=1), BeforeValidator(_one_or_several), WithJsonSchema(_SEVERAL)
    ] = (1.0,)
    """A number, or one for each channel of the model's."""
    order: Literal["same", "reversed", "rgb", "bgr"] = "same"
    """Of the pixels' channels: as the model has them, or reversed; for a model of RGB that is `rgb` or `bgr`."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Where the pixels have their channels."""
    dtype: Literal["float32", "uint8"] = "float32"
    """The type of the pixels; some runtimes take float32 alone."""
    input: Annotated[str, Field(min_length=1)] | None = None
    """The name of the input that is an image; the first that has four dimensions where nothing is said."""


class Postprocess(Part):
    """What files do to outputs."""

    usage = "a mapping with the keys 'softmax' and 'names'"

    softmax: StrictBool = False
    """Whether the first output gives probabilities."""
    names: ClassNames | None = None
    """The names of the classes in the order of the output, or a file with one on each line: they go into `labels.txt`
    and into the metadata of ONNX files. Of a plan that keeps some classes, the names of those."""

    def labels(self) -> tuple[str, ...]:
        """The names, read from their file. Raises `PlanError` where it can't be read."""
        if isinstance(self.names, Path):
            try:
                text = self.names.read_text(encoding="utf-8")
            except (OSError, UnicodeError) as error:
                raise PlanError(f"the names in {self.names} can't be read: {error}") from error
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        if isinstance(self.names, dict):
            return tuple(self.names.get(place, str(place)) for place in range(max(self.names) + 1))
        return self.names or ()


def check_labels(labels: Sequence[str], classes: int | None) -> None:
    """Raise `PlanError` where there aren't as many names as classes."""
    if labels and classes is not None and len(labels) != classes:
        raise PlanError(
            f"postprocess: {len(labels)} names, and the output has {classes} classes",
            keys=("postprocess", "names"),
            hint="name each class, in the order of the output",
        )
