"""Constraints on training, as options of every training pass.

    constraints:
      hold_below: 1e-5                                  entries with smaller gradients sit out the step
      candidates: {threshold: 0.01, steps: 100}         units whose accumulated gradient is smaller are candidates to go
      clamp: {"features.*": [-0.5, 0.5]}                bounds of entries
      max_norm: 3.0                                     of every filter

Each is one value for all, or values by pattern; the first pattern that names a parameter counts. Patterns name
parameters, or the layers and parts that they belong to. Of norms (batch norm, layer norm, ...) nothing is clamped or
scaled unless a pattern names parameters of norms alone: their scales and shifts live at other magnitudes. Statistics
are no parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from torch import nn

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.ops import op_name
from prunec.compiler.ir.program import Program
from prunec.compiler.plan.options import wrong
from prunec.passes.training.candidates import Candidates
from prunec.passes.training.freezing import with_parents
from prunec.passes.training.unit_slices import UnitSlices
from prunec.passes.training.updates import Clamp, Filters, HoldBelow, MaxNorm, Update

Value = TypeVar("Value")

_NORMS: Final = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_NORM_OPS: Final = ("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm")
_FILTERED: Final = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear)
_FILTER_OPS: Final = ("conv1d", "conv2d", "conv3d", "linear")


def _pair(value: object) -> object:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise wrong("must be two numbers, such as [-1, 1]")
    return value


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise wrong("must be two numbers with the lower first")
    return pair


Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bounds = Annotated[tuple[Finite, Finite], BeforeValidator(_pair), AfterValidator(_rising)]


class CandidateOptions(BaseModel):
    """When a unit's gradient is small."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: Positive = Field(description="the sum of gradient norms under which a unit is a candidate")
    steps: Annotated[int, Field(ge=1)] = Field(default=100, description="how many steps are summed")


class Constraints(BaseModel):
    """What is held against every step; see the module's text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hold_below: Positive | dict[str, Positive] | None = Field(
        default=None, description="entries whose gradient is smaller don't move: of all parameters, or by pattern"
    )
    candidates: CandidateOptions | None = Field(
        default=None,
        description="units whose accumulated gradient is smaller are candidates: the sums are the fact `scores`",
        examples=[{"threshold": 0.01, "steps": 100}],
    )
    clamp: Bounds | dict[str, Bounds] | None = Field(
        default=None,
        description="bounds of every entry: of all parameters but those of norms, or by pattern",
        examples=[{"features.*": [-0.5, 0.5]}],
    )
    max_norm: Positive | dict[str, Positive] | None = Field(
        default=None, description="the largest Euclidean norm of a filter: of all layers, or by pattern"
    )

    def gives(self) -> frozenset[str]:
        """The facts that training under these constraints adds to the program."""
        return frozenset({"scores"}) if self.candidates else frozenset()

    def check(self, program: Program) -> None:
        """Raise `PassError` for patterns that name no parameter, or nothing that the constraint is for."""
        names = _parameters(program)
        for option in ("hold_below", "clamp", "max_norm"):
            _named(getattr(self, option), names, program, option)

    def updates(self, module: nn.Module, program: Program) -> list[Update]:
        """The constraints on a module with the program's parameter names. Raises `PassError` as `check` does."""
        made: list[Update] = []
        if self.candidates:
            units = UnitSlices.of(program, module)
            made.append(Candidates(units, self.candidates.threshold, self.candidates.steps))
        if self.hold_below is not None:
            thresholds = _chosen(module, self.hold_below, program, "hold_below")
            made.append(HoldBelow([(parameter, threshold) for _, parameter, threshold in thresholds]))
        bounds: dict[tuple[float, float], list[nn.Parameter]] = {}
        for _, parameter, pair in _chosen(module, self.clamp, program, "clamp"):
            bounds.setdefault(pair, []).append(parameter)
        made += [Clamp(parameters, low, high) for (low, high), parameters in bounds.items()]
        limits: dict[float, list[Filters]] = {}
        for name, parameter, limit in _chosen(module, self.max_norm, program, "max_norm"):
            limits.setdefault(limit, []).append(_filters(program, name, parameter))
        return [*made, *(MaxNorm(filters, limit) for limit, filters in limits.items())]


