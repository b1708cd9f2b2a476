"""The command run in this process, and what it printed."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from mergeflow.cli.main import cli


def run(*arguments: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == exit_code, result.output
    return result


def run_json(*arguments: object, exit_code: int = 0) -> dict[str, Any]:
    """The one JSON object on stdout."""
    document = json.loads(run(*arguments, "--json", exit_code=exit_code).stdout)
    assert isinstance(document, dict)
    return document


def lines(text: str) -> list[str]:
    """Those of a text, with one space between words, however its columns are padded."""
    return [" ".join(line.split()) for line in text.splitlines()]
