"""`parameters:` of a configuration of mergekit: numbers, switches, gradients over layers and lists of filters. The last
two become params."""

from __future__ import annotations

from fractions import Fraction

from mergeflow.exchange.draft import Draft, Value, one_line, spelled
from mergeflow.exchange.loose import number
from mergeflow.exchange.mergekit_merge import Setting, say
from mergeflow.recipe import nodes


def settings(node: nodes.Node, wish: str, draft: Draft, *, layered: bool) -> dict[str, Setting]:
    """The settings of one model, or of all; `wish` is a part of the names of params, `layered` whether the models are
    folders of language models, for which a list of numbers is a gradient."""
    if isinstance(node, nodes.Scalar) and node.is_null:
        return {}
    if not isinstance(node, nodes.Mapping):
        raise node.error("parameters: is a mapping of names to values")
    prefix = "" if wish == "all" else f"_{wish}"
    return {key: _setting(value, key + prefix, draft, layered=layered) for key, (_, value) in node.items.items()}


def _setting(node: nodes.Node, wish: str, draft: Draft, *, layered: bool) -> Setting:
    if isinstance(node, nodes.Scalar):
        return _scalar(node)
    if not isinstance(node, nodes.Sequence) or not node.items:
        raise node.error("a parameter is a number, a list of numbers, or a list of filters")
    if all(isinstance(item, nodes.Mapping) for item in node.items):
        return _filtered(node, wish, draft)
    gradient = [_number(item) for item in node.items]
    if not layered:
        draft.lose("a list of numbers is a gradient over layers; of files mergekit takes its first: so here")
        return gradient[0]
    return draft.param(wish, {"default": spelled(gradient[0]), "layers": _gradient(gradient)})


def _filtered(node: nodes.Sequence, wish: str, draft: Draft) -> Setting:
    """Rules, of which the first that matches wins; here, two that disagree on a tensor are an error of the plan."""
    lines: dict[str, Value] = {}
    for item in node.items:
        assert isinstance(item, nodes.Mapping)
        value = need(item, "value")
        text = scalar_text(item.items["filter"][1]) if "filter" in item.items else "*"
        key = "default" if text in ("*", "") else f"*{one_line(text)}*"
        if key == "default" and isinstance(value, nodes.Scalar) and len(node.items) == 1:
            return _scalar(value)
        if "*" in text and key != "default":
            raise item.error(f"the filter {one_line(text)} holds a *, which stands for anything here")
        if key in lines:
            continue  # an earlier one wins
        if isinstance(value, nodes.Sequence):
            numbers = [_number(v) for v in value.items]
            if key == "default":
                lines["default"] = spelled(numbers[0])
                key = "layers"
            lines[key] = _gradient(numbers)
        else:
            found = _scalar(value)
            if isinstance(found, bool):
                raise value.error("a switch does not differ from tensor to tensor here")
            lines[key] = say(found)
        if text in ("*", ""):
            break  # what follows is never reached
    return draft.param(wish, dict(sorted(lines.items(), key=lambda line: line[0] != "default")))


def need(node: nodes.Mapping, key: str) -> nodes.Node:
    if key not in node.items:
        raise node.error(f"{key}: is missing here")
    return node.items[key][1]


def scalar_text(node: nodes.Node) -> str:
    if not isinstance(node, nodes.Scalar) or node.is_null or not node.value.strip():
        raise node.error("a text is needed here")
    return node.value.strip()


def _scalar(node: nodes.Node) -> Setting:
    text = scalar_text(node)
    if text.lower() in ("true", "false", "yes", "no", "on", "off"):
        return text.lower() in ("true", "yes", "on")
    return _number(node)


def _number(node: nodes.Node) -> Fraction:
    found = number(scalar_text(node))
    if found is None:
        raise node.error(f"{scalar_text(node)[:40]} is no number")
    return found


def _gradient(numbers: list[Fraction]) -> Value:
    return {"gradient": [spelled(value) for value in numbers]}
