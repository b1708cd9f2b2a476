"""The command `mergeflow` itself: the list of commands, each imported when it is called, and the way in and out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from mergeflow import __version__
from mergeflow.cli import failure
from mergeflow.errors import UnknownName

SECTIONS = {
    "Merging": {
        "build": "make the outputs that are out of date",
        "merge": "merge by an expression, without a recipe file",
        "plan": "show what a build would do, and how",
        "explain": "say why each output would be built, or not",
        "graph": "draw what is made of what",
        "clean": "remove built outputs",
        "cache": "show and limit what is kept of intermediate results",
        "init": "write a recipe to start from",
    },
    "Model files": {
        "inspect": "show what a file holds",
        "check": "say what is wrong with files: broken position ids, NaN, missing tensors",
        "diff": "compare two models, by component and block",
        "hash": "print the digest and the hashes of files",
    },
    "Sharing": {
        "fetch": "bring a recipe's sources to this machine, and check them",
        "lock": "write down which files the sources are, and what must come out",
        "verify": "read files again and check that they are what they claim",
        "import": "make a recipe of a merged file, or of another tool's recipe",
        "export": "write a recipe for mergekit, for A1111's merger, or for people",
    },
    "Reference": {
        "methods": "list merge methods, or show one",
        "arch": "list known architectures, or show one",
        "devices": "show what merges can be computed on, in how much memory, how fast",
        "schema": "print the JSON Schema of recipes, for editors",
        "completion": "print the script that completes words in a shell",
    },
}
_MODULES = {"import": "import_recipe"}  # where the command's name is no name of a module
SUMMARIES = {name: summary for section in SECTIONS.values() for name, summary in section.items()}


class Commands(click.Group):
    """The commands by name. A command's module is imported only when it is needed: `mergeflow.cli.NAME.command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUMMARIES:
            return None
        command = import_module(f"mergeflow.cli.{_MODULES.get(cmd_name, cmd_name)}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in SUMMARIES and not name.startswith("-"):
            recipe = name.lower().endswith((".yaml", ".yml"))
            hint = f"mergeflow build {name}" if recipe else "`mergeflow --help` lists the commands"
            raise UnknownName("command", name, SUMMARIES, hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Run one command and exit. Whatever happens ends here, so that tests and the shell see the same."""
        given = list(sys.argv[1:] if args is None else args)
        try:
            result = super().main(args, *rest, **{"prog_name": "mergeflow", **extra, "standalone_mode": False})
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            sys.exit(failure.tell(error, given))
        sys.exit(result if isinstance(result, int) else 0)


@click.command(
    "mergeflow", cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, message="mergeflow %(version)s")
def cli() -> None:
    """A build system for model merging.

    A recipe is a YAML file that says which models are mixed into which outputs; `mergeflow build` makes those that are
    out of date.
    """


def _terminate(number: int, frame: object) -> NoReturn:
    raise failure.Terminated


def main() -> NoReturn:
    """The entry point of the installed command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that has no · shows ? instead of an error
    signal.signal(signal.SIGTERM, _terminate)  # so that an unfinished file is removed then, too
    cli.main()
