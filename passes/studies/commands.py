"""The commands `prunec sensitivity`, `rank` and `visualise`, as typer reads them; what they do is imported when they
run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunec.compiler.cli.main import PlanFile, Quiet, Sets, Verbose

Batches = Annotated[int | None, typer.Option("--batches", min=1, help="how many batches of the data are looked at")]
Samples = Annotated[int | None, typer.Option("--samples", min=1, help="how many samples; 1024 where nobody says")]
Split = Annotated[str | None, typer.Option("--split", metavar="train|val|test", help="the split they are taken from")]
Loss = Annotated[str | None, typer.Option("--loss", metavar="NAME", help="the loss whose change counts")]
Groups = Annotated[
    list[str] | None, typer.Option("--groups", metavar="PATTERN", help="only the groups of that name; once for each")
]


def sensitivity(
    plan: PlanFile,
    ratios: Annotated[
        str, typer.Option("--ratios", metavar="LIST", help="the shares that go: 10%,20%,...")
    ] = "10%,20%,30%,40%,50%,60%,70%,80%,90%",
    criterion: Annotated[
        str | None, typer.Option("--criterion", metavar="NAME", help="by what units go; else as the plan scores, or l1")
    ] = None,
    groups: Groups = None,
    samples: Samples = None,
    batches: Batches = None,
    split: Split = "val",
    loss: Loss = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder of the results")] = Path("sensitivity"),
    overrides: Sets = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure the metric, or loss, against the share of its units that each group alone loses."""
    from prunec.compiler.report.progress import Detail  # noqa: PLC0415
    from prunec.passes.studies.asked import Asked  # noqa: PLC0415  (imports torch)
    from prunec.passes.studies.run import SENSITIVITY, show_sensitivity  # noqa: PLC0415

    detail = Detail.of(quiet, verbose)
    looks = {"samples": samples, "batches": batches, "split": split, "loss": loss}
    show_sensitivity(Asked.load(plan, overrides, output, SENSITIVITY, detail), ratios, criterion, groups or (), looks)


def rank(
    plan: PlanFile,
    criteria: Annotated[
        str, typer.Option("--criteria", metavar="LIST", help="as in a plan: l1,taylor,{tile: {columns: 9}}")
    ] = "l1,l2,activation_mean,activation_std,apoz,mutual_information,taylor,random",
    groups: Groups = None,
    units: Annotated[
        int | None, typer.Option("--units", min=2, help="try so many units of each group, drawn by seed; else all")
    ] = None,
    samples: Samples = None,
    batches: Batches = None,
    split: Split = None,
    loss: Loss = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder of the results")] = Path("rank"),
    overrides: Sets = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Correlate criteria with the oracle: what the loss really does when a unit goes."""
    from prunec.compiler.report.progress import Detail  # noqa: PLC0415
    from prunec.passes.studies.asked import Asked  # noqa: PLC0415  (imports torch)
    from prunec.passes.studies.run import RANK, show_rank  # noqa: PLC0415

    detail = Detail.of(quiet, verbose)
    looks = {"samples": samples, "batches": batches, "split": split, "loss": loss}
    show_rank(Asked.load(plan, overrides, output, RANK, detail), criteria, units, groups or (), looks)


def visualise(
    plan: PlanFile,
    layers: Annotated[
        list[str] | None, typer.Option("--layer", metavar="PATTERN", help="only the layers of that name; once for each")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="NAME", help="steps and regularisers by name: fast, yosinski_c, ..."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder of the results")] = Path("visualise"),
    overrides: Sets = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make an image of what each unit of a layer looks for, in clusters: a sheet for each layer."""
    from prunec.compiler.report.progress import Detail  # noqa: PLC0415
    from prunec.passes.studies.asked import Asked  # noqa: PLC0415  (imports torch)
    from prunec.passes.studies.images import VISUALISE, show_images  # noqa: PLC0415

    detail = Detail.of(quiet, verbose)
    said = {"layers": layers, "preset": preset}
    options = {key: value for key, value in said.items() if value}
    show_images(Asked.load(plan, overrides, output, VISUALISE, detail), options)
