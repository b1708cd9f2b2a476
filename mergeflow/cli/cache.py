"""`mergeflow cache`: what is kept of intermediates, and how much of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mergeflow.cli import options
from mergeflow.cli.amounts import Duration, Share, Size
from mergeflow.cli.report import Screen
from mergeflow.cli.text import echo, plural, print_json, table
from mergeflow.errors import IntegrityError, RecipeError
from mergeflow.tensors import human_bytes

if TYPE_CHECKING:
    from mergeflow.store.local import LocalStore
    from mergeflow.store.objects import Collected, ObjectInfo

F = TypeVar("F", bound=Callable[..., Any])
INFO, LS, GC, VERIFY, CHANGED, PATH = (
    f"mergeflow/cache-{name}/1" for name in ("info", "ls", "gc", "verify", "changed", "path")
)
SHORT = 12  # digits of an id that are shown
LEAST = 4  # digits of an id that have to be given
ORDERS: dict[str, Callable[[ObjectInfo], Any]] = {
    "used": lambda o: (-o.used_ns, o.id),
    "size": lambda o: (-o.size, o.id),
    "hits": lambda o: (-o.hits, o.id),
    "title": lambda o: (o.title, o.kind, o.id),
}


@click.group()
@options.debug_option
def command() -> None:
    """Intermediate results that were kept, so that an edit or a sweep need not compute them again. All of it may be
    removed at any time: what is lost is time.

    A build keeps no more than 50 GB or a tenth of the disk, whichever is less. MERGEFLOW_CACHE_SIZE=20GB sets another
    limit, 0 keeps nothing.
    """


def _shared(function: F) -> F:
    return options.folder_options(options.json_option(options.debug_option(function)))


@command.command(short_help="how much is kept, and of what use it was")
@_shared
def info(as_json: bool, **given: Any) -> None:
    """How much is kept, how much may be, and of what use it was."""
    from mergeflow.build.storing import size_limit

    with _store(given) as (store, folder, _):
        objects, counted, limit = store.objects(), store.statistics(), size_limit(folder)
    total, pinned = sum(o.size for o in objects), [o for o in objects if o.pinned]
    asked = counted.hits + counted.misses
    if as_json:
        kept = {"objects": len(objects), "bytes": total, "tensors": sum(o.tensors for o in objects)}
        held = {"objects": len(pinned), "bytes": sum(o.size for o in pinned)}
        print_json(INFO, folder=str(folder), limit=limit, kept=kept, pinned=held, statistics=asdict(counted))
        return
    rows = [("folder", str(folder)), ("kept", f"{plural(len(objects), 'object')}, {human_bytes(total)}")]
    rows.append(("limit", f"{human_bytes(limit)} after a build (MERGEFLOW_CACHE_SIZE)"))
    if pinned:
        rows.append(("pinned", f"{plural(len(pinned), 'object')}, {human_bytes(sum(o.size for o in pinned))}"))
    share = f" ({counted.hits / asked:.0%})" if asked else ""
    rows.append(("found", f"{counted.hits:,} of {plural(asked, 'tensor')} that builds asked for{share}"))
    rows.append(("saved", f"{human_bytes(counted.bytes_saved)} not computed again"))
    echo("\n".join(table(rows, indent="")))


@command.command(short_help="list the objects")
@click.option("--sort", type=click.Choice(list(ORDERS)), default="used", help="What comes first. [default: used]")
@_shared
def ls(sort: str, as_json: bool, **given: Any) -> None:
    """List what is kept: id, size, tensors, uses, when it was last used, and what it is."""
    with _store(given) as (store, _, _):
        objects = sorted(store.objects(), key=ORDERS[sort])
    if as_json:
        print_json(LS, objects=[asdict(o) for o in objects])
        return
    now = time.time_ns()
    rows = [
        (o.id[:SHORT], human_bytes(o.size), plural(o.tensors, "tensor"), plural(o.hits, "use"),
         _ago(now - o.used_ns), f"{o.title}{' (pinned)' if o.pinned else ''}")
        for o in objects
    ]  # fmt: skip
    echo("\n".join(table(rows, indent="", right=(1, 2, 3, 4))) or "nothing is kept")


@command.command(short_help="remove what was not used for long")
@click.option("--max-size", type=Size(), help="Remove the least recently used until no more than this is kept: 10GB.")
@click.option("--older-than", type=Duration(), help="Remove what was not used for so long: 30d, 12h.")
@click.option("--grace", type=Duration(), default=600.0, help="Leave alone what is newer than this. [default: 10min]")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be removed, remove nothing.")
@_shared
def gc(
    max_size: int | None, older_than: float | None, grace: float, dry_run: bool, as_json: bool, **given: Any
) -> None:
    """Remove what was not used for long, and what dead builds left behind. Objects that are pinned, that a running
    build uses, or that were just made stay.
    """
    from mergeflow.store.objects import Limits

    with _store(given) as (store, _, screen):
        collected = store.gc(Limits(max_size, older_than, grace), dry_run=dry_run)
        over = max_size is not None and collected.left > max_size
        if over:
            screen.warn(
                f"{human_bytes(collected.left)} are left, more than {human_bytes(max_size or 0)}: "
                f"{human_bytes(collected.untouchable)} are pinned, in use or newer than --grace"
            )
    if as_json:
        removed = [asdict(o) for o in collected.removed]
        numbers = {name: getattr(collected, name) for name in ("freed", "left", "untouchable", "cleared", "adopted")}
        print_json(GC, removed=removed, **numbers, over=over, dry_run=dry_run)
    else:
        echo("\n".join(_collected(collected, dry_run)))


def _collected(collected: Collected, dry_run: bool) -> Iterator[str]:
    verb = "would remove" if dry_run else "removed"
    yield from table((f"{verb} {o.id[:SHORT]}", human_bytes(o.size), o.title) for o in collected.removed)
    if collected.cleared:
        yield f"cleared {plural(collected.cleared, 'file')} that dead builds left behind"
    if collected.adopted:
        yield f"took in {plural(collected.adopted, 'object')} that the index did not know"
    yield (
        f"{verb} {plural(len(collected.removed), 'object')}, {human_bytes(collected.freed)}; "
        f"{human_bytes(collected.left)} {'would be' if dry_run else 'are'} left"
    )


@command.command(short_help="read everything and drop what is damaged")
@click.option("--sample", type=Share(), help="Read only this share of the objects, chosen at random: 0.1.")
@_shared
def verify(sample: float | None, as_json: bool, **given: Any) -> None:
    """Read all that is kept, every byte, and drop what is damaged.

    \b
    Exit codes: 0  everything is as it was written
                5  something was damaged; it was dropped and will be computed again
    """
    from mergeflow.events import PhaseEnded, PhaseStarted, Progressed

    with _store(given) as (store, _, screen):
        screen(PhaseStarted("checking", "the store", sum(o.size for o in store.objects())))
        verified = store.verify(sample, progress=lambda nbytes: screen(Progressed(nbytes)))
        screen(PhaseEnded("checking", "the store"))
    if as_json:
        numbers = {name: getattr(verified, name) for name in ("objects", "tensors", "adopted")}
        print_json(VERIFY, **numbers, bytes=verified.nbytes, damaged=[asdict(d) for d in verified.damaged])
    else:
        rows = table((f"dropped {d.id[:SHORT]}", d.title or "?", d.reason) for d in verified.damaged)
        read = f"{plural(verified.objects, 'object')}, {human_bytes(verified.nbytes)} read"
        count = len(verified.damaged)
        verdict = f"{count:,} {'was' if count == 1 else 'were'} damaged" if count else "all as it was written"
        echo("\n".join([*rows, f"{read}: {verdict}"]))
    click.get_current_context().exit(IntegrityError.exit_code if verified.damaged else 0)


@command.command(short_help="keep objects from gc")
@click.argument("ids", nargs=-1, required=True)
@_shared
def pin(ids: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Keep the objects with these IDS from gc. The first digits of an id are enough."""
    with _store(given) as (store, _, _):
        objects = _named(store.objects(), ids)
        for o in objects:
            store.pin(o.id)
    _changed("pinned", objects, as_json)


