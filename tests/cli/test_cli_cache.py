"""`mergeflow cache`: what is shown of the store and done to it, and the exit codes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from support.commands import run, run_json
from support.stored import key, put, tensors

from mergeflow.store.local import LocalStore


@pytest.fixture
def ids(folder: Path) -> list[str]:
    """A store with three objects of growing size, written 30, 20 and 10 hours ago, and their ids."""
    made = []
    for i, title in enumerate(["lewd", "final 混", "half"]):
        then = time.time_ns() - (30 - 10 * i) * 3600 * 10**9
        store = LocalStore(folder / "cache", pytest.fail, lambda then=then: then)  # type: ignore[misc]
        made.append(put(store, tensors([f"{title}{n}" for n in "xy"], 1000 * (i + 1)), title=title))
        store.close()
    return made


def damage(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    data[-1] ^= 1
    Path(path).write_bytes(data)


def test_nothing_is_there_and_nothing_is_made(folder: Path) -> None:
    assert "0 objects, 0 B" in run("cache", "info").stdout
    assert run("cache", "ls").stdout == "nothing is kept\n"
    assert "removed 0 objects" in run("cache", "gc", "--max-size", "0").stdout
    assert "0 objects, 0 B read: all as it was written" in run("cache", "verify").stdout
    assert run("cache", "path").stdout == f"{folder / 'cache'}\n"
    assert not (folder / "cache").exists()


def test_info_counts(folder: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(folder / "cache", pytest.fail)
    store.count(hits=30, misses=10, bytes_saved=1_500_000_000)
    store.close()
    run("cache", "pin", ids[0][:6])
    shown = run("cache", "info").stdout
    assert "3 objects" in shown
    assert "30 of 40 tensors that builds asked for (75%)" in shown
    assert "1.5 GB" in shown
    data = run_json("cache", "info")
    assert data["schema"] == "mergeflow/cache-info/1"
    assert data["kept"]["objects"] == 3
    assert data["kept"]["tensors"] == 6
    assert data["kept"]["bytes"] == sum(p.stat().st_size for p in (folder / "cache").glob("objects/??/*"))
    assert data["pinned"]["objects"] == 1
    assert 0 < data["limit"] <= 50_000_000_000
    monkeypatch.setenv("MERGEFLOW_CACHE_SIZE", "12MB")
    assert "12.0 MB after a build" in run("cache", "info").stdout
    assert run_json("cache", "info")["limit"] == 12_000_000
    assert data["statistics"] == {"hits": 30, "misses": 10, "bytes_saved": 1_500_000_000}


def test_ls_in_every_order(folder: Path, ids: list[str]) -> None:
    lines = run("cache", "ls").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [i[:12] for i in reversed(ids)]
    assert "2 tensors" in lines[0]
    assert "10 h ago" in lines[0]
    assert lines[1].endswith("final 混")
    assert [o["id"] for o in run_json("cache", "ls", "--sort", "size")["objects"]] == list(reversed(ids))
    assert [o["title"] for o in run_json("cache", "ls", "--sort", "title")["objects"]] == ["final 混", "half", "lewd"]
    store = LocalStore(folder / "cache", pytest.fail)
    store.touch([key("lewdx")])
    store.close()
    for order in ("hits", "used"):
        assert run_json("cache", "ls", "--sort", order)["objects"][0]["id"] == ids[0]


def test_gc_by_size_and_by_time(folder: Path, ids: list[str]) -> None:
    would = run("cache", "gc", "--max-size", "30KB", "-n")
    assert "would remove 2 objects" in would.stdout
    assert len(run_json("cache", "ls")["objects"]) == 3
    data = run_json("cache", "gc", "--older-than", "25h")
    assert [o["id"] for o in data["removed"]] == ids[:1]
    assert (data["schema"], data["over"], data["dry_run"]) == ("mergeflow/cache-gc/1", False, False)
    run("cache", "pin", ids[1])
    kept = run("cache", "gc", "--max-size", "0")
    assert f"removed {ids[2][:12]}" in kept.stdout
    assert "more than 0 B" in kept.stderr
    assert "pinned" in kept.stderr
    run("cache", "unpin", ids[1])
    assert run("cache", "gc", "--max-size", "0").stderr == ""
    assert run("cache", "ls").stdout == "nothing is kept\n"


def test_gc_leaves_new_objects_alone(folder: Path) -> None:
    store = LocalStore(folder / "cache", pytest.fail)
    put(store, tensors("a"))
    store.close()
    assert run_json("cache", "gc", "--max-size", "0")["over"]
    assert len(run_json("cache", "gc", "--max-size", "0", "--grace", "0")["removed"]) == 1


def test_verify_drops_what_is_damaged_and_says_so(folder: Path, ids: list[str]) -> None:
    assert "all as it was written" in run("cache", "verify").stdout
    damage(run("cache", "path", ids[1]).stdout.strip())
    result = run("cache", "verify", exit_code=5)
    assert f"dropped {ids[1][:12]}" in result.stdout
    assert "final 混" in result.stdout
    assert "1 was damaged" in result.stdout
    assert "all as it was written" in run("cache", "verify", "--sample", "50%").stdout
    damage(run("cache", "path", ids[0]).stdout.strip())
    data = run_json("cache", "verify", exit_code=5)
    assert [d["id"] for d in data["damaged"]] == ids[:1]
    assert data["schema"] == "mergeflow/cache-verify/1"


def test_path_leads_to_a_safetensors_file(folder: Path, ids: list[str]) -> None:
    path = run_json("cache", "path", ids[0])["path"]
    assert load_file(path).keys() == {"lewdx", "lewdy"}


def test_rm_and_pin(folder: Path, ids: list[str]) -> None:
    run("cache", "pin", ids[0], ids[1][:8])
    assert "2 objects" in run("cache", "info").stdout
    assert "mergeflow cache unpin" in run("cache", "rm", ids[0], exit_code=2).stderr
    run("cache", "unpin", ids[0])
    assert f"removed {ids[0][:12]}" in run("cache", "rm", ids[0][:5].upper()).stdout
    assert run_json("cache", "rm", ids[2])["ids"] == [ids[2]]
    assert [o["id"] for o in run_json("cache", "ls")["objects"]] == [ids[1]]


@pytest.mark.parametrize("name", ["pin", "unpin", "rm", "path"])
def test_ids_that_fit_nothing_or_too_much(folder: Path, ids: list[str], name: str) -> None:
    assert "cache ls" in run("cache", name, "beef" * 16, exit_code=2).stderr
    assert "4 digits at least" in run("cache", name, ids[0][:3], exit_code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gc", "--max-size", "ten"], "write it as 10GB"),
        (["gc", "--max-size", "-1"], "write it as 10GB"),
        (["gc", "--older-than", "30"], "write it as 30d"),
        (["gc", "--older-than", "1y"], "write it as 30d"),
        (["verify", "--sample", "0"], "write it as 0.1"),
        (["verify", "--sample", "110%"], "write it as 0.1"),
        (["pin"], "IDS"),
        (["sweep"], "sweep"),
    ],
)
def test_what_cannot_be_read(folder: Path, arguments: list[str], said: str) -> None:
    assert said in run("cache", *arguments, exit_code=2).stderr


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1500", 1500), ("1.5KB", 1500), ("2 kib", 2048), ("10GB", 10**10), ("1GiB", 2**30), ("3t", 3 * 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    from mergeflow.cli.amounts import Size

    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90s", 90), ("10min", 600), ("10 m", 600), ("1.5h", 5400), ("30d", 2592000), ("2w", 1209600)],
)
def test_durations(text: str, seconds: float) -> None:
    from mergeflow.cli.amounts import Duration

    assert Duration().convert(text, None, None) == seconds


def test_another_folder(folder: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("cache").rename("elsewhere")
    assert "0 objects" in run("cache", "info").stdout
    assert "3 objects" in run("cache", "info", "--cache", "elsewhere").stdout
    monkeypatch.setenv("MERGEFLOW_CACHE", str(folder / "elsewhere"))
    assert "3 objects" in run("cache", "info").stdout
