"""Optimizers and schedules of the learning rate, as a plan names them.

    optimizer: adamw                              a class of torch.optim, by its name in small letters
    optimizer: {sgd: {nesterov: true}}            with its arguments
    optimizer: {my_package.optim:Lion: {betas: [0.9, 0.99]}}

    schedule: cosine                              constant, cosine, linear, steps, one_cycle
    schedule: {steps: {at: [50%, 75%], factor: 0.1}}
    warmup: 5%                                    the first updates, in which the rate grows from 0

A schedule is a function of the share of the updates that are done, so that it needs no memory: a training that goes on
after a kill, or after a cut, has the rate that it would have had.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Final

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    JsonValue,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_serializer,
)
from torch import Tensor

from prunec.compiler.driver.load import named_callable
from prunec.compiler.errors import PassError, nearest
from prunec.compiler.plan.options import Fraction01, OneOf, nested, wrong
from prunec.compiler.plan.schema import PlanRef
from prunec.compiler.user_code import running

OPTIMIZERS: Final[Mapping[str, type[torch.optim.Optimizer]]] = {
    name.lower(): found
    for name, found in vars(torch.optim).items()
    if isinstance(found, type)
    and issubclass(found, torch.optim.Optimizer)
    and found not in (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
}
"""torch's own, by the name that a plan uses: but for one that wants to run the model itself, and one for gradients that
are sparse."""

_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {"sgd": {"momentum": 0.9}}
"""What the sources of the methods take where torch's own default is another."""

_OWN: Final = ("params", "lr", "weight_decay")
"""Arguments that the pass gives."""


def _one_named(value: object, kind: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of `name`, or of `{name: {options}}`."""
    if isinstance(value, str):
        return value, {}
    if isinstance(value, dict) and len(value) == 1:
        ((name, options),) = value.items()
        if isinstance(name, str) and (options is None or isinstance(options, dict)):
            return name, dict(options or {})
    raise wrong(f"must be the name of {kind}, or one name with a mapping of its options")


class Optimizer(BaseModel):
    """An optimizer and its arguments; `of` reads what a plan says."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    as_written: ClassVar[str] = "name, or mapping of a name to arguments"

    name: str
    args: dict[str, JsonValue] = {}
    ref: PlanRef | None = None
    """Where it comes from, if it isn't torch's."""

    @classmethod
    def of(cls, value: object, info: ValidationInfo) -> object:
        """The optimizer of a plan's `name` or `{name: {arguments}}`."""
        if isinstance(value, cls):
            return value
        name, args = _one_named(value, "an optimizer")
        if ":" in name:
            return cls.model_validate({"name": name, "args": args, "ref": name}, context=info.context)
        if name not in OPTIMIZERS:
            hint = nearest(name, OPTIMIZERS) or "another one is written package.module:name"
            raise wrong("must be an optimizer of torch.optim or package.module:name", hint=hint)
        known = [arg for arg in inspect.signature(OPTIMIZERS[name]).parameters if arg not in _OWN]
        unknown = next((arg for arg in args if arg not in known), None)
        if unknown is not None:
            own = f"'{unknown}' is an option of the pass itself" if unknown in _OWN else nearest(unknown, known)
            raise wrong(f"must not give {name} the argument '{unknown}'", hint=own)
        return cls(name=name, args=args)

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        name = handler(self).get("ref") or self.name
        return {name: self.args} if self.args else name

    def make(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        """The optimizer of groups of parameters, each with its own `weight_decay`.

        Raises `PassError` where it can't be made; where it is the user's own, with the place in their file.
        """
        with running(f"the optimizer {self.name} can't be made", PassError):
            if self.ref is None:
                args = {**_DEFAULTS.get(self.name, {}), **self.args}
                return OPTIMIZERS[self.name](groups, lr=lr, **args)  # type: ignore[call-arg]
            made = named_callable(self.ref)(groups, lr=lr, **self.args)
        if not isinstance(made, torch.optim.Optimizer):
            raise PassError(f"{self.name} gave an object of type '{type(made).__name__}', no torch.optim.Optimizer")
        return made


def decayed(parameters: Iterable[tuple[str, Tensor]], weight_decay: float, matrices: bool) -> list[dict[str, Any]]:
    """Groups of parameters for an optimizer; with `matrices`, those of one dimension (biases, norms) don't decay."""
    every = [tensor for _, tensor in parameters]
    if not matrices:
        return [{"params": every, "weight_decay": weight_decay}]
    wide = [tensor for tensor in every if tensor.ndim > 1]
    thin = [tensor for tensor in every if tensor.ndim <= 1]
    return [{"params": part, "weight_decay": decay} for part, decay in ((wide, weight_decay), (thin, 0.0)) if part]


# -- schedules -----------------------------------------------------------------------------------------------------


class _Schedule(BaseModel, ABC):
    """How the rate changes; `factor` gives what it is multiplied by when a share of all updates is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str]

    @abstractmethod
    def factor(self, done: float) -> float:
        """The rate's factor, at a share from 0 to 1."""


class Constant(_Schedule):
    """The same rate throughout."""

    name: ClassVar[str] = "constant"

    def factor(self, done: float) -> float:
        """1."""
        return 1.0


class Cosine(_Schedule):
    """Half a cosine, from the rate down to a share of it (Loshchilov and Hutter 2017, without restarts)."""

    name: ClassVar[str] = "cosine"
    final: Fraction01 = Field(default=0.0, description="the share of the rate that is left at the end")

    def factor(self, done: float) -> float:
        """From 1 to `final`."""
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


class Steps(_Schedule):
    """The rate is multiplied at some shares of the training."""

    name: ClassVar[str] = "steps"
    at: tuple[Fraction01, ...] = Field(default=(0.5, 0.75), description="the shares of all updates where it falls")
    factor_: float = Field(
        default=0.1, gt=0, allow_inf_nan=False, alias="factor", description="what the rate is multiplied by there"
    )

    def factor(self, done: float) -> float:
        """`factor` for each place that is passed."""
        return self.factor_ ** sum(done >= place for place in self.at)


class Linear(_Schedule):
    """A straight line between two factors."""

    name: ClassVar[str] = "linear"
    start: float = Field(default=1.0, ge=0, description="the factor of the first update")
    end: float = Field(default=0.0, ge=0, description="the factor that is reached at the end")

    def factor(self, done: float) -> float:
        """From `start` to `end`."""
        return self.start + (self.end - self.start) * done


class OneCycle(_Schedule):
    """Up to the rate and down to almost nothing, each by half a cosine (Smith and Topin 2018, as torch has it)."""

    name: ClassVar[str] = "one_cycle"
    peak: Fraction01 = Field(default=0.3, description="the share of all updates after which the rate is reached")
    start: float = Field(
        default=25.0, ge=1, allow_inf_nan=False, description="the first rate is the rate divided by this"
    )
    end: float = Field(
        default=1e4, ge=1, allow_inf_nan=False, description="the last rate is the first one divided by this"
    )

    def factor(self, done: float) -> float:
        """From 1 / start to 1, and from there to 1 / (start * end)."""
        low, last = 1 / self.start, 1 / (self.start * self.end)
        if done < self.peak:
            return 1 + (low - 1) * 0.5 * (1 + math.cos(math.pi * done / self.peak))
        share = (done - self.peak) / (1 - self.peak) if self.peak < 1 else 1.0
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * share))