@command.command(short_help="let gc remove them again")
@click.argument("ids", nargs=-1, required=True)
@_shared
def unpin(ids: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Let gc remove the objects with these IDS again."""
    with _store(given) as (store, _, _):
        objects = _named(store.objects(), ids)
        for o in objects:
            store.unpin(o.id)
    _changed("unpinned", objects, as_json)


@command.command(short_help="remove objects now")
@click.argument("ids", nargs=-1, required=True)
@_shared
def rm(ids: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Remove the objects with these IDS now. A build that uses one computes it again."""
    with _store(given) as (store, _, screen):
        objects = _named(store.objects(), ids)
        if pinned := [o.id[:SHORT] for o in objects if o.pinned]:
            raise RecipeError(
                f"{', '.join(pinned)} {'is' if len(pinned) == 1 else 'are'} pinned",
                hint=f"mergeflow cache unpin {' '.join(pinned)}",
            )
        removed = [o for o in objects if store.remove(o.id)]
        for o in objects:
            if o not in removed:
                screen.warn(f"{o.id[:SHORT]} stays: another program holds it open")
    _changed("removed", removed, as_json)


@command.command(short_help="print where the cache or an object is")
@click.argument("object_id", metavar="[ID]", required=False)
@_shared
def path(object_id: str | None, as_json: bool, **given: Any) -> None:
    """Print where the cache is; or the file of the object with this ID, which is a safetensors file."""
    with _store(given) as (store, folder, _):
        found = folder
        if object_id is not None:
            (o,) = _named(store.objects(), (object_id,))
            found = store.path(o.id)
    if as_json:
        print_json(PATH, path=str(found))
    else:
        echo(str(found))


@contextmanager
def _store(given: dict[str, Any]) -> Iterator[tuple[LocalStore, Path, Screen]]:
    """The store that a build with these options would use."""
    from mergeflow.build.settings import cache_folder
    from mergeflow.store.local import LocalStore

    folder = cache_folder(options.settings(**given)).absolute()
    with Screen(brief=True) as screen:
        store = LocalStore(folder, screen.warn)
        try:
            yield store, folder, screen
        finally:
            store.close()


def _named(objects: Sequence[ObjectInfo], ids: Sequence[str]) -> list[ObjectInfo]:
    """The objects whose ids begin like this, each once."""
    found: dict[str, ObjectInfo] = {}
    for start in ids:
        fitting = [o for o in objects if o.id.startswith(start.lower())]
        if len(start) < LEAST or not fitting:
            few = f": give {LEAST} digits at least" if len(start) < LEAST else ""
            raise RecipeError(f"no stored object is called {start!r}{few}", hint="`mergeflow cache ls` lists them")
        if len(fitting) > 1:
            raise RecipeError(
                f"{len(fitting):,} stored objects begin with {start}",
                hint=f"give more digits: {' or '.join(o.id[:SHORT] for o in fitting[:3])}",
            )
        found[fitting[0].id] = fitting[0]
    return list(found.values())


def _changed(verb: str, objects: Sequence[ObjectInfo], as_json: bool) -> None:
    if as_json:
        print_json(CHANGED, verb=verb, ids=[o.id for o in objects], bytes=sum(o.size for o in objects))
        return
    lines = table((f"{verb} {o.id[:SHORT]}", human_bytes(o.size), o.title) for o in objects)
    echo("\n".join(lines) or "nothing was there")


def _ago(duration_ns: int) -> str:
    seconds = max(0, duration_ns) // 1_000_000_000
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:,} {unit} ago"
    return "just now" if seconds < 60 else "1 min ago"
