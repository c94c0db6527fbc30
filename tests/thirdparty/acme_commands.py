"""A command of somebody else's: found through the entry-point group `prunec.commands`, listed by `prunec --help`."""

from __future__ import annotations

from prunec.compiler.cli.main import PlanFile, Sets


def acme_names(plan: PlanFile, overrides: Sets = None) -> None:
    """Print the names of a plan's groups."""
    from prunec.compiler.driver.compile import load_divided  # noqa: PLC0415  (imports torch)
    from prunec.compiler.groups.analysis import analyse  # noqa: PLC0415  (imports torch)
    from prunec.compiler.plan.plan import Plan  # noqa: PLC0415  (imports torch)
    from prunec.compiler.report.console import say  # noqa: PLC0415  (only where the command runs)

    for name in analyse(load_divided(Plan.load(plan, overrides or ()))).groups:
        say(name)
