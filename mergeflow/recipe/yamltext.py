"""From the bytes of a recipe file to text, and from the YAML parser's complaints to sentences with a way out."""

from __future__ import annotations

import re

import yaml

from mergeflow.errors import Place, RecipeError
from mergeflow.recipe.places import SourceText
from mergeflow.recipe.tokens import clip

_NAME_THEN_BRACKET = re.compile(r"""( *)([^\s:#{\["']+)(:?)( ?)(?=[{\[])""")
_UNPRINTABLE = re.compile("[^\x09\x0a\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def decode(data: bytes, file: str) -> SourceText:
    """The text of a recipe file: UTF-8, with or without a byte order mark, any line ends."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise RecipeError("the file is UTF-16; recipes are UTF-8", place=Place(file), hint="save it as UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        place = Place(file, line, column)
        raise RecipeError("the file is not UTF-8 text", place=place, hint="save it as UTF-8") from None
    return normal_text(text, file)


def normal_text(text: str, file: str) -> SourceText:
    return SourceText(file, text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))


def refuse_unprintable(source: SourceText) -> None:
    found = _UNPRINTABLE.search(source.text)
    if found:
        raise RecipeError(
            f"the file holds the control character U+{ord(found[0]):04X}",
            place=source.place(found.start()),
            hint="remove it; it may not show in an editor",
        )


def explain(error: yaml.YAMLError, source: SourceText) -> RecipeError:
    """A YAML syntax error in our words, at its place."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return RecipeError("this is not YAML", place=Place(source.file))
    at = min(error.problem_mark.index, len(source.text))
    problem = error.problem or ""
    context_at = min(error.context_mark.index, len(source.text)) if error.context_mark else at
    if "tab" in problem or source.text[at : at + 1] == "\t":
        tab = source.text.rfind("\t", 0, at + 1)
        at = tab if tab >= source.line_start(at) else at
        return RecipeError("this line is indented with a tab", place=source.place(at), hint="indent with spaces")
    if problem.startswith("mapping values") and at - source.line_start(at) > 1024:
        return RecipeError("a key has at most 1024 characters", place=source.place(at))
    if (cause := _before_a_bracket(at, source)) is not None:
        return cause
    if problem.startswith("mapping values") and (cause := _line_above(at, source)) is not None:
        return cause
    if "alphabetic or numeric" in problem and (cause := _after_a_quote(context_at, source)) is not None:
        return cause
    for fragment, message, hint in _REPHRASED:
        if fragment in problem:
            if message.startswith(("a quote", "this line")):
                at = context_at
            char = source.text[at : at + 1].strip()
            return RecipeError(message.format(char=char), place=source.place(at), hint=hint.format(char=char))
    return _misplaced(problem, at, context_at, source)


def _before_a_bracket(at: int, source: SourceText) -> RecipeError | None:
    """The answer to `name{ …` and `name: { …` without its colon or its space: what is inside comes too early."""
    start = source.line_start(at)
    found = _NAME_THEN_BRACKET.match(source.text[start:at])
    if found is None or (found[3] and found[4]):
        return None
    hint = f"a colon and a space follow the name: {clip(found[2])}: {source.text[start + found.end()]} …"
    return RecipeError("this line is no key: value", place=source.place(start + len(found[1])), hint=hint)


def _line_above(at: int, source: SourceText) -> RecipeError | None:
    """The answer to a colon that is the first of its line: the line above went on into this one."""
    start = source.line_start(at)
    here = source.text[start:at]
    above = [line for line in source.text[:start].splitlines(keepends=True) if line.strip() and line.strip()[0] != "#"]
    if not above or re.search(r":\s", here) or here.lstrip()[:1] in ("-", "{", "["):
        return None
    begin = source.text.rfind(above[-1], 0, start)
    indent = len(above[-1]) - len(above[-1].lstrip())
    if not re.search(r":(\s|$)", above[-1]):
        name, colon, rest = above[-1].strip().partition(":")
        hint = "it begins with a name, a colon and a space"
        if colon:
            hint = f"a space follows the colon: {clip(name)}: {clip(rest)}"
        return RecipeError("this line is no key: value", place=source.place(begin + indent), hint=hint)
    if len(here) - len(here.lstrip()) > indent:
        message = "this line is indented further than the one above, and so goes on with its value"
        hint = f"begin it in column {indent + 1}, like the line above" if indent else "begin it at the left edge"
        return RecipeError(message, place=source.place(start + len(here) - len(here.lstrip())), hint=hint)
    return None


def _after_a_quote(at: int, source: SourceText) -> RecipeError | None:
    """The answer to a * or & that follows a closing quote: it was to be part of the text."""
    before = source.text[source.line_start(at) : at].rstrip()
    if before[-1:] not in ("'", '"') or len(before) < 2:
        return None
    quote = before[-1]
    if before.count(quote) % 2:
        message = "a quote that was opened in a line above is closed here"
        return RecipeError(message, place=source.place(at - 1), hint="close it where its text ends")
    other = "double" if quote == "'" else "single"
    message = "there is text after the closing quote: YAML reads a quote at the beginning as its own"
    return RecipeError(message, place=source.place(at), hint=f"put the whole value in {other} quotes")


def _misplaced(problem: str, at: int, context_at: int, source: SourceText) -> RecipeError:
    """Text where YAML expected the next key: after a closed bracket or quote, or at another indentation."""
    line = source.text[source.line_start(at) : at]
    before = line.split(": ", 1)[-1].lstrip()
    if re.match(r"""'[^']*'|"[^"]*"|\[.*\]|\{.*\}""", before):
        if before == line.lstrip() and before[0] in "'\"":
            hint = "a colon and a space follow the name"
            return RecipeError("this line is no key: value", place=source.place(at), hint=hint)
        kind = "quote" if before[0] in "'\"" else "bracket"
        hint = f"put the whole value in {'double' if before[0] != chr(34) else 'single'} quotes"
        if re.match(r"[,;]\s*(#.*)?$", source.text[at:].split("\n")[0]):
            hint = f"leave the {source.text[at]} out: lines are not separated by any"
        return RecipeError(f"there is text after the closing {kind}", place=source.place(at), hint=hint)
    opened = source.text[context_at : context_at + 1]
    if at >= len(source.text) and opened in ("{", "["):
        hint = f"close it with {'}' if opened == '{' else ']'}"
        return RecipeError("this bracket is opened here and never closed", place=source.place(context_at), hint=hint)
    if at >= len(source.text):
        return RecipeError(
            "the file ends in the middle of something",
            place=source.place(at),
            hint="a bracket or a quote is not closed",
        )
    hint = "check the indentation of this line and the one above; a comment inside a value ends it"
    if "','" in problem:
        hint = "entries inside brackets are separated by commas, and every bracket is closed"
        begun = source.place(context_at)
        if begun.line < source.place(at).line:
            hint = f"the {opened} of line {begun.line}, column {begun.column} is still open: close it, or add a comma"
    return RecipeError("YAML cannot read this line", place=source.place(at), hint=hint)


_REPHRASED = (
    (
        "mapping values are not allowed",
        "a second colon with a space stands on this line",
        "quote the value, or put what is inside on lines of its own; a weight is written [a @ 0.5]",
    ),
    ("cannot start any token", "YAML lets no text begin with {char}", "quote it: '{char}…'"),
    ("unknown escape", "in double quotes \\ begins an escape, which this is not", "use / in paths, or single quotes"),
    ("escape code", "in double quotes \\ begins an escape, which this is not", "use / in paths, or single quotes"),
    ("block sequence entries", "YAML reads - here as the beginning of a list", "a text that begins with - is quoted"),
    ("alphabetic or numeric", "YAML reads * and & at the beginning of a text as its own", "quote it: '*.attn1.*'"),
    (
        "could not find expected ':'",
        "this line is no key: value",
        "it begins with a name, a colon and a space; a long text is indented",
    ),
    ("unexpected end of stream", "a quote is opened here and never closed", "in single quotes ' is written ''"),
    ("unexpected document indicator", "a quote is opened here and never closed", "in single quotes ' is written ''"),
    ("expected the node content", "a value is missing here", "quote a text that begins with a comma or a bracket"),
    ("duplicate", "a YAML directive or anchor is given twice", "remove it"),
    ("incompatible YAML", "this is another version of YAML", "remove the line %YAML"),
    ("undefined tag", "YAML tags are not part of recipes", "a text that begins with ! is quoted"),
    ("while parsing a tag", "YAML tags are not part of recipes", "a text that begins with ! is quoted"),
)  # fmt: skip