Schedule = Constant | Cosine | Linear | Steps | OneCycle
SCHEDULES: Final[Mapping[str, type[Schedule]]] = {
    made.name: made for made in (Constant, Cosine, Linear, Steps, OneCycle)
}
"""By the name that a plan uses."""


class _Schedules(OneOf):
    kind: ClassVar[str] = "schedule"

    def choices(self) -> Mapping[str, type[BaseModel]]:
        """As in `OneOf`."""
        return SCHEDULES


def _schedule(value: object) -> object:
    if isinstance(value, _Schedule):
        return value
    name, options = _one_named(value, "a schedule")
    if name not in SCHEDULES:
        raise wrong(f"must be one of {', '.join(SCHEDULES)}", hint=nearest(name, SCHEDULES))
    try:
        return SCHEDULES[name].model_validate(options)
    except ValidationError as error:
        raise nested(error, options, (name,), SCHEDULES[name]) from error


def _spelled(schedule: _Schedule) -> Any:
    options = schedule.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {schedule.name: options} if options else schedule.name


_NAMED: Final = {"anyOf": [{"type": "string"}, {"type": "object", "minProperties": 1, "maxProperties": 1}]}

PlanOptimizer = Annotated[Optimizer, BeforeValidator(Optimizer.of), WithJsonSchema(_NAMED)]
PlanSchedule = Annotated[
    InstanceOf[_Schedule],
    _Schedules(),
    BeforeValidator(_schedule),
    PlainSerializer(_spelled),
    WithJsonSchema({"anyOf": [{"enum": list(SCHEDULES)}, _NAMED["anyOf"][1]]}),
]


def _warmup(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 and value == round(value):
        return float(value)
    share = _SHARE.validate_python(value)
    if share == 1:
        raise wrong("must be less than 100%: behind it comes the schedule")
    return share


_SHARE: Final = TypeAdapter[float](Fraction01)

Warmup = Annotated[
    float,
    BeforeValidator(_warmup),
    PlainSerializer(lambda value: value if value < 1 else round(value)),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]}),
]
"""A number of updates, or a share of all of them."""


def rate(schedule: _Schedule, warmup: float, update: int, total: int) -> float:
    """What the learning rate is multiplied by at an update, from 0 to total - 1.

    While it warms up it grows in equal steps, and is whole from the first update behind that; the schedule has all
    updates after it.
    """
    first = round(warmup * total) if warmup < 1 else min(round(warmup), total)
    if update < first:
        return (update + 1) / (first + 1)
    return schedule.factor((update - first) / max(total - first, 1))
