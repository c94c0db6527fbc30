"""A runtime that is torch itself, with faults to put in; and networks as phones run them, in two widths."""

from __future__ import annotations

import copy
import sys
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from prunec.compiler.errors import TargetError
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Converted, Target
from prunec.compiler.tracing.trace import trace


class Fake(Target):
    """Keeps the programs that it is handed; its files hold their names alone."""

    name = "fake"
    multiple = 4
    suffixes = (".fake", ".weights")
    refuses: ClassVar[type[nn.Module] | None] = None
    """A layer that its converter doesn't know."""
    spoils: ClassVar[type[nn.Module] | None] = None
    """A layer whose weights its converter transposes."""
    batch: ClassVar[int | None] = None
    kept: ClassVar[dict[str, Program]] = {}
    threads: ClassVar[list[int]] = []

    def convert(self, program, path, options):
        sys.stdout.write("converting\n")
        for name, module in program.state.items():
            if self.refuses is not None and isinstance(module, self.refuses):
                sys.stdout.write(f"no form of {name}\n")
                raise TargetError(f"no form of {type(module).__name__}")
        for each in self.beside(path):
            each.write_text(str(path))
        self.kept[str(path)] = program
        return Converted(self.batch)

    def load(self, path, threads):
        self.threads.append(threads)
        return _Session(self.kept[str(path)], self)

    def describe(self):
        return "fake 1.0"


class _Session:
    def __init__(self, program: Program, target: Fake) -> None:
        self.target, self.structure = target, pytree.tree_structure(program.inputs)
        self.module = copy.deepcopy(program.module).eval()
        for module in self.module.modules():
            if target.spoils is not None and isinstance(module, target.spoils):
                module.weight.data = module.weight.data.flip(0) * 1.5

    def run(self, inputs):
        assert self.target.batch is None or len(inputs[0]) == self.target.batch, "a batch that the file doesn't take"
        args: Any = pytree.tree_unflatten([torch.from_numpy(value) for value in inputs], self.structure)
        with torch.no_grad():
            found = pytree.tree_leaves(self.module(*args))
        return [leaf.numpy() for leaf in found if isinstance(leaf, torch.Tensor)]


class Depthwise(nn.Module):
    """Convolutions with a depthwise one, a shuffle of channels, a concatenation and a classifier."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.shuffle, self.point = nn.ChannelShuffle(2), nn.Conv2d(2 * width, 2 * width, 1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        first = torch.relu(self.norm(self.stem(x)))
        both = self.shuffle(torch.cat([first, self.depth(first)], 1))
        return self.head(torch.relu(self.point(both)).mean((2, 3)))


class Attention(nn.Module):
    """One block of a Transformer over patches."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 32), nn.Linear(32, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.first(x)
        query, key, value = (
            layer(y).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        x = x + self.down(nn.functional.gelu(self.up(self.second(x))))
        return self.head(x.mean(1))


def programs(made: type[nn.Module] = Depthwise, batch: int = 2, widths: tuple[int, int] = (8, 16)) -> list[Program]:
    """The network in both widths, traced."""
    torch.manual_seed(0)
    return [trace(made(width).eval(), (torch.randn(batch, 3, 16, 16),)) for width in widths]
