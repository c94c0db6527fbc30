"""What tests of criteria share: small networks, data in batches of any size, scores by group, and gates on units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import FloatArray, Program
from prunec.compiler.pass_base import Context
from prunec.compiler.tracing.trace import trace
from prunec.passes.criteria.reads import Read, find_reads
from prunec.passes.criteria.spelling import CRITERIA, criterion
from prunec.passes.score import Score


@dataclass(frozen=True)
class Samples:
    """The same samples in every split, in batches of `size`."""

    inputs: Tensor
    labels: Tensor
    size: int = 8

    def train(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.inputs.split(self.size), self.labels.split(self.size), strict=True))

    val = test = train

    def in_batches_of(self, size: int) -> Samples:
        return Samples(self.inputs, self.labels, size)


def images(count: int = 20, shape: tuple[int, ...] = (2, 6, 6), classes: int = 3, seed: int = 0) -> Samples:
    """Normal noise in float64, with arbitrary labels."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return Samples(inputs, torch.randint(0, classes, (count,), generator=generator))


class Chain(nn.Module):
    """conv - relu - pool - conv - relu - mean - fc, without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 4, 3), nn.Linear(4, 3)
        self.relu = nn.ReLU()

    def head(self, z: Tensor) -> Tensor:
        """From what conv2 reads to the outputs."""
        return self.fc(self.relu(self.conv2(z)).mean((2, 3)))

    def read(self, x: Tensor) -> Tensor:
        """What conv2 reads."""
        return torch.max_pool2d(self.relu(self.conv1(x)), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(x))


class Stream(nn.Module):
    """A residual stream with batch norm, a branch with a gate by a mean over the image, and a flattened end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.a, self.bn_a, self.b = nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 6, 1)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.fc = nn.Linear(6 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.b(torch.relu(self.bn_a(self.a(x))))
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.fc(torch.max_pool2d(torch.relu(x), 2).flatten(1))


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and evaluation mode, with seeded parameters and running statistics away from their defaults."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.data.copy_(drawn.abs() + 0.5 if name.endswith("var") else drawn * 0.5)
    return model


def program_of(model: nn.Module, data: Samples) -> Program:
    """The model, traced with one sample."""
    return trace(model, (data.inputs[:1],))


def scores(program: Program, criterion: Any, data: Samples | None = None, **options: Any) -> dict[str, FloatArray]:
    """The scores of every group: of writers, as they are, unless the options say otherwise."""
    said = {"normalize": "none", "axes": "writers", **options}
    result = Score(criterion=criterion, **said).run(program, Context(data=data))
    return dict(result.program.facts["scores"])


def flat(found: dict[str, FloatArray]) -> FloatArray:
    """All groups' scores, one behind the other."""
    return np.concatenate(list(found.values()))


class Gate(nn.Module):
    """A factor on the units in `which` where they are read; 1 on all others."""

    def __init__(self, read: Read, which: np.ndarray, factor: float) -> None:
        super().__init__()
        shape = [1] * len(read.source.meta["val"].shape)
        for dim in read.dims:
            shape[dim] = read.source.meta["val"].shape[dim]
        factors = np.append(np.where(np.isin(read.units, which), factor, 1.0), 1.0)[read.place]
        self.factors = torch.from_numpy(factors).reshape(shape)

    def forward(self, value: Tensor) -> Tensor:
        return value * self.factors


def gated(program: Program, which: np.ndarray, factor: float = 0.0) -> nn.Module:
    """The program with gates of that factor on these units, at every read."""
    graph, mapping = program.copy_graph_with_map()
    gates = {}
    for number, read in enumerate(find_reads(analyse(program))):
        gates[f"gate_{number}"] = Gate(read, which, factor)
        with graph.inserting_before(mapping[read.consumer]):
            gate = graph.call_module(f"gate_{number}", (mapping[read.source],))
        mapping[read.consumer].replace_input_with(mapping[read.source], gate)
    return program.derive(graph=graph, state={**program.state, **gates}).module


DATA = images()


ON_DATA = [name for name in CRITERIA.names() if criterion(name).data and name != "torch_pruning"]


EXACT = {"rtol": 1e-10, "atol": 1e-12}


def by_loop(weight: Tensor, figure: Callable[[list[float]], float]) -> list[float]:
    """A figure of each row of a weight."""
    return [figure(weight[j].flatten().tolist()) for j in range(weight.shape[0])]
