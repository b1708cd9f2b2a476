"""What this version refuses by name, each with its own sentence: parts of the language that later versions bring, and
words that people carry over from elsewhere."""

from __future__ import annotations

_NOT_YET = "is not in this version of mergeflow"

Refusals = dict[str, tuple[str, str]]  # key: what is said, the hint

_COMPONENTS = ("vae", "unet", "text_encoder", "clip_l", "clip_g", "t5")
_MACHINE = {
    key: (f"{key} is the machine's business, not the recipe's", f"give it on the command line: --{option}")
    for key, option in {"device": "device", "memory": "memory", "jobs": "jobs", "threads": "jobs"}.items()
}
SWEEP_IN_A_LINE = (
    "a line of a profile has no sweep of its own",
    "give it a param: params: {{ s: {{ sweep: [0, 0.5, 1] }}, k: {{ default: s }} }}",
)

RECIPE: Refusals = {
    "sweep": ("a sweep is the value of a param", "params: {{ s: {{ sweep: [0, 0.5, 1] }} }}"),
    "functions": (f"functions: {_NOT_YET}", "write the expression out in a step"),
    "presets": (f"presets: {_NOT_YET}", "write the numbers as a profile under params:"),
    "source": ("the section is called sources", ""),
    "models": ("the section is called sources", ""),
    "param": ("the section is called params", ""),
    "asserts": ("the section is called assert", ""),
    "output": ("the section is called outputs", ""),
    "version": ("the version of the language is given as mergeflow: 1", ""),
    "title": ("the title of a recipe is name:", "that of an output is metadata: {{ modelspec.title: … }}"),
}

SOURCE: Refusals = {
    **dict.fromkeys(("file", "filename", "model"), ("the file of a source is path:", "write path: in place of {key}:")),
    "preset": (f"preset: {_NOT_YET}", ""),
    "dtype": ("a source has the dtype its file has", "dtype: belongs to an output"),
    "weight": ("a weight belongs into an expression", "for example linear([a @ 0.7, b @ 0.3])"),
}

RANGE: Refusals = {
    "step": ("the step of a range is by:", ""),
    "steps": ("a range is given by its step, not by how many", "for example {{ from: 0, to: 1, by: 0.25 }}"),
}

PARAM: Refusals = {
    "lbw": (f"lbw: {_NOT_YET}", "write the numbers by block, for example IN00: 1, IN01: 0.9"),
    "gradient": ("a gradient runs over the blocks of a selector", "for example '*': {{ gradient: [1, 0.5, 0] }}"),
    "value": ("a param is a number itself", "write {name}: 0.3"),
    "min": (f"a range (min:, max:) {_NOT_YET}", "write {name}: 0.3"),
    "max": (f"a range (min:, max:) {_NOT_YET}", "write {name}: 0.3"),
    "note": (f"a note on a param {_NOT_YET}", "write a comment: # …"),
}

STEP: Refusals = {
    "dtype": ("a step has no dtype", "round: rounds here, dtype: belongs to an output"),
    **dict.fromkeys(("fix", "only", "drop", "mark"), ("{key}: is an option of an output", "write it there")),
    "files": (f"files: {_NOT_YET}", ""),
    "ema": ("ema: is an option of a source", "write it there: { path: …, ema: use }"),
    "from": ("a step's expression is expr:", "from: belongs to an output"),
    **dict.fromkeys(
        _COMPONENTS, ("{key} is not an option of a step", "replace: {{ {key}: a_model }} takes a component")
    ),
}

OUTPUT: Refusals = {
    "keep": ("keep: is an option of a step", "an output is kept anyway"),
    "files": (f"files: {_NOT_YET}", "sidecars: [config, sha256] puts files beside the output"),
    "sha256": (f"an expected sha256 of an output {_NOT_YET}", "the lock file records the outputs' digests"),
    "ema": ("ema: is an option of a source", "write it there: { path: …, ema: use }"),
    "round": ("an output is not rounded apart from its dtype", "write dtype:, or round: in a step"),
    "expr": ("an output's expression is from:", ""),
    "prune": ("what an output leaves out is drop:", "drop: [ema, junk] leaves out what training keeps"),
    "method": (
        "an output takes an expression, not a method",
        "make the call in a step, or write it as from: method(a, b)",
    ),
    **dict.fromkeys(
        _COMPONENTS, ("{key} is not an option of an output", "replace: {{ {key}: a_model }} takes a component")
    ),
}

OPTIONS: Refusals = {**_MACHINE}

_KINDS_NOW = "kind: model, kind: delta and kind: vae are there"
_BAKED = f"bake it into a model elsewhere, and merge the result; {_KINDS_NOW}"
_PART = "leave it out: `replace: {{ {key}: a_source }}` takes the component from a file that has it"
_LIKE = "leave it out: such files merge with their like, tensor by tensor"
KINDS: Refusals = {
    **dict.fromkeys(("lora", "lycoris", "locon", "loha", "lokr"), (f"kind: {{key}} {_NOT_YET}", _BAKED)),
    **dict.fromkeys(
        ("embedding", "textual_inversion"),
        ("an embedding is a word for prompts and no part of a model: it cannot be merged into one", _KINDS_NOW),
    ),
    "hypernetwork": (
        "a hypernetwork acts between the layers of a model while images are made: it cannot be merged into one",
        _KINDS_NOW,
    ),
    **dict.fromkeys(("text_encoder", "clip_l", "clip_g", "t5", "unet"), ("kind: {key} needs not be said", _PART)),
    **dict.fromkeys(("controlnet", "t2i-adapter", "upscaler"), ("kind: {key} needs not be said", _LIKE)),
    "checkpoint": ("a whole model is called kind: model", ""),
}
SCHEMES = {
    "ftp": "downloading by FTP",
    "gs": "reading from an object store (gs:)",
    "az": "reading from an object store (az:)",
}


def not_yet(what: str) -> str:
    return f"{what} {_NOT_YET}"
