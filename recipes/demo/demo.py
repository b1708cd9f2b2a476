"""`make demo`: train three parents, merge them by recipe, measure, and see what a second build does.

Every step is a command that can be typed by hand in the project's folder. The demo fails where a command does, where
a merge is no better than its parents, or where a build makes more or less than it should.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import digits

PROJECT = Path(__file__).resolve().parents[2]
RECIPE = "recipes/demo.yaml"
FOLDER = Path("build/demo")
PARENTS = [FOLDER / f"{name}.safetensors" for name in digits.PARENTS]
AVERAGE, TASKS = (FOLDER / f"{name}.safetensors" for name in ("average", "task-arithmetic"))
MERGES = [AVERAGE, TASKS]

MARGIN = 30  # points of accuracy on all ten digits that a merge must be above a and b; about 40 are usual


def main() -> None:
    for merge in MERGES:  # an earlier demo's, so that there is something to build
        (PROJECT / merge).unlink(missing_ok=True)

    say("Three parents: base saw a few scans of all digits, a then only 0-4, b then only 5-9.")
    run("python", "recipes/demo/digits.py", "train", FOLDER)

    say("The recipe makes two merges of them.")
    run("mergeflow", "build", RECIPE)

    say("Each of a and b knows one half. The merges know both, and no data was needed for that.")
    run("python", "recipes/demo/digits.py", "table", *PARENTS, *MERGES)
    check_accuracy()

    say("Nothing has changed, so a second build has nothing to do.")
    before = stamps()
    run("mergeflow", "build", RECIPE)
    check(changed(before) == [], "the second build wrote a file")

    say("Another multiplier: only the output that depends on it is made again.")
    run("mergeflow", "build", RECIPE, "--set", "m=0.4")
    check(changed(before) == [TASKS], "another m should change task-arithmetic and nothing else")
    run("python", "recipes/demo/digits.py", "table", *MERGES)
    check_accuracy()

    say("What would a build of the recipe as it is written do now, and why?")
    run("mergeflow", "explain", RECIPE)


def say(line: str) -> None:
    print(f"\n# {line}", flush=True)


def run(program: str, *arguments: str | Path) -> None:
    """Show the command as one would type it, and run it with this interpreter in the project's folder."""
    words = [a.as_posix() if isinstance(a, Path) else a for a in arguments]
    print("$", program, *words, flush=True)
    command = [sys.executable, *(["-m", "mergeflow"] if program == "mergeflow" else []), *words]
    result = subprocess.run(command, cwd=PROJECT, check=False)
    if result.returncode:
        sys.exit(f"demo: {program} {words[0]} failed with exit code {result.returncode}")


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"demo: {otherwise}")


def check_accuracy() -> None:
    """Both merges far above both of the parents that each lost a half, and not below the base that they share."""
    base, a, b = (digits.accuracy(PROJECT / parent)[-1] for parent in PARENTS)
    for merge in MERGES:
        share = digits.accuracy(PROJECT / merge)[-1]
        check(share > max(a, b) + MARGIN and share > base, f"{merge.stem} reads only {share:.1f} % of the digits")


def stamps() -> dict[Path, tuple[int, bytes]]:
    """What a write would change, even one of the same bytes, and the bytes."""
    return {path: ((PROJECT / path).stat().st_mtime_ns, (PROJECT / path).read_bytes()) for path in PARENTS + MERGES}


def changed(before: dict[Path, tuple[int, bytes]]) -> list[Path]:
    return [path for path, stamp in stamps().items() if stamp != before[path]]


if __name__ == "__main__":
    main()
