"""An architecture of the user's own: read like ours, and refused with file, place and field."""

import pytest

from mergeflow import arch
from mergeflow.errors import MissingInput, RecipeError

GOOD = """
title = "a small network"
[components]
net = ["net.*"]
[groups]
all = ["net"]
[blocks]
order = ["BASE", "L#"]
[blocks.tensors]
"net.layer#.*" = "L#"
[aliases]
"module.net." = "net."
"""


def written(folder, text, name="mine.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_an_architecture(tmp_path):
    mine = arch.load_file(written(tmp_path, GOOD))
    assert (mine.name, mine.title) == ("mine", "a small network")
    assert mine.component("net.layer3.weight") == "net"
    assert mine.block("net.layer3.weight") == "L3"
    assert (
        arch.canonical(mine, {"module.net.layer3.weight": (1,)})["module.net.layer3.weight"].name == "net.layer3.weight"
    )
    assert arch.select(mine, "L3-4", ["net.layer3.w", "net.layer4.w", "net.layer5.w"])[1] == [0, 1]
    assert mine.is_buffer("net.position_ids")
    assert "mine" not in arch.names()


def test_blocks_are_optional(tmp_path):
    mine = arch.load_file(str(written(tmp_path, 'title = "t"\ncomponents = { net = ["net.*"] }')))
    assert mine.blocks == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = ", "not TOML"),
        ("components = {}", "title: it is missing"),
        ('title = "t"', "components: it is missing"),
        ('title = "t"\ncomponents = { net = "net.*" }', "components.net: expected a list of texts, not 'net.*'"),
        ('title = "t"\ncomponents = {}\ngroups = { all = ["net"] }', "groups.all: net is no component"),
        ('title = "t"\ncomponents = { a = [] }\ngroups = { a = ["a"] }', "groups.a: a component has this name"),
        ('title = "t"\ncomponents = {}\ncolour = 1', "colour means nothing here"),
        ('title = "t"\ncomponents = {}\nblocks = { order = ["IN00"] }', "blocks.order: BASE comes first"),
        ('title = "t"\ncomponents = {}\ndetect = [{ part = "vae", why = "w" }]', "detect 1.has: it is missing"),
        (
            'title = "t"\ncomponents = {}\ndetect = [{ part = "vae", why = "w", has = { a = [1.5] } }]',
            'detect 1.has."a"',
        ),
        ('title = "t"\ncomponents = {}\ndetect = 1', "detect: expected tables"),
    ],
)
def test_a_mistake_is_told_with_file_and_field(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        arch.load_file(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_a_mistake_in_toml_is_told_with_its_line(tmp_path):
    with pytest.raises(RecipeError) as caught:
        arch.load_file(written(tmp_path, 'title = "t"\n[components\n'))
    assert caught.value.place.line == 2


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b'title = "\xff"')
    with pytest.raises(RecipeError, match="1:1: not UTF-8: byte 0xff"):
        arch.load_file(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingInput, match="there is no such file"):
        arch.load_file(tmp_path / "mine.toml")
    with pytest.raises(MissingInput):
        arch.load_file(tmp_path)


def test_the_names_of_ours_are_taken(tmp_path):
    with pytest.raises(RecipeError, match="an architecture called sd1 already"):
        arch.load_file(written(tmp_path, GOOD, "sd1.toml"))
