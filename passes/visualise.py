"""`visualise`: an image for each unit of the late layers that maximises its activation, and clusters of these images.

- visualise                                                   the layers of the last stage
- visualise: [features.conv15, "features.conv1?"]             these; `all` for all convolutions
- visualise: {preset: yosinski_c, steps: 200, clusters: 10}
- visualise: {decay: 0, blur_width: 0, small_norm: 20%}       each regulariser has its own switch

The program stays as it is. Its fact `image_clusters` holds, for each group with such a layer, the cluster of each unit,
[units, layers of the group]: clusters are counted from 0 in each layer, and a unit that is dead, or that the layer
doesn't have, has -1. Where the fact `class_evidence` is known, units and clusters are told by the classes that they
serve. Each layer's sheet stands in the report, and a table of all units beside it.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, FiniteFloat, StrictInt, field_validator, model_validator

from prunec.compiler.errors import PassError
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.plan.options import Fraction01, wrong
from prunec.passes.calibration.calibration import SAMPLES, Bytes
from prunec.passes.criteria.cluster_labels import SHARE
from prunec.passes.visualising.layers import find_layers
from prunec.passes.visualising.pixels import ImageInput
from prunec.passes.visualising.presets import PRESETS, Ascent, Rule
from prunec.passes.visualising.work import Task, Work

Count = Annotated[StrictInt, Field(ge=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_CLUSTERS: Final = (2, 16)
"""The numbers of clusters that are tried where the plan names none."""


class Visualise(Pass):
    """Make an image for each unit that maximises its activation, and find clusters of these."""

    name: ClassVar[str] = "visualise"
    keeps: ClassVar[bool] = True
    gives: ClassVar[frozenset[str]] = frozenset({"image_clusters"})
    shorthand: ClassVar[str | None] = "layers"

    layers: Literal["late", "all"] | tuple[str, ...] = Field(
        default="late",
        description="glob patterns of layers; `late` for convolutions with the smallest maps, `all` for all of them",
        examples=[["features.conv15"]],
    )
    preset: Literal["fast", "yosinski_a", "yosinski_b", "yosinski_c", "yosinski_d", "class_adaptive"] = Field(
        default="fast", description="steps, step rule and regularisers by name; the options below change single ones"
    )
    steps: Count | None = Field(default=None, description="how many steps an image makes")
    rule: Rule | None = Field(
        default=None,
        description="the length of a step: a constant rate times the gradient, so that the activation should rise by "
        "the rate (progress), or a fixed share of the range of pixels (normalized)",
    )
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="the rate of that rule, where the range of pixels counts as 1"
    )
    pixel_range: bool | None = Field(default=None, description="hold images in the range of the data's pixels")
    decay: Fraction01 | None = Field(default=None, description="the share of an image that goes with every step")
    blur_width: Amount | None = Field(default=None, description="a Gaussian blur of this many pixels; 0 for none")
    blur_every: Count | None = Field(default=None, description="the steps from one blur to the next")
    small_norm: Fraction01 | None = Field(
        default=None, description="the share of pixels that go, those with the smallest norm", examples=["20%"]
    )
    small_contribution: Fraction01 | None = Field(
        default=None,
        description="the share of pixels that go, those that contribute least to the activation",
        examples=["90%"],
    )
    noise: Amount | None = Field(
        default=None, description="the noise at the start, as a share of the range of pixels; 0 for a constant image"
    )
    pixels: tuple[FiniteFloat, FiniteFloat] | None = Field(
        default=None, description="the range of valid pixels; by default, that of the data", examples=[[-1, 1]]
    )
    samples: Count = Field(default=SAMPLES, description="over how many samples that range is measured")
    split: str = Field(default="train", description="the split of the data that they are of")
    clusters: Count | tuple[Count, Count] = Field(
        default=_CLUSTERS, description="how many clusters a layer has, or the range that the silhouette chooses from"
    )
    pca: Count | None = Field(default=None, description="how many principal components of the images are compared")
    share: Fraction01 = Field(
        default=SHARE,
        description="a cluster serves the classes with at least this share of its strongest class's evidence",
    )
    memory: Bytes = Field(default=2**30, description="about how many bytes the values of one chunk of images may take")

    @field_validator("pixels", "clusters")
    @classmethod
    def _rises(cls, value: Any) -> Any:
        if isinstance(value, tuple) and not (
            value[0] <= value[1] if isinstance(value[0], int) else value[0] < value[1]
        ):
            raise wrong("must be two numbers, the smaller one first")
        return value

    @model_validator(mode="after")
    def _rule_has_a_rate(self) -> Visualise:
        """Refuse another rule than the preset's without a rate: rates of two rules don't compare."""
        if self.rule not in (None, PRESETS[self.preset].rule) and self.rate is None:
            raise wrong(f"must name the 'rate' of the rule '{self.rule}': the preset's is for another rule")
        return self

    @property
    def ascent(self) -> Ascent:
        """The preset, with the options that the plan names."""
        said = {each.name: getattr(self, each.name) for each in fields(Ascent)}
        percents = {name: 100 * said[name] for name in ("small_norm", "small_contribution") if said[name] is not None}
        known = {name: value for name, value in {**said, **percents}.items() if value is not None}
        return Ascent(**{**vars(PRESETS[self.preset]), **known})

    def check(self, program: Program) -> None:
        """Raise `PassError` for layers that there aren't, or a model that takes no images."""
        ImageInput.of(program.deployed)
        find_layers(program, self.layers)

    def ready(self, program: Program, context: Context) -> None:
        """Raise `PassError` where the range of pixels isn't known, `DataError` where the data don't fit the model."""
        if context.inputs is not None:
            raise PassError("a region of the model can't be visualised by itself: what it is given is no image")
        ImageInput.of(program.deployed)
        if self.pixels is None and context.data is None:
            hint = "say it: pixels: [-1, 1]; or name a data factory, such as data: prunec.models.data:digits"
            raise PassError("the range of valid pixels is that of the data, and the plan has none", hint=hint)
        if self.pixels is None and context.data is not None:
            context.data.require(self.split)

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the program with the clusters of its units. Raises as `ready` does."""
        self.ready(program, context)
        if context.structural:
            return PassResult(program)
        given = {each.name: getattr(self, each.name) for each in fields(Task)}
        return Work(Task(**given), program, context).result()

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """Nothing: what goes is decided, and the program stayed as it was."""
        return ()
