"""Scored programs to select from, and ways to look at what was selected."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import torch
import torchvision
from nets import NETS

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.tracing.trace import trace
from prunec.passes.select import Select
from prunec.passes.selection.budgets import problem_of
from prunec.passes.selection.limits import channels_of_a_unit
from prunec.passes.selection.problems import Problem
from prunec.passes.selection.selectors import Wishes

ZOO = (
    "alexnet",
    "vgg11_bn",
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "mnasnet0_5",
    "efficientnet_b0",
    "convnext_tiny",
)


@cache
def bare(name: str) -> Program:
    """A small net by its name, or a torchvision classifier without weights on small images."""
    if name in NETS:
        return trace(NETS[name].build(), NETS[name].inputs())
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    return trace(model.eval(), (torch.empty(1, 3, 64, 64),))


def scored(name: str, seed: int = 0) -> Program:
    """The program with random positive scores, on another scale in every group."""
    rng = np.random.default_rng(seed)
    groups = analyse(bare(name)).groups.values()
    return bare(name).with_facts(
        scores={g.name: rng.random(g.size) * rng.uniform(0.2, 2) for g in groups if g.free.any()}
    )


def context(name: str) -> Context:
    """A context that knows the traced model."""
    return Context(traced=bare(name))


def problem(program: Program, select: Select, known: Context) -> Problem:
    """What the pass solves."""
    assert select.budget is not None
    return problem_of(select.ranking(program), select.budget, Wishes(cost_weight=select.cost_weight), known)


def best_kept(found: Problem) -> float:
    """The most score that any levels within the budgets keep, by trying all."""
    levels = itertools.product(*(range(last + 1) for last in found.last.tolist()))
    return max(found.kept(np.array(each)) for each in levels if found.fits(np.array(each)))


SMALL = ("chain", "residual", "concat", "shared_module", "zero_pad_shortcut")


METHODS = ("ranking", "greedy", "knapsack")


def kept_of(program, result):
    keep = np.ones(analyse(program).size, dtype=bool)
    for name, units in result.program.facts["selection"].items():
        keep[analyse(program).groups[name].start + units] = False
    return keep


def selected(name, seed=0, **options):
    return Select(**options).run(scored(name, seed), context(name))


def channels(name, result):
    """Channels that every group keeps."""
    program = bare(name)
    keep = kept_of(program, result)
    return {g.name: int(keep[g.where].sum()) * channels_of_a_unit(g) for g in analyse(program).groups.values()}
