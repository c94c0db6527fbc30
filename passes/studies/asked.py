"""A plan that a command was given, and the folder for its results, which is written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunec.compiler.cli.target import plan_file
from prunec.compiler.emit.output_folder import check_writable, write_atomically
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.console import say
from prunec.compiler.report.progress import Detail


@dataclass(frozen=True)
class Asked:
    """A plan that a command was given, and the folder for its results."""

    plan: Plan
    folder: Path
    """An absolute path: a factory may change the working directory."""
    command: str
    detail: Detail = Detail.STAGES
    shown: str = ""
    """The folder as it was asked for."""

    @staticmethod
    def load(
        plan: Path, overrides: Sequence[str] | None, folder: Path, command: str, detail: Detail = Detail.STAGES
    ) -> Asked:
        """Load the plan; a folder that can't be written is refused before any work is done. Raises `PrunecError`."""
        loaded = plan_file(plan, overrides)
        check_writable(folder, command)
        return Asked(loaded, folder.absolute(), command, detail, f"{str(folder).rstrip('/')}/")

    def write(self, files: Mapping[str, Any]) -> None:
        """Write the folder: `files` are names, each with what writes the file to a path."""

        def fill(folder: Path) -> None:
            for name, write in files.items():
                write(folder / name)

        write_atomically(self.folder, fill, self.command)
        say(f"\n{self.shown or self.folder}: {', '.join(sorted(files))}")
