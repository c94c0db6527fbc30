"""Where a result comes from, for the report: the plan, the weights and their hash, the date, the versions."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from prunec.compiler.driver.lock import versions
from prunec.compiler.ir.program import Program
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.report import Origin


def origin_of(plan: Plan, program: Program) -> Origin:
    """The origin of what a plan has made: `program` is the slim one."""
    file = _weights_file(plan)
    made = None if plan.model is None else plan.model.factory or plan.model.saved
    return Origin(
        plan=plan.file,
        model=None if made is None else str(made),
        weights=None if file is None else file.name,
        weights_sha256=None if file is None else _sha256(file),
        data=None if plan.data is None else str(plan.data.factory),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=plan.seed,
        versions=versions(),
        use=() if plan.region else _use(program),
    )


def _weights_file(plan: Plan) -> Path | None:
    """The file that the model's weights come from; None where the factory makes them, or Python handed them over."""
    if plan.model is None:
        return None
    if plan.model.saved:
        return plan.model.saved / "model.safetensors"
    return plan.model.weights.file if plan.model.weights else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _use(program: Program) -> tuple[str, ...]:
    """The lines of Python that load the slim model and call it."""
    nodes = program.deployed.graph.find_nodes(op="placeholder")
    call = f"outputs = model({', '.join(str(node.target) for node in nodes)})"
    return ("from model import load", "model = load()  # in evaluation mode; model.train() to train on", call)
