"""Things that go wrong in the middle: no half file under a final name, the old one as it was, the next build fine."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.builds import TESTS, build, parts, project, recipe, sha256
from support.checkpoints import Model, Tensor, read, weights, write
from support.exact import F16, doubles, halves_of_sum

from mergeflow.build.project import Project
from mergeflow.errors import IntegrityError, MergeflowError, ResourceError
from mergeflow.events import Event, Progressed
from mergeflow.formats import files

EXPRESSION = "a + (b - c)*0.3"
OLD = "b*0.5 + c*0.5"


def models(elements: int, tensors: int = 3) -> dict[str, Model]:
    """The same numbers over and over: quick to make, and as slow to merge as any."""
    rng = np.random.default_rng(41)
    result: dict[str, Model] = {}
    for name in "abc":
        some = np.frombuffer(weights(rng, "F16", (1 << 16,)).data, np.uint8)
        data = np.resize(some, 2 * elements).tobytes()
        result[name] = {f"t{i}": Tensor("F16", (elements,), data) for i in range(tensors)}
    return result


def check(path: Path, made_of: dict[str, Model]) -> None:
    """Every element as it must be; equal tensors are looked at once."""
    found = read(path)
    assert found.keys() == made_of["a"].keys()
    right: set[bytes] = set()
    for name, t in found.items():
        inputs = [made_of[m][name].data for m in "abc"]
        if name != "t0" and inputs == [made_of[m]["t0"].data for m in "abc"]:
            assert t.data == found["t0"].data
            continue
        a, b, c = (doubles(F16, data) for data in inputs)
        assert (doubles(F16, t.data) == halves_of_sum([(10, a), (3, b), (-3, c)], 10)).all()
        right.add(t.data)
    assert right


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("index"))


# -- killed --------------------------------------------------------------------------------------------------------

CODE = """
import sys
from pathlib import Path
import mergeflow
from mergeflow.events import Progressed
from support.builds import settings
folder, jobs = Path(sys.argv[1]), int(sys.argv[2])
def report(event):
    if isinstance(event, Progressed):
        print(".", end="", flush=True)
p = mergeflow.load(folder / "recipe.yaml", settings=settings(folder, jobs=jobs, force=True), report=report)
p.plan()
print("planned", flush=True)
p.build()
print("built", flush=True)
"""


def started(folder: Path, jobs: int = 2) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": TESTS}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", CODE, str(folder), str(jobs)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True,
    )  # fmt: skip


def after(process: subprocess.Popen[str], units: int) -> None:
    """Wait until planning is done and so many units are."""
    assert process.stdout is not None
    seen = ""
    while "planned" not in seen or seen.split("planned")[1].count(".") < units:
        letter = process.stdout.read(1)
        if not letter:
            break
        seen += letter


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Model]]:
    """An output of about 60 MB, and an old one in its place."""
    folder = tmp_path_factory.mktemp("large")
    made = models(1_500_000, 20)
    for name, model in made.items():
        write(folder / f"{name}.safetensors", model)
    time.sleep(0.03)
    return folder, made


def put_old(folder: Path) -> str:
    build(folder, recipe(OLD), force=True)
    old = sha256(folder / "mix.safetensors")
    (folder / "recipe.yaml").write_text(recipe(EXPRESSION))
    return old


def kill_at(large: tuple[Path, dict[str, Model]], moments: list[tuple[int, float]]) -> None:
    folder, made = large
    old = put_old(folder)
    wanted = None
    for units, delay in moments:
        process = started(folder)
        after(process, units)
        time.sleep(delay)
        process.kill()
        process.communicate()
        if sha256(folder / "mix.safetensors") != old:  # it was done before the blow
            check(folder / "mix.safetensors", made)
            old = put_old(folder)
        assert len(parts(folder)) <= 1
        other = folder / "other.txt"
        other.write_text("not ours")
    result = build(folder, recipe(EXPRESSION))
    assert result.outputs[0].built
    check(folder / "mix.safetensors", made)
    wanted = sha256(folder / "mix.safetensors")
    assert not parts(folder)
    assert not build(folder, recipe(EXPRESSION)).outputs[0].built
    assert sha256(folder / "mix.safetensors") == wanted


def test_killed_at_three_moments(large: tuple[Path, dict[str, Model]]) -> None:
    kill_at(large, [(0, 0.0), (11, 0.0), (28, 0.02)])


@pytest.mark.slow
def test_killed_at_twenty_random_moments(large: tuple[Path, dict[str, Model]]) -> None:
    rng = np.random.default_rng(42)
    kill_at(large, [(int(rng.integers(0, 30)), float(rng.random() * 0.05)) for _ in range(20)])


@pytest.mark.parametrize("jobs", [1, 2])
def test_interrupted_from_the_keyboard(large: tuple[Path, dict[str, Model]], jobs: int) -> None:
    folder, made = large
    old = put_old(folder)
    process = started(folder, jobs)
    after(process, 3)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "built" not in out
    assert "KeyboardInterrupt" in error
    assert sha256(folder / "mix.safetensors") == old
    assert not parts(folder)
    build(folder, recipe(EXPRESSION))
    check(folder / "mix.safetensors", made)


# -- errors of the system ------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, dict[str, Model]]:
    made = models(2_200_000, 1)
    made["a"]["t1"] = made["b"]["t1"] = made["c"]["t1"] = weights(np.random.default_rng(1), "F16", (10,))
    for name, model in made.items():
        write(tmp_path / f"{name}.safetensors", model)
    time.sleep(0.03)
    return tmp_path, made


class Failing:
    """An os function that fails at its nth call on the files of one folder's output."""

    def __init__(self, real: Callable[..., object], nth: int, code: int) -> None:
        self.real, self.nth, self.code, self.calls = real, nth, code, 0
        self.lock = threading.Lock()

    def __call__(self, *args: object, **kwargs: object) -> object:
        with self.lock:
            self.calls += 1
            if self.calls == self.nth:
                raise OSError(self.code, os.strerror(self.code))
        return self.real(*args, **kwargs)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "io"])
