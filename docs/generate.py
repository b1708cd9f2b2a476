"""`python -m docs.generate`, which is `make docs`: write docs/cli.md, docs/methods.md and the schema.

python -m docs.generate            write
python -m docs.generate --check    only say what is out of date; exit code 1
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from mergeflow.cli.main import SECTIONS
from mergeflow.cli.main import cli as group
from mergeflow.cli.methods import page
from mergeflow.methods.registry import built_in
from mergeflow.recipe import schema

HERE = Path(__file__).parent
WIDTH = 100
HEAD = """# The command line

Written by `make docs` from the commands' own help; a test checks that it is up to date.
"""


def pages() -> dict[Path, str]:
    described = json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
    return {
        HERE / "cli.md": "\n".join(command_line()),
        HERE / "methods.md": "\n".join(methods()),
        HERE / "recipe.schema.json": described,
    }


def command_line() -> Iterator[str]:
    yield HEAD
    yield from help_of(group, "mergeflow", None)
    for title, commands in SECTIONS.items():
        yield f"## {title}\n"
        for name in commands:
            yield f"### mergeflow {name}\n"
            with click.Context(group, info_name="mergeflow", **group.context_settings) as context:
                command = group.get_command(context, name)
                assert command is not None, name
                yield from help_of(command, name, context)
                yield from parts_of(command, name, context)


def parts_of(command: click.Command, name: str, context: click.Context) -> Iterator[str]:
    """The commands of a command that has some."""
    for part in sorted(command.commands) if isinstance(command, click.Group) else ():
        yield f"#### mergeflow {name} {part}\n"
        with click.Context(command, info_name=name, parent=context) as inner:
            yield from help_of(command.commands[part], part, inner)


METHODS = """# The methods

Written by `make docs` from the methods' own pages, which `mergeflow methods NAME` prints; a test checks that it is up
to date, and that the examples work. In them each name is a model. [recipes/README.md](../recipes/README.md) tells which
method is for what, [plugins.md](plugins.md) how to write one.
"""


def methods() -> Iterator[str]:
    found = built_in()
    yield METHODS
    yield from (f"- [`{name}`](#{name}): {_literal(method.formula)}" for name, method in found.items())
    for name, method in found.items():
        yield "\n".join([f"\n## {name}\n", "```text", *(line.rstrip() for line in page(method)), "```"])
    yield ""


def _literal(text: str) -> str:
    """Text in which Markdown finds nothing."""
    return re.sub(r"([*_|\[\]<>\\])", r"\\\1", text)


def help_of(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    own = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    with click.Context(command, info_name=name, parent=parent, **own) as context:
        lines = [line.rstrip() for line in command.get_help(context).strip().splitlines()]
    yield "\n".join(["```text", *lines, "```", ""])


def main() -> None:
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        if stale:
            sys.exit(f"out of date: {', '.join(p.name for p in stale)}; `make docs` writes them")
        return
    for path in stale:
        path.write_text(pages()[path], encoding="utf-8")
        sys.stdout.write(f"wrote {path.relative_to(HERE.parent)}\n")


if __name__ == "__main__":
    main()
