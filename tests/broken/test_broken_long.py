"""Expressions 10,000 deep and 100,000 terms long: where they mean something they work; where they do not, the
message points at the very character and fits a screen all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_case import HEAD, MAX_LINES, Case, check_golden, fits_a_screen, prepare, run
from click.testing import CliRunner

from mergeflow.cli.main import cli

DEEP, LONG = 10_000, 100_000
START = len("  mix.safetensors: ") + 1

LEGAL = {
    "brackets": ("(" * DEEP + "a*0.5 + b*0.5" + ")" * DEEP, "a*0.5 + b*0.5"),
    "nested-sums": ("a + (b - (" * (DEEP // 2) + "c" + "))" * (DEEP // 2), "a + (c - a)"),
    "signs": ("a + (" + "-" * DEEP + "(b - c))", "a + (b - c)"),
    "calls": ("scale(" * DEEP + "a" + ", 1)" * DEEP, "a"),
    "lists": ("average([" * DEEP + "a, b" + "])" * DEEP, "a*0.5 + b*0.5"),
    "terms": (" + ".join(["a/1e5", "b/1e5"] * (LONG // 2)), "a*0.5 + b*0.5"),
    "terms-that-cancel": ("c" + " + a - a" * (LONG // 2), "c"),
    "products": ("a + (b - c)" + "*1" * LONG, "a + (b - c)"),
    "digits": ("a*0.5 + b*" + ".".join(["0", "5".ljust(39, "0")]), "a*0.5 + b*0.5"),
}  # fmt: skip

ILLEGAL = {
    "brackets-one-too-few": ("(" * DEEP + "a" + ")" * (DEEP - 1), 0),
    "brackets-one-too-many": ("(" * DEEP + "a" + ")" * (DEEP + 1), 2 * DEEP + 1),
    "brackets-around-nothing": ("(" * DEEP + ")" * DEEP, DEEP - 1),
    "brackets-around-an-unknown-name": ("(" * DEEP + "aa" + ")" * DEEP, DEEP),
    "terms-and-an-unknown-name": ("a/1e5 + " * LONG + "nai", 8 * LONG),
    "terms-and-nothing": ("a/1e5 + " * LONG + "*", 8 * LONG),
    "terms-and-a-percent-sign": ("a/1e5 + " * LONG + "b * 30%", 8 * LONG + 4),
    "terms-that-do-not-add-up": (" + ".join(["a/1e5"] * (LONG - 1)), 0),
    "calls-with-an-unknown-one-inside": ("scale(" * DEEP + "slrep(a)" + ", 1)" * DEEP, 6 * DEEP),
    "signs-before-nothing": ("-" * DEEP, DEEP - 1),
}


QUICK = {"terms-that-cancel", "terms-and-nothing"}  # of those with as many terms, which take seconds each


def names(cases: dict[str, object]) -> list[object]:
    """The cases' names; those of many terms only among the slow tests, but for one of each."""
    return [
        pytest.param(name, marks=pytest.mark.slow) if name.startswith("terms") and name not in QUICK else name
        for name in cases
    ]


def text(expression: str) -> str:
    return f"{HEAD}outputs:\n  mix.safetensors: {expression}\n"


def built(folder: Path, expression: str) -> bytes:
    (folder / "recipe.yaml").write_text(text(expression))
    done = CliRunner().invoke(cli, ["build", "recipe.yaml"])
    assert done.exit_code == 0, done.stderr
    assert len(done.stderr.splitlines()) <= MAX_LINES
    return (folder / "mix.safetensors").read_bytes()


@pytest.mark.parametrize("name", names({**LEGAL}))
def test_what_means_something_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expression, simple = LEGAL[name]
    prepare(Case("", 0), tmp_path, None)
    monkeypatch.chdir(tmp_path)
    assert built(tmp_path, expression) == built(tmp_path, simple)


@pytest.mark.parametrize("name", names({**ILLEGAL}))
def test_what_means_nothing_is_refused_at_its_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expression, at = ILLEGAL[name]
    said = run(Case("", 2, text(expression)), tmp_path, None, monkeypatch)
    assert said.startswith(f"mergeflow: error: recipe.yaml:4:{START + at}: ")
    assert fits_a_screen(said)
    check_golden(f"long-{name}", said)
