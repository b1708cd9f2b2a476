"""With -o a file is written, whatever is printed."""

from __future__ import annotations

from pathlib import Path

from support.commands import run, run_json


def test_an_exported_recipe(folder: Path) -> None:
    text = run("export", "out/lewd.safetensors", "--to", "text").stdout
    told = run_json("export", "out/lewd.safetensors", "--to", "text", "-o", "steps.txt")
    assert told["file"] == "steps.txt"
    assert Path("steps.txt").read_text(encoding="utf-8") == told["text"] == text
    assert run_json("export", "out/lewd.safetensors", "--to", "text")["file"] is None


def test_an_imported_recipe(folder: Path) -> None:
    run("export", "out/lewd.safetensors", "--to", "a1111-steps", "-o", "steps.json")
    text = run("import", "steps.json").stdout
    told = run_json("import", "steps.json", "-o", "again.yaml")
    assert told["file"] == "again.yaml"
    assert Path("again.yaml").read_text(encoding="utf-8") == told["recipe"] == text
