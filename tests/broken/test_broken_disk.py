"""A disk that is full, a folder that cannot be written to: on a small file system of its own where root may mount one,
else by a system that says so."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from broken_case import check_golden, fits_a_screen, put, spoken, tree
from click.testing import CliRunner
from support.builds import python
from support.checkpoints import weights

from mergeflow.cli.main import cli
from mergeflow.formats import parts

Patch = pytest.MonkeyPatch
WORDS = ("merge", "a*0.5 + b*0.5", "a=a.safetensors", "b=b.safetensors", "--cache", "cache", "-o")
ELEMENTS = 300_000


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "mergeflow-test", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("this system lets nobody mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: Patch) -> Path:
    """Two models of 1.2 MB, and the current folder."""
    folder = tmp_path / "work"
    models = {
        f"{m}.safetensors": {"w": weights(np.random.default_rng(i), "F32", (ELEMENTS,))} for i, m in enumerate("ab")
    }
    put(folder, models)
    monkeypatch.chdir(folder)
    return folder


def merge(target: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [*WORDS, str(target), *more])
    return done.exit_code, spoken(done.stderr, next(p for p in target.parents if p.name in ("disk", "work")))


def refused(name: str, target: Path, *more: str) -> None:
    before = tree(target.parent)
    code, said = merge(target, *more)
    assert code == 7, said
    assert tree(target.parent) == before
    assert fits_a_screen(said)
    check_golden(name, said)


def blind(monkeypatch: Patch) -> None:
    """As if the free space could not be asked, or somebody took it in between."""
    monkeypatch.setattr(parts, "_free_space", lambda folder: 1 << 60)


def ftruncate(fd: int, size: int) -> None:
    os.ftruncate(fd, size)


FULL: dict[str, Callable[[Patch], None]] = {
    "disk-full": lambda patch: None,
    "disk-full-when-reserving": blind,
    "disk-full-when-writing": lambda patch: (blind(patch), patch.setattr(parts, "_preallocate", ftruncate))[0],
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk(name: str, tmp_path: Path, work: Path, monkeypatch: Patch) -> None:
    with mounted(tmp_path / "disk", "size=1600k") as disk:
        code, said = merge(disk / "mix.safetensors", "--dtype", "float16")
        assert code == 0, said
        FULL[name](monkeypatch)
        refused(name, disk / "mix.safetensors")
        if name == "disk-full":
            refused("disk-full-in-a-new-folder", disk / "new" / "mix.safetensors")
        monkeypatch.undo()


def test_a_full_disk_where_nothing_can_be_mounted(work: Path, monkeypatch: Patch) -> None:
    """The same words as from the real one."""

    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    refused("disk-full-when-reserving", work / "mix.safetensors")


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from mergeflow.formats import parts
parts._preallocate = lambda fd, size: None
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
from mergeflow.cli.main import main
try:
    main()
except SystemExit as end:
    print(end.code)
"""


def test_a_limit_on_the_size_of_files(work: Path) -> None:
    pytest.importorskip("resource")
    before = tree(work)
    done = python(LIMITED, *WORDS, "mix.safetensors", MERGEFLOW_MEMO=str(work.parent / "memo"))
    assert done.stdout.split() == ["7"], done.stderr
    assert tree(work) == before
    check_golden("disk-file-too-large", spoken(done.stderr, work))


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, work: Path, monkeypatch: Patch) -> None:
    with mounted(tmp_path / "disk", "size=4m") as disk:
        code, said = merge(disk / "mix.safetensors", "--dtype", "float16")
        assert code == 0, said
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        refused("folder-unwritable", disk / "mix.safetensors")
        refused("folder-below-an-unwritable-one", disk / "new" / "mix.safetensors")
        monkeypatch.setattr(os, "access", lambda *args, **kwargs: True)  # it only shows when it is tried
        refused("folder-unwritable-after-all", disk / "mix.safetensors")
        refused("folder-that-cannot-be-made", disk / "new" / "mix.safetensors")


def test_a_folder_without_permission(work: Path) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("permissions do not bind root")
    (work / "out").mkdir(mode=0o555)
    before = tree(work)
    code, said = merge(work / "out" / "mix.safetensors")
    assert code == 7
    assert "cannot be written to" in said
    assert tree(work) == before
