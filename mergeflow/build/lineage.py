"""What a file came from, and what that came from: following what model files say of their making, through the files of
their sources as far as they are at hand.

Nothing is proved by it: a file's graph names its sources by the digests of their tensors, and a source is taken for the
file that claims this digest (`mergeflow verify` checks claims). Files that say nothing of their making are where it
ends; so are those that are not to be found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from mergeflow.arch import Architecture, understand
from mergeflow.build.ancestors import Shelves
from mergeflow.digest import shortened
from mergeflow.errors import IntegrityError, MergeflowError
from mergeflow.formats.contents import Contents, read_contents
from mergeflow.ir.numbers import decimal
from mergeflow.plan.embed import DIGEST
from mergeflow.provenance.beside import statement_path
from mergeflow.provenance.claims import claims_of
from mergeflow.provenance.making import Making, read_making
from mergeflow.provenance.statement import read_statement, source_names

MOST = 2_000  # files that are followed
_APART = "differs"  # of shares that are not the same in all tensors of a block


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One file, found or not. `digest` is '' of a file that nobody has hashed. `called`: what those made from it call
    it. `problem` says why it could not be followed although it is there."""

    digest: str
    path: Path | None
    called: str = ""
    making: Making | None = None
    architecture: Architecture | None = None
    tensors: tuple[str, ...] = ()
    nbytes: int = 0
    problem: str = ""

    @property
    def key(self) -> str:
        return self.digest or str(self.path)

    @property
    def title(self) -> str:
        return self.path.name if self.path else self.called or shortened(self.digest)

    @property
    def parents(self) -> tuple[str, ...]:
        """Digests of what it is made of; its first model first."""
        if self.making is None:
            return ()
        first = [self.making.primary] if self.making.primary in self.making.sources else []
        return tuple(dict.fromkeys([*first, *self.making.sources]))


@dataclass(frozen=True, slots=True)
class Lineage:
    """`files` by key, those that were asked for (`roots`) first, then what they came from, nearest first."""

    roots: tuple[str, ...]
    files: Mapping[str, Ancestor]

    def name(self, digest: str) -> str:
        found = self.files.get(digest)
        return found.title if found is not None else shortened(digest)


@dataclass(slots=True)
class _Search:
    shelves: Shelves
    names: dict[str, str] = field(default_factory=dict)  # what statements call sources


def follow(files: Sequence[Path], shelves: Shelves) -> Lineage:
    """From these files upwards.

    Raises:
        MissingInput, IntegrityError: one of them is not there, or is no model file.
    """
    search = _Search(shelves)
    found: dict[str, Ancestor] = {}
    for file in files:
        root = _read(file, read_contents(file), "", search)
        found[root.key] = root
    roots = tuple(found)
    waiting = deque(digest for root in found.values() for digest in root.parents)
    while waiting and len(found) < MOST:
        digest = waiting.popleft()
        if digest in found:
            continue
        found[digest] = _find(digest, search, files)
        waiting.extend(found[digest].parents)
    return Lineage(roots, found)


def _find(digest: str, search: _Search, asked: Sequence[Path]) -> Ancestor:
    """A merged file in which only the VAE has this digest is where a way ends; and no file is made of itself, though a
    VAE that it took over may be found in it."""
    path, unknown = search.shelves.find(digest), Ancestor(digest, None, search.names.get(digest, ""))
    if path is None:
        return unknown
    try:
        contents = read_contents(path)
        found = _read(path, contents, digest, search)
        if claims_of(path, contents.metadata).get(DIGEST, digest) == digest:
            return found
        return unknown if any(path.samefile(file) for file in asked) else replace(found, making=None)
    except MergeflowError as error:
        return Ancestor(digest, path, search.names.get(digest, ""), problem=error.message)


def _read(path: Path, contents: Contents, digest: str, search: _Search) -> Ancestor:
    claims = claims_of(path, contents.metadata)
    making, problem = None, ""
    try:
        making = read_making(claims)
    except IntegrityError as error:
        problem = error.message
    if statement := read_statement(statement_path(path)):
        search.names |= source_names(statement)
    stored = contents.tensors.values()
    header = understand({t.name: t.shape for t in stored}, contents.other, contents.extras)
    digest = digest or claims.get(DIGEST, "")
    names = tuple(header.aliases[t.name].name if t.name in header.aliases else t.name for t in stored)
    nbytes = sum(file.stat().st_size for file in contents.files)
    called = search.names.get(digest, "")
    return Ancestor(digest, path, called, making, header.architecture, names, nbytes, problem)


def shares_by_block(file: Ancestor) -> dict[str, dict[str, str]]:
    """How much of each source is in each block, by digest and block, of a file that is sums of sources all over; empty
    where nothing differs from block to block, or where what is made is no sum."""
    making, architecture = file.making, file.architecture
    if making is None or architecture is None or not making.others:
        return {}
    number = {name: n for n, names in making.others.items() for name in names}
    shares = [_shares(making, n) for n in range(len(making.forms))]
    if any(s is None for s in shares):
        return {}
    found: dict[str, dict[str, str]] = {digest: {} for digest in making.sources}
    for name in file.tensors:
        block = architecture.block(name) or architecture.component(name)
        of = shares[number.get(name, making.usual)]
        if not block or of is None or architecture.is_buffer(name):
            continue
        for digest, row in found.items():
            share = decimal(of.get(digest, Fraction(0)))
            row[block] = share if row.get(block, share) == share else _APART
    return {
        digest: {block: row[block] for block in sorted(row, key=architecture.layout.place)}
        for digest, row in found.items()
        if len(set(row.values())) > 1
    }


def _shares(making: Making, number: int) -> dict[str, Fraction] | None:
    form = making.forms[number]
    if "apply" in form or any(" " in leaf for _, leaf in form["terms"]):
        return None
    return {leaf: Fraction(int(share), int(form["over"])) for share, leaf in form["terms"]}
