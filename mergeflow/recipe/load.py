"""From a file, a text or a command line to a Recipe: reading, including, overriding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mergeflow.errors import MissingInput, Place, RecipeError, nearest
from mergeflow.recipe import later, nodes, sections
from mergeflow.recipe.fields import check_keys, free_text, line_of_text, mapping, name_of, path_text, section
from mergeflow.recipe.model import Options, Param, Recipe, Source, Step
from mergeflow.recipe.overrides import override
from mergeflow.recipe.params import read_param
from mergeflow.recipe.places import SourceText
from mergeflow.recipe.sources import architecture, read_source
from mergeflow.recipe.template import read_template, same_output
from mergeflow.recipe.tokens import clip
from mergeflow.recipe.yamltext import decode, normal_text

MAX_INCLUDES = 32  # deep
DEFAULT_NAME = "recipe.yaml"
RECIPE_KEYS = (
    "mergeflow", "name", "description", "license", "note", "arch", "include", "sources", "params", "steps", "assert",
    "defaults", "outputs", "options",
)  # fmt: skip
_SECTIONS = ("sources", "params", "steps", "outputs", "defaults", "options")  # whose lines are indented
_TEXTS = ("name", "description", "license", "note")

Entry = TypeVar("Entry", Source, Param, Step)


def load(path: Path, overrides: Mapping[str, str] = {}, source_overrides: Mapping[str, str] = {}) -> Recipe:
    """Read a recipe file with what it includes, then apply --set and --source."""
    recipe = _Reader().file(path, None)
    return override(recipe, overrides, source_overrides)


def loads(
    text: str,
    file: str = DEFAULT_NAME,
    folder: Path = Path(),
    overrides: Mapping[str, str] = {},
    source_overrides: Mapping[str, str] = {},
) -> Recipe:
    """Read a recipe from its text; its paths are taken from `folder`."""
    recipe = _Reader().text(normal_text(text, file), folder, None)
    return override(recipe, overrides, source_overrides)


def find_recipe(folder: Path) -> Path:
    """The recipe that is meant when none is named: recipe.yaml."""
    path = folder / DEFAULT_NAME
    if path.is_file():
        return path
    found = _recipes_in(folder)
    shown = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    hint = f"name one of {shown}" if found else "mergeflow init writes one"
    raise RecipeError(f"there is no {DEFAULT_NAME} in {folder}", hint=hint)


class _Reader:
    """Reads one recipe and the files it includes, each once."""

    def __init__(self) -> None:
        self.done: dict[Path, Recipe] = {}
        self.open: list[Path] = []  # the chain of includes

    def file(self, path: Path, included_at: nodes.Node | None) -> Recipe:
        real = _real(path)
        if real in self.open:
            assert included_at is not None
            chain = " -> ".join(p.name for p in [*self.open[self.open.index(real) :], real])
            raise included_at.error(f"these recipes include each other: {chain}")
        if len(self.open) >= MAX_INCLUDES:
            assert included_at is not None
            raise included_at.error(f"recipes include each other more than {MAX_INCLUDES} deep")
        if real not in self.done:
            source = decode(_read(path, included_at.where if included_at else None), str(path))
            self.open.append(real)
            self.done[real] = self.text(source, path.parent, path)
            self.open.pop()
        return self.done[real]

    def text(self, source: SourceText, folder: Path, path: Path | None) -> Recipe:
        if len(source.text) > nodes.MAX_BYTES:
            raise _too_large(source.file)
        return self._recipe(nodes.compose(source), source, folder, path)

    def _recipe(self, root: nodes.Mapping, source: SourceText, folder: Path, path: Path | None) -> Recipe:
        check_version(root)
        _refuse_stranded(root)
        check_keys(root, "a recipe", [*RECIPE_KEYS, *(k for k in root.items if k.startswith("x-"))], later.RECIPE)
        get = {key: value for key, (_, value) in root.items.items()}.get
        names: dict[str, tuple[str, Place]] = {}
        values: dict[str, Any] = {key: free_text(node, key) for key in _TEXTS if (node := get(key))}
        if node := get("arch"):
            values["arch"] = architecture(node, folder)
        values["include"], sources, params, files = self._included(get("include"), folder)
        own_sources = _named(get("sources"), "source", names, lambda n, v, p: read_source(n, v, folder, p))
        own_params = _named(get("params"), "param", names, read_param)
        _take("source", sources, own_sources, _same_source)
        _take("param", params, own_params, _same_param)
        steps = _named(get("steps"), "step", names, sections.read_step)
        _one_namespace(sources, params, steps)
        defaults = sections.read_defaults(mapping(node, "defaults")) if (node := get("defaults")) else {}
        return Recipe(
            **values,
            sources=sources,
            params=params,
            steps=steps,
            asserts=sections.read_asserts(node) if (node := get("assert")) else (),
            outputs=_outputs(get("outputs"), defaults),
            options=sections.read_options(mapping(node, "options")) if (node := get("options")) else Options(),
            extras={k: sections.read_extra(v) for k, (_, v) in root.items.items() if k.startswith("x-")},
            path=path,
            text=source.text,
            files=(*([path] if path else []), *files),
        )

    def _included(
        self, node: nodes.Node | None, folder: Path
    ) -> tuple[tuple[str, ...], dict[str, Source], dict[str, Param], list[Path]]:
        """What include: names: the paths as typed, then the sources, params and files they bring."""
        sources: dict[str, Source] = {}
        params: dict[str, Param] = {}
        paths: list[str] = []
        files: list[Path] = []
        for item in _list(node) if node else []:
            paths.append(path_text(item, "an included recipe"))
            included = self.file(folder / paths[-1], item)
            _take("source", sources, included.sources, _same_source)
            _take("param", params, included.params, _same_param)
            files += [file for file in included.files if file not in files]
        return tuple(paths), sources, params, files


def _refuse_stranded(root: nodes.Mapping) -> None:
    """A line that was meant for the section above it and is not indented."""
    section = ""
    for name, (key, _) in root.items.items():
        if name in _SECTIONS:
            section = name
        known = name in RECIPE_KEYS or name in later.RECIPE or name.startswith("x-")
        if section and not known and not nearest(name, RECIPE_KEYS):
            hint = f"if it belongs to {section}:, indent it like the lines there"
            raise key.error(f"a recipe has no key {clip(name)}", hint)


def check_version(root: nodes.Mapping) -> None:
    if "mergeflow" not in root.items:
        hint = "begin with mergeflow: 1"
        if "merge_method" in root.items:
            hint = "for a configuration of mergekit: `mergeflow import FILE`"
        raise root.error("this is no recipe: the key mergeflow is missing", hint)
    node = root.items["mergeflow"][1]
    version = line_of_text(node, "mergeflow").strip()
    if version != "1":
        known = version.isdigit()
        hint = "a newer mergeflow reads it" if known else "write mergeflow: 1"
        raise node.error(f"mergeflow: {clip(version)} is not a version of the recipe language that is known here", hint)


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links; opening it says so
        return path.absolute()


def _read(path: Path, place: Place | None) -> bytes:
    if path.is_dir():
        message = f"the recipe {path} cannot be read: it is a folder"
        raise RecipeError(message, place=place, hint="name the .yaml file in it")
    try:
        with path.open("rb") as file:
            data = file.read(nodes.MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingInput(f"there is no recipe {path}", place=place, hint=_recipes_beside(path)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"the recipe {path} cannot be read: {reason}", place=place) from None
    if len(data) > nodes.MAX_BYTES:
        raise _too_large(str(path))
    return data


def _recipes_beside(path: Path) -> str:
    """What may have been meant by the name of a recipe that is not there."""
    stems = {Path(name).stem: name for name in _recipes_in(path.parent)}
    close = nearest(path.stem, stems)
    return f"did you mean {' or '.join(stems[stem] for stem in close)}?" if close else ""


def _recipes_in(folder: Path) -> list[str]:
    try:
        return sorted(p.name for p in folder.iterdir() if p.suffix.lower() in (".yaml", ".yml") and p.is_file())
    except OSError:
        return []


def _too_large(file: str) -> RecipeError:
    return RecipeError(f"the file is larger than {nodes.MAX_BYTES >> 20} MB, too large for a recipe", place=Place(file))


def _list(node: nodes.Node) -> list[nodes.Node]:
    return node.items if isinstance(node, nodes.Sequence) else [node]


def _named(
    node: nodes.Node | None,
    what: str,
    names: dict[str, tuple[str, Place]],
    read: Callable[[str, nodes.Node, Place], Entry],
) -> dict[str, Entry]:
    """The entries of a section by their normal names, each name used once in the whole file."""
    entries: dict[str, Entry] = {}
    if node is None:
        return entries
    like = f"each line of it is a name, a colon and the {what}"
    for key, value in section(node, f"{what}s", like).values():
        name = name_of(key, f"the name of a {what}")
        if name in _SECTIONS and isinstance(value, nodes.Scalar) and value.is_null:
            raise key.error(f"{name}: is a section, and stands among the {what}s", "begin its line at the left edge")
        if what == "param" and name.endswith(".safetensors"):
            raise key.error(f"{clip(name)} stands among the params", "what is made stands under outputs:")
        if name in names:
            other, place = names[name]
            raise key.error(
                f"{clip(name)} is the name of two things: a {what} here, a {other} at {place}",
                "sources, params and steps share one set of names: rename one",
            )
        names[name] = (what, key.where)
        entries[name] = read(name, value, key.where)
    return entries


def _take(what: str, mine: dict[str, Entry], theirs: Mapping[str, Entry], same: Callable[[Entry, Entry], bool]) -> None:
    """Add entries of one file to those of others; the same name must mean the same thing."""
    for name, entry in theirs.items():
        if name in mine and not same(mine[name], entry):
            first, second = mine[name].place, entry.place
            raise RecipeError(
                f"the {what} {clip(name)} is declared differently at {first}",
                place=second,
                hint="rename one, or leave out the one that is included",
            )
        mine[name] = entry


def _one_namespace(*groups: Mapping[str, Any]) -> None:
    """Names that came by include clash with nothing either."""
    seen: dict[str, Place] = {}
    for group in groups:
        for name, entry in group.items():
            if name in seen:
                raise RecipeError(
                    f"{clip(name)} is the name of two things, the other is at {seen[name]}",
                    place=entry.place,
                    hint="sources, params and steps share one set of names: rename one",
                )
            seen[name] = entry.place


def _same_source(a: Source, b: Source) -> bool:
    if len(a.many) != len(b.many) or not all(map(_same_source, a.many, b.many)):
        return False
    leave = {"folder", "place", "path", "recipe", "many", "note"}
    where = [[(s.folder / p).resolve() for p in (s.path, s.recipe) if p] for s in (a, b)]
    return where[0] == where[1] and a.model_dump(exclude=leave) == b.model_dump(exclude=leave)


def _same_param(a: Param, b: Param) -> bool:
    def content(param: Param) -> object:
        entries = {e.selector: [_code(number) for number in e.numbers] for e in param.profile}
        listed = param.listed and param.listed.model_dump(exclude={"place"})
        swept = [(value.label, content(value)) for value in param.sweep]
        return _code(param.value), _code(param.default), entries, listed, swept

    return content(a) == content(b)


def _code(expr: Any) -> object:
    return expr and [(i.op, i.value) for i in expr.code]


def _outputs(node: nodes.Node | None, defaults: dict[str, Any]) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    seen: dict[str, nodes.Scalar] = {}
    if node is None:
        return outputs
    for key, value in section(node, "outputs", "each line of it is a path, a colon and an expression").values():
        template = read_template(key)
        path = template.text
        same = seen.setdefault(same_output(path), key)
        if same is not key:
            raise key.error(f"{clip(path)} is the same file as the output in line {same.line}")
        outputs[path] = sections.read_output(template, value, key.where, defaults)
    return outputs
