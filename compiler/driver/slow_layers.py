"""Which layers stand in the way where a slim model isn't as much faster as it is smaller, and what would mend it.

    half of the MACs, 0.7 of the time     a warning: what takes longer than its half, in milliseconds, by layer

Both models' files, of fixed sizes, are run with the runtime's profiler. Its nodes are the file's, fused and renamed; a
node is given to the layer that multiplies nearest before it in the file, if its name, or that of its output, stands
there. What the runtime has put in (changes of layout), and what doesn't multiply, is summed up by operation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import onnx
from torch import nn

from prunec.compiler.cost.latency.attribution import PRODUCTS
from prunec.compiler.cost.model import cost
from prunec.compiler.ir.program import Program
from prunec.compiler.report.report import Change
from prunec.compiler.targets.base import TARGETS, Profile
from prunec.compiler.targets.onnx_export import Writer, comparable_bytes, onnx_feed
from prunec.compiler.targets.ort_session import profile

SLOW: Final = 1.15
"""So many times its share of the MACs a model may take before a warning says so."""
SHORT: Final = 5e-6
"""Seconds: where nodes take less in the mean, the time is the runtime's own, and no width changes it."""
NAMED: Final = 4
"""So many layers are named."""


def slow_layers(
    programs: Change[Program], latency: Change[float], writer: Writer = "direct", *, by_latency: bool = False
) -> str:
    """A warning, or nothing where the latency fell nearly as far as the MACs did. Where the selection went
    `by_latency`, only what other widths would mend is told: the rest was counted. `writer` is that of the slim file."""
    macs = programs.each(lambda program: cost(program).macs)
    if not 0 < macs.after < macs.before or latency.after / latency.before <= SLOW * macs.after / macs.before:
        return ""
    files = Change(*comparable_bytes([programs.before, programs.after], writer=writer))
    fed = onnx_feed(files.before, programs.before)
    old, new = profile([files.before, files.after], [fed, fed])
    if latency.before < SHORT * len(old):
        return ""
    share = macs.after / macs.before
    costs = _costs(_by_part(old, files.before), _by_part(new, files.after), share)
    named = sorted((part for part in costs if costs[part][1] > 0), key=lambda part: -costs[part][1])[:NAMED]
    spelled = [f"{part} ({1e3 * costs[part][0].before:.2f} ms, now {1e3 * costs[part][0].after:.2f})" for part in named]
    found = f"latency fell to {latency.after / latency.before:.0%} of the original's, with {share:.0%} of the MACs"
    cure = _cure(programs, named)
    if by_latency and not cure:
        return ""
    if not named:
        return f"{found}; what costs it is no layer's: the runtime takes as long from node to node as before"
    return f"{found}; what costs it: {', '.join(spelled)}; {cure or _COUNTED}"


def _costs(old: Mapping[str, float], new: Mapping[str, float], share: float) -> dict[str, tuple[Change[float], float]]:
    """Part -> its seconds in both files, and how much longer it takes than its share of the MACs would."""
    return {
        part: (Change(old.get(part, 0.0), seconds), seconds - share * old.get(part, 0.0))
        for part, seconds in new.items()
    }


def _by_part(nodes: Profile, file: bytes) -> dict[str, float]:
    """Layer, or operation of what isn't one -> the seconds of its nodes."""
    layers = _layers_by_name(onnx.load_model_from_string(file).graph)
    found: dict[str, float] = defaultdict(float)
    for node in nodes:
        name = next((layers[known] for known in _spellings(node.name) if known in layers), "")
        found[name if name and node.op in PRODUCTS else f"all {node.op}"] += node.seconds
    return dict(found)


def _spellings(name: str) -> Iterator[str]:
    """What the file may call a node of the runtime's: it adds to names what it has done."""
    yield name
    yield name.removesuffix("_nchwc")
    yield name.partition("/")[0]


def _layers_by_name(graph: onnx.GraphProto) -> dict[str, str]:
    """A name of a product, of its output, or of what is fused behind it -> its layer, by the weight that it reads, or
    its own name where the weight isn't stored as it is."""
    weights = {each.name for each in graph.initializer}
    made: dict[str, str] = {}
    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in PRODUCTS:
            weight = next((name for name in node.input if name in weights and name.endswith(".weight")), "")
            layer = weight.removesuffix(".weight") or node.output[0]
        else:
            layer = next((made[name] for name in node.input if name in made), "")
        if layer and (node.op_type in PRODUCTS or node.op_type in _FUSED):
            made.update(dict.fromkeys(node.output, layer))
            found.update({node.name: layer, **dict.fromkeys(node.output, layer)})
    return found


_FUSED: Final = frozenset(
    {"Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Clip", "Tanh", "LeakyRelu", "Add", "BatchNormalization"}
)
"""Operations that the runtime may fuse into the product before them, under the name of their output."""


_COUNTED: Final = "they take time by what they read and write: 'budget: {latency: ...}' counts that"


def _cure(programs: Change[Program], named: Sequence[str]) -> str:
    """What would mend it, by the slim layers that are named: nothing where their widths are good ones."""
    layers = [(name, programs.after.state.get(name)) for name in named]
    multiple = TARGETS.named("onnxruntime").multiple
    convs = [(name, layer) for name, layer in layers if isinstance(layer, nn.modules.conv._ConvNd)]
    narrow = [name for name, layer in convs if 1 < layer.groups < layer.in_channels and _row(layer) % multiple]
    if narrow:
        rows = _row(dict(convs)[narrow[0]])
        return (
            f"{narrow[0]} has groups of {rows} channels, for which there is no fast kernel: "
            "'axes: {grouped: whole}' before 'score' lets whole groups go"
        )
    if any(_is_odd(layer, programs.before.state.get(name), multiple) for name, layer in convs):
        return f"'multiple_of: {multiple}' gives them widths that have a fast kernel"
    return ""


def _row(layer: nn.modules.conv._ConvNd) -> int:
    return layer.in_channels // layer.groups


def _is_odd(layer: nn.modules.conv._ConvNd, was: object, multiple: int) -> bool:
    """Whether a width was cut to what is no multiple."""
    if not isinstance(was, nn.modules.conv._ConvNd):
        return False
    pairs = ((layer.in_channels, was.in_channels), (layer.out_channels, was.out_channels))
    return any(now != before and now % multiple for now, before in pairs)
