"""What can go wrong, as a tree; and what a message owes its reader.

An error says where, what was found, and a way out. A class exists only where a caller could act on it differently:

    MergeflowError          exit 1   a build failed
      RecipeError           exit 2   the recipe, or how the command was called; carries a Place
        UnknownName                  a name nothing answers to; carries the nearest ones
      Differs               exit 3   a comparison was asked for and it does not hold
      MissingInput          exit 4   a file that is not there
      IntegrityError        exit 5   a file that is not what it claims to be
      NotReproducible       exit 6   the lock, or an expected digest, does not hold
      ResourceError         exit 7   disk, memory, permissions

Anything else that escapes is a bug (exit 70) and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a recipe: a file as it was named, line and column counted from 1 (0: not known), and the text there."""

    file: str = ""
    line: int = 0
    column: int = 0
    text: str = ""

    def __str__(self) -> str:
        parts = [self.file] if self.file else []
        if self.line:
            parts += [str(self.line), str(self.column)]
        return ":".join(parts)


MOST_SHOWN = 12  # names in a hint


class MergeflowError(Exception):
    """Base of everything that mergeflow raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, place: Place | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place and str(self.place) else ""
        text = f"\n    {self.place.text}" if self.place and self.place.text else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{where}{self.message}{text}{hint}"


class RecipeError(MergeflowError):
    exit_code = 2


class UnknownName(RecipeError):
    """A name nothing answers to. `known` is what could have been meant; the nearest become the hint, or all of it."""

    def __init__(
        self, what: str, name: str, known: Iterable[str], *, place: Place | None = None, hint: str = ""
    ) -> None:
        names = list(known)
        close = nearest(name, names)
        if close:
            hint = f"did you mean {' or '.join(map(_short, close))}?" + (f" {hint}" if hint else "")
        elif not hint and names:
            more = f" and {len(names) - MOST_SHOWN:,} more" if len(names) > MOST_SHOWN else ""
            shown = ", ".join(map(_short, names[:MOST_SHOWN]))
            hint = f"there {'is' if len(names) == 1 else 'are'} {shown}{more}"
        super().__init__(f"no {what} is called {_short(name)}", place=place, hint=hint)
        self.name = name


class Differs(MergeflowError):
    exit_code = 3


class MissingInput(MergeflowError):
    exit_code = 4


class IntegrityError(MergeflowError):
    exit_code = 5


class NotReproducible(MergeflowError):
    exit_code = 6


class ResourceError(MergeflowError):
    exit_code = 7


def _short(name: str, width: int = 60) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"


def nearest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known names most like `name`, best first; case is forgiven before spelling is."""
    import difflib  # only a misspelt name pays for it

    names = list(known)
    if len(names) > 2000:  # difflib is quadratic; a recipe with thousands of steps still gets its error at once
        names = [n for n in names if n[:1].casefold() == name[:1].casefold()][:2000]
    folded = [n for n in names if n.casefold() == name.casefold()]
    return folded or difflib.get_close_matches(name, names, n=limit, cutoff=0.6)
