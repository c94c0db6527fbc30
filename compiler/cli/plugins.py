"""The commands that other packages add to the command line, through the entry-point group `prunec.commands`.

    [project.entry-points."prunec.commands"]
    sensitivity = "prunec.passes.studies.commands:sensitivity"       # a function, with options as typer reads them

The function's text is the command's help. Its module should import what it needs when the command runs, since
`prunec --help` imports the modules of all commands. A built-in command keeps its name, whatever else is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import typer
from typer.core import TyperGroup

from prunec.compiler.errors import PrunecError
from prunec.compiler.plugins import EntryPoints
from prunec.compiler.user_code import running

COMMANDS: Final = EntryPoints("prunec.commands", "command")
"""The commands that are installed beside the built-in ones."""

_MEANT: Final = (typer.Exit, typer.Abort, typer.BadParameter)
"""What a command raises to end in its own way."""


class CommandGroup(TyperGroup):
    """The built-in commands, and the installed ones, which are loaded when they are first asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, the built-in ones first."""
        self._complete()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, None where there is none. One that can't be imported says so when it is run."""
        if cmd_name not in self.commands:
            self._complete()
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:
        """Run a command. What code of the user's raises, and nobody nearer to it has told, is told as its fault."""
        with running("code that isn't prunec's failed", PrunecError, mixed=True, passing=_MEANT):
            return super().invoke(ctx)

    def _complete(self) -> None:
        for name in COMMANDS.names():
            if name not in self.commands:
                self.add_command(_command(name), name)


def _command(name: str) -> Any:
    """The installed function as a command of the command line."""
    made = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    try:
        entry, function = COMMANDS.load(name)
        if not callable(function):
            raise PrunecError(f"the command '{name}' ({entry.value}) is no function")
    except PrunecError as error:
        function = _broken(error)
    made.command(name)(function)
    return typer.main.get_command(made)


def _broken(error: PrunecError) -> Callable[[], None]:
    """A command that can't be loaded: it is listed with the reason, and raises it when it is run."""

    def run() -> None:
        raise error

    run.__doc__ = f"can't be used: {error.message}"
    return run