def _chosen(
    module: nn.Module, wanted: Value | Mapping[str, Value] | None, program: Program, option: str
) -> Iterator[tuple[str, nn.Parameter, Value]]:
    """The module's parameters that an option names, each once, and what it says of them."""
    known = dict(module.named_parameters(remove_duplicate=False))
    names = [name for name in _parameters(program) if name in known]
    seen: set[int] = set()
    for name, value in _named(wanted, names, program, option).items():
        if id(known[name]) not in seen:  # a tied one has several names
            seen.add(id(known[name]))
            yield name, known[name], value


def _parameters(program: Program) -> list[str]:
    return [name for name, tensor in program.tensors.items() if isinstance(tensor, nn.Parameter)]


def _named(
    wanted: Value | Mapping[str, Value] | None, names: list[str], program: Program, option: str
) -> dict[str, Value]:
    """Parameter -> what an option says of it."""
    if wanted is None:
        return {}
    if not isinstance(wanted, Mapping):
        return dict.fromkeys(_meant(names, program, option), wanted)
    found: dict[str, Value] = {}
    for pattern, value in wanted.items():
        matched = [n for n in names if any(fnmatchcase(each, pattern) for each in with_parents(n))]
        keys = ("constraints", option, pattern)
        if not matched:
            message = f"{option}: no parameter is called '{pattern}'"
            every = dict.fromkeys(each for name in names for each in with_parents(name))
            raise PassError(message, keys=keys, hint=nearest(pattern, list(every)))
        meant = _meant(matched, program, option, named=True)
        if not meant:
            raise PassError(f"{option}: '{pattern}' names vectors alone, which have no filters", keys=keys)
        for name in meant:
            found.setdefault(name, value)
    return found


def _meant(names: list[str], program: Program, option: str, *, named: bool = False) -> list[str]:
    """Those of the names that an option is for; `named` ones are taken at their word."""
    if option == "hold_below":
        return names
    norms = _of_norms(program)
    meant = names if named and norms.issuperset(names) else [name for name in names if name not in norms]
    if option == "clamp":
        return meant
    filtered = None if named else _with_filters(program)
    return [n for n in meant if program.tensors[n].ndim > 1 and (filtered is None or n in filtered)]


def _of_norms(program: Program) -> frozenset[str]:
    """The parameters of norms."""
    owned = {n for n in _parameters(program) if isinstance(program.state.get(n.rpartition(".")[0]), _NORMS)}
    return frozenset(owned | _given_to(program, _NORM_OPS))


def _with_filters(program: Program) -> frozenset[str]:
    """The weights of convolutions and linear layers."""
    owned = {n for n in _parameters(program) if isinstance(program.state.get(n.rpartition(".")[0]), _FILTERED)}
    return frozenset(owned | _given_to(program, _FILTER_OPS))


def _given_to(program: Program, operations: tuple[str, ...]) -> set[str]:
    """Parameters that are operands of functions, such as `F.layer_norm(x, shape, self.weight)`."""
    calls = (n for n in program.graph.nodes if n.op == "call_function" and op_name(n) in operations)
    return {str(node.target) for call in calls for node in call.all_input_nodes if node.op == "get_attr"}


def _filters(program: Program, name: str, weight: nn.Parameter) -> Filters:
    """A filter writes a channel: the dimension along which the weight's slices do."""
    layer = program.state.get(name.rpartition(".")[0])
    if isinstance(layer, nn.modules.conv._ConvNd):
        return Filters(weight, 1, layer.groups) if layer.transposed else Filters(weight)
    flow = analyse(program).flow
    mine = (axis for axis, binding in flow.bindings.items() if axis.tensor == name and binding.role == "writer")
    written = [axis.dim for axis in mine if axis not in flow.reading]
    return Filters(weight, written[0] if len(written) == 1 else 0)
