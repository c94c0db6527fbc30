"""What scoring by Taylor costs, beside the plain forward and backward passes over the same batches.

    python benchmarks/taylor.py                             ResNet-50, images of 64x64, 8 batches of 16
    python benchmarks/taylor.py --model vgg16_bn --size 96 --batches 4 --batch-size 8 --repeat 3

The two take turns in one process with one thread, in evaluation mode, and of N repeats the fastest counts. `plain` asks
for the gradients of all parameters, as a training step does. `score` is the whole pass: it finds where channels are
read, watches these values, and asks for their gradients alone. The trace is made once, before both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from rich.console import Console
from torch import nn

from prunec.compiler import trace
from prunec.compiler.pass_base import Context
from prunec.models import data
from prunec.passes.score import Score


def plain(model: nn.Module, batches: data.TensorData, count: int) -> None:
    """Forward and backward over the batches."""
    for index, (images, labels) in enumerate(batches.train()):
        if index == count:
            return
        model.zero_grad()
        F.cross_entropy(model(images), labels, reduction="sum").backward()


def seconds(run: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.get_model(options.model, weights=None).eval()
    shape, samples = (3, options.size, options.size), options.batches * options.batch_size
    batches = data.random(shape, classes=1000, samples=samples, batch_size=options.batch_size)
    program, context = trace(model, (torch.randn(1, *shape),)), Context(data=batches)
    score = Score(criterion="taylor", batches=options.batches)
    times = [
        (seconds(lambda: plain(model, batches, options.batches)), seconds(lambda: score.run(program, context)))
        for _ in range(options.repeat)
    ]
    base, ours = (min(column) for column in zip(*times, strict=True))
    what = f"{options.model}, {options.batches} batches of {options.batch_size}x{shape}"
    Console().print(f"{what}: plain {base:.2f} s, score {ours:.2f} s, {ours / base:.2f} times as long")


if __name__ == "__main__":
    main()
