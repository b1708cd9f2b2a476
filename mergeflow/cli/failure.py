"""Every way in which a command can end other than well: one message on stderr, and an exit code.

    1 build failed    2 usage or recipe   3 differs     4 input missing   5 integrity
    6 not reproducible   7 resources      70 a bug      130 interrupted   143 terminated

With --json the same is one JSON object on stdout. `--json` and `--debug` are looked up in the arguments themselves,
because the arguments may be what could not be read.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import click

from mergeflow.cli.text import echo, json_text, paint
from mergeflow.errors import MergeflowError, Place

SCHEMA = "mergeflow/error/1"
MAX_LINES, MAX_LINE = 20, 500  # an error fits on one screen

_NO_ARGUMENTS: tuple[type[click.UsageError], ...] = tuple(
    filter(None, [getattr(click.exceptions, "NoArgsIsHelpError", None)])  # click 8.1 has none: it prints and exits
)


class Terminated(KeyboardInterrupt):
    """SIGTERM: as an interrupt, it ends all workers and leaves nothing behind."""


class Failure(NamedTuple):
    """`label` is what stands before the message; `trace`: whether the traceback is shown without --debug."""

    label: str
    message: str
    exit_code: int
    place: Place | None = None
    hint: str = ""
    trace: bool = False


def tell(error: BaseException, arguments: Sequence[str]) -> int:
    """Say what happened; returns the exit code."""
    if isinstance(error, click.Abort):
        error = error.__cause__ or KeyboardInterrupt()
    if isinstance(error, BrokenPipeError):
        return _quiet()
    if isinstance(error, _NO_ARGUMENTS):
        echo(error.format_message(), err=True)
        return 2
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    failed = judge(error)
    if failed.trace or "--debug" in flags:
        echo("".join(traceback.format_exception(error)), err=True, nl=False)
    label = f"{paint(failed.label, fg='red', bold=True)} " if failed.label else ""
    echo(f"mergeflow: {label}{shown(failed)}", err=True)
    if "--json" in flags:
        place = failed.place and {name: getattr(failed.place, name) for name in ("file", "line", "column", "text")}
        echo(
            json_text(SCHEMA, message=failed.message, place=place or None, hint=failed.hint, exit_code=failed.exit_code)
        )
    return failed.exit_code


def judge(error: BaseException) -> Failure:
    """What an error is to the person at the terminal."""
    if isinstance(error, MergeflowError):
        return Failure("error:", error.message, error.exit_code, error.place, error.hint)
    if isinstance(error, click.UsageError):
        hint = f"`{error.ctx.command_path} --help` says what it takes" if error.ctx else ""
        return Failure("error:", _sentence(error.format_message()), 2, hint=hint)
    if isinstance(error, click.ClickException):
        return Failure("error:", _sentence(error.format_message()), 2)
    if isinstance(error, Terminated):
        return Failure("", "terminated", 143)
    if isinstance(error, KeyboardInterrupt | EOFError):
        return Failure("", "interrupted", 130)
    if isinstance(error, MemoryError):
        return Failure("error:", "there is not enough memory", 7, hint="--memory 1GB, or fewer --jobs, needs less")
    if isinstance(error, OSError) and error.filename is not None:
        return Failure("error:", f"{os.fsdecode(error.filename)}: {error.strerror}", 7)
    kind = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Failure("bug:", kind, 70, hint="please report this, with all that is printed above", trace=True)


def shown(failed: Failure) -> str:
    """The message with place and hint, as MergeflowError lays them out, and short enough for a screen."""
    text = str(MergeflowError(failed.message, place=failed.place, hint=failed.hint))
    lines = [line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…" for line in text.splitlines()]
    if len(lines) > MAX_LINES:
        lines[MAX_LINES - 2 : -1] = [f"  … {len(lines) - MAX_LINES + 1} more lines"]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    """Click's sentences in the style of ours: no capital, no full stop."""
    text = " ".join(text.split())  # lists of choices have a line for each
    return text[:1].lower() + text[1:].removesuffix(".")


def _quiet() -> int:
    """Whoever read our output has gone: end without a word, not even at the last flush."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