@pytest.mark.parametrize("call", ["pwrite", "fsync", "posix_fallocate", "open", "ftruncate", "replace"])
def test_each_call_fails_in_turn(
    small: tuple[Path, dict[str, Model]], monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    folder, made = small
    put_old(folder)
    text = recipe(EXPRESSION)
    failures = 0
    for nth in range(1, 30):
        p = project(folder, text, jobs=1, force=True)
        p.plan()
        if call == "replace":
            failing = Failing(Path.replace, nth, code)
            where, name = Path, "replace"
            failing_method: object = lambda self, target, f=failing: f(self, target)  # noqa: E731
        else:
            failing = Failing(getattr(os, call), nth, code)
            where, name, failing_method = os, call, failing  # type: ignore[assignment]
        if call == "ftruncate":
            monkeypatch.setattr(files, "PORTABLE", True)
        with monkeypatch.context() as patch:
            old, before = sha256(folder / "mix.safetensors"), names(folder)
            patch.setattr(where, name, failing_method)
            try:
                p.build()
                failed = False
            except ResourceError as error:
                failed = True
                message = str(error)
        p.close()
        if failed:
            failures += 1
            assert "safetensors" in message
            assert ("the disk is full" in message) == (code == errno.ENOSPC)
            assert not parts(folder)
            if "recipe.yaml" in message:  # the output is published: only the recipe beside it is missing
                check(folder / "mix.safetensors", made)
                put_old(folder)
                continue
            assert sha256(folder / "mix.safetensors") == old
            assert names(folder) == before
        else:  # the call that failed was one that may (a folder's sync), or there was none
            check(folder / "mix.safetensors", made)
            put_old(folder)
            if failing.calls < nth:
                break
    else:
        pytest.fail("it never ended")
    assert failures >= 1
    build(folder, text)
    check(folder / "mix.safetensors", made)


def test_portable_writes_fail_alike(small: tuple[Path, dict[str, Model]], monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    folder, made = small
    old = put_old(folder)
    monkeypatch.setattr(files, "PORTABLE", True)

    class Full(io.FileIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.io, "FileIO", Full)
        with pytest.raises(ResourceError, match="the disk is full"):
            build(folder, recipe(EXPRESSION))
    assert sha256(folder / "mix.safetensors") == old
    assert not parts(folder)
    build(folder, recipe(EXPRESSION))
    check(folder / "mix.safetensors", made)


def test_short_writes_and_short_reads_are_carried_on(
    small: tuple[Path, dict[str, Model]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made = small
    write_some, read_some = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write_some(fd, data[: max(1, len(data) // 2)], at))
    monkeypatch.setattr(
        os, "preadv", lambda fd, views, at: read_some(fd, [v[: max(1, len(v) // 3)] for v in views], at)
    )
    build(folder, recipe(EXPRESSION))
    check(folder / "mix.safetensors", made)


def test_a_source_that_cannot_be_read(small: tuple[Path, dict[str, Model]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = small
    old = put_old(folder)
    with project(folder, recipe(EXPRESSION)) as p:
        p.plan()
        monkeypatch.setattr(os, "preadv", Failing(os.preadv, 10, errno.EIO))
        with pytest.raises(ResourceError, match="while reading it"):
            p.build()
    monkeypatch.undo()
    assert sha256(folder / "mix.safetensors") == old
    assert not parts(folder)


def test_a_limit_on_the_size_of_files(small: tuple[Path, dict[str, Model]]) -> None:
    folder, made = small
    old = put_old(folder)
    code = """
import resource, signal, sys
from pathlib import Path
from mergeflow.errors import ResourceError
from support.builds import build
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
folder = Path(sys.argv[1])
try:
    build(folder, (folder / "recipe.yaml").read_text())
except ResourceError as error:
    print("refused", error)
"""
    env = {**os.environ, "PYTHONPATH": TESTS}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, folder], env=env, capture_output=True, text=True, check=True
    )
    assert "refused" in done.stdout
    assert "larger than this system allows" in done.stdout
    assert sha256(folder / "mix.safetensors") == old
    assert not parts(folder)
    build(folder, recipe(EXPRESSION))
    check(folder / "mix.safetensors", made)


# -- sources that change -------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """Other content of the same size, and the old time on it."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path: Path) -> None:
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").replace(path)


@pytest.mark.parametrize("change", [flip, replaced, lambda p: os.truncate(p, p.stat().st_size - 2), Path.unlink])
def test_a_source_that_changes_between_hashing_and_merging(
    small: tuple[Path, dict[str, Model]], change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made = small
    old = put_old(folder)
    real = Project.plan

    def planned(self: Project, *args: object) -> object:
        plan = real(self, *args)  # type: ignore[arg-type]
        change(folder / "b.safetensors")
        return plan

    with monkeypatch.context() as patch:
        patch.setattr(Project, "plan", planned)
        with pytest.raises(MergeflowError) as caught:
            build(folder, recipe(EXPRESSION))
    assert caught.value.exit_code == (4 if change is Path.unlink else 5)
    assert sha256(folder / "mix.safetensors") == old
    assert not parts(folder)
    write(folder / "b.safetensors", made["b"])
    build(folder, recipe(EXPRESSION))
    check(folder / "mix.safetensors", made)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("change", [flip, lambda p: os.truncate(p, 4_000_000)])
def test_a_source_that_changes_during_merging(
    small: tuple[Path, dict[str, Model]], change: Callable[[Path], None], jobs: int
) -> None:
    folder, made = small
    old = put_old(folder)

    class Changing:
        merging = done = False

        def __call__(self, event: Event) -> None:
            self.merging = self.merging or getattr(event, "verb", "") == "merging"
            if self.merging and isinstance(event, Progressed) and not self.done:
                self.done = True
                time.sleep(0.01)
                change(folder / "b.safetensors")

    with pytest.raises(IntegrityError):
        build(folder, recipe(EXPRESSION), Changing(), jobs=jobs)
    assert sha256(folder / "mix.safetensors") == old
    assert not parts(folder)
    write(folder / "b.safetensors", made["b"])
    build(folder, recipe(EXPRESSION))
    check(folder / "mix.safetensors", made)


def test_a_reporter_that_fails_leaves_nothing(small: tuple[Path, dict[str, Model]]) -> None:
    folder, _ = small

    def failing(event: Event) -> None:
        if getattr(event, "verb", "") == "merging":
            raise RuntimeError("nobody listens")

    with pytest.raises(RuntimeError, match="nobody listens"):
        build(folder, recipe(EXPRESSION), failing)
    assert not parts(folder)
    assert not (folder / "mix.safetensors").exists()


# -- outputs that are not ours -------------------------------------------------------------------------------------


@pytest.fixture
def built(small: tuple[Path, dict[str, Model]]) -> Iterator[tuple[Path, dict[str, Model]]]:
    build(small[0], recipe(EXPRESSION))
    return small


def test_an_edited_output_is_not_overwritten(built: tuple[Path, dict[str, Model]]) -> None:
    folder, made = built
    time.sleep(0.02)
    flip(folder / "mix.safetensors")
    edited = sha256(folder / "mix.safetensors")
    with pytest.raises(MergeflowError, match="it is not overwritten"):
        build(folder, recipe(EXPRESSION))
    assert sha256(folder / "mix.safetensors") == edited
    build(folder, recipe(EXPRESSION), force=True)
    check(folder / "mix.safetensors", made)


def test_a_foreign_file_is_not_overwritten(small: tuple[Path, dict[str, Model]]) -> None:
    folder, _ = small
    for content in (b"a text", b"", (folder / "a.safetensors").read_bytes()):
        (folder / "mix.safetensors").write_bytes(content)
        with pytest.raises(MergeflowError, match="it is not overwritten"):
            build(folder, recipe(EXPRESSION))
        assert (folder / "mix.safetensors").read_bytes() == content


@pytest.mark.parametrize("lost", ["records", "records and memo", "touched", "copied"])
def test_an_output_proves_itself(built: tuple[Path, dict[str, Model]], lost: str) -> None:
    """Whatever is forgotten, the file is known for what it is: by reading it, not by making it again."""
    folder, _ = built
    target = folder / "mix.safetensors"
    if lost.startswith("records"):
        (folder / "cache" / "index.sqlite").unlink()
        if lost != "records":
            for path in (folder / "memo").iterdir():
                path.unlink()
    elif lost == "touched":
        os.utime(target)
    else:
        copy = target.read_bytes()
        target.unlink()
        target.write_bytes(copy)
    before = target.stat().st_ino, sha256(target)
    assert not build(folder, recipe(EXPRESSION)).outputs[0].built
    assert (target.stat().st_ino, sha256(target)) == before
    build(folder, recipe(OLD))  # and it may be replaced by another build of ours
    assert sha256(target) != before[1]


def test_a_damaged_index_costs_a_reading(built: tuple[Path, dict[str, Model]]) -> None:
    folder, _ = built
    (folder / "cache" / "index.sqlite").write_bytes(b"damaged " * 1000)
    said: list[Event] = []
    assert not build(folder, recipe(EXPRESSION), said.append).outputs[0].built
    assert any("damaged" in getattr(e, "message", "") for e in said)


def test_an_output_over_its_own_source_is_refused(small: tuple[Path, dict[str, Model]]) -> None:
    folder, _ = small
    before = sha256(folder / "a.safetensors")
    for settings in ({}, {"force": True}):
        with pytest.raises(MergeflowError, match="it would overwrite its own input"):
            build(folder, recipe(EXPRESSION, out="a"), **settings)
    (folder / "link.safetensors").symlink_to(folder / "a.safetensors")
    with pytest.raises(MergeflowError, match="it would overwrite its own input"):
        build(folder, recipe(EXPRESSION, out="link"), force=True)
    os.link(folder / "a.safetensors", folder / "hard.safetensors")
    assert sha256(folder / "a.safetensors") == before


# -- two at once ---------------------------------------------------------------------------------------------------


def test_two_builds_of_one_output_at_once(large: tuple[Path, dict[str, Model]]) -> None:
    folder, made = large
    put_old(folder)
    both = [started(folder, 1), started(folder, 1)]
    results = [p.communicate(timeout=120) for p in both]
    for process, (out, error) in zip(both, results, strict=True):
        assert process.returncode == 0, error
        assert "built" in out
    check(folder / "mix.safetensors", made)
    assert not parts(folder)
    assert not build(folder, recipe(EXPRESSION)).outputs[0].built


def test_two_threads_of_one_process(small: tuple[Path, dict[str, Model]]) -> None:
    """The same folder, the same output, each with a project of its own."""
    folder, made = small
    errors: list[BaseException] = []
    projects = [project(folder, recipe(EXPRESSION), force=True, jobs=1) for _ in range(3)]

    def one(p: Project) -> None:
        try:
            p.build()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(p,)) for p in projects]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for p in projects:
        p.close()
    assert (folder / "mix.safetensors").exists()
    check(folder / "mix.safetensors", made)
    assert not parts(folder)
    for error in errors:
        assert isinstance(error, MergeflowError)
