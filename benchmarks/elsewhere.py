"""Models of other libraries, small ones with random weights, through every stage: none of prunec knows of them.

    pip install transformers diffusers segmentation-models-pytorch vit-pytorch monai einops      whichever are wanted
    python benchmarks/elsewhere.py                       the models of all libraries that are installed
    python benchmarks/elsewhere.py transformers          those of some
    python benchmarks/elsewhere.py bert llama --csv FILE

`elsewhere.yaml` says what they are. A line tells how many units there are, how many may go and what pins the others,
and the largest difference, in float64 and at every node, between the slim program and the masked original, where half
of every group went at random. Each library has a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from prunec.compiler import trace
from prunec.compiler.cost.model import cost
from prunec.compiler.errors import PrunecError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.compiler.verify.verify import verify
from prunec.passes.score import Score
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink

HERE = Path(__file__).parent
COLUMNS = "library model status nodes units free params slim_params difference seconds pinned".split()
SHOWN = 3
"""How many reasons of pins a line tells."""


# -- in a library's own process --------------------------------------------------------------------------------------


def build(library: str, entry: Mapping[str, Any]) -> nn.Module:
    """A model as its entry says, in eval mode."""
    torch.manual_seed(0)
    home = importlib.import_module(".".join(filter(None, (library, entry.get("module")))))
    options = entry.get("options", {})
    if "config" in entry:
        return getattr(home, entry["class"])(getattr(home, entry["config"])(**options)).eval()
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return getattr(home, entry["class"])(**options).eval()


def example(inputs: Mapping[str, str] | Sequence[str]) -> Any:
    """Tensors of the kinds and shapes that an entry names."""
    if isinstance(inputs, Mapping):
        return {name: _tensor(text) for name, text in inputs.items()}
    return tuple(map(_tensor, inputs))


def _tensor(text: str) -> torch.Tensor:
    kind, _, sizes = text.partition(" ")
    shape = [int(size) for size in sizes.split("x")]
    if kind == "ids":
        return torch.randint(1, 10, shape)
    return torch.ones(shape, dtype=torch.int64) if kind == "ones" else torch.randn(shape)


def examine(model: nn.Module, inputs: Any) -> Iterator[dict[str, Any]]:
    """Take one model through all stages, and tell what each found."""
    start = time.perf_counter()
    program = trace(model, inputs)
    yield {"status": "labels", "nodes": len(program.graph.nodes)}
    analysis = analyse(program)
    pins = Counter(reason for group in analysis.groups.values() for reason in group.pinned if reason)
    pinned = "; ".join(f"{count} {reason}" for reason, count in pins.most_common(SHOWN))
    yield {"status": "select", "units": analysis.size, "free": int(analysis.free.sum()), "pinned": pinned}
    context = Context(seed=1, traced=program)
    scored = Score(criterion="random").run(program, context).program
    chosen = Select(ratio=0.5).run(scored, context).program
    slim = Shrink().run(chosen, context).program
    yield {"status": "verify", "seconds": round(time.perf_counter() - start, 2)}
    yield {"params": cost(program).params, "slim_params": cost(slim).params}
    reference = Shrink().reference(chosen, slim)
    found = verify(slim, reference, pass_name="shrink", batches=(2,), exact=True)
    yield {"status": "ok", "difference": f"{found.difference:.1e}"}


def run_child(library: str, names: Sequence[str]) -> None:
    """All models of a library, a JSON object a line for each."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    models = entries()[library]
    for name in names:
        row: dict[str, Any] = {"library": library, "model": name, "status": "build"}
        try:
            model, inputs = build(library, models[name]), example(models[name]["inputs"])
            row["status"] = "trace"
            for found in examine(model, inputs):
                row |= found
        except Exception as error:  # the table tells; the next model is tried
            text = error.message if isinstance(error, PrunecError) else str(error)
            row["status"] += f": {type(error).__name__}: {' '.join(text.split())}"[:300]
        print(json.dumps(row), flush=True)


# -- in the main process ---------------------------------------------------------------------------------------------


def entries() -> dict[str, dict[str, Any]]:
    """Library -> model -> entry."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "elsewhere.yaml").read_text(encoding="utf-8"))
    return found


def measure(library: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of some models of a library, each as soon as it is known."""
    command = [sys.executable, __file__, "--child", library, *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if child.returncode:
        raise SystemExit(f"{library}: exit code {child.returncode}")


def wanted(asked: Sequence[str]) -> dict[str, list[str]]:
    """Library -> the models that are asked for, by their names or their library's; all without a name."""
    known = entries()
    strange = set(asked) - set(known) - {name for models in known.values() for name in models}
    if strange:
        raise SystemExit(f"no library and no model is called {min(strange)}")
    chosen = {
        library: [name for name in models if not asked or library in asked or name in asked]
        for library, models in known.items()
    }
    missing = [library for library, names in chosen.items() if names and importlib.util.find_spec(library) is None]
    for library in missing:
        print(f"{library} isn't installed: left out", file=sys.stderr)
    return {library: names for library, names in chosen.items() if names and library not in missing}


def main() -> int:
    """Read the command line, print the rows, and tell whether all models went through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a library or a model")
    parser.add_argument("--csv", type=Path, help="write the rows there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.names[0], options.names[1:])
        return 0
    rows = []
    for library, names in wanted(options.names).items():
        for row in measure(library, names):
            rows.append(row)
            print("  ".join(f"{row.get(column, '')}" for column in COLUMNS), flush=True)
    good = sum(row["status"] == "ok" for row in rows)
    print(f"{good} of {len(rows)} models went through")
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    return int(good < len(rows))


if __name__ == "__main__":
    raise SystemExit(main())
