# ruff: noqa: E501  # tables: a case is easier to read on one line
"""Commands that are called wrongly, machines that are too small, locks that do not hold."""

from __future__ import annotations

from broken_case import HEAD, Case, flux, sd1, small

PARAMS = "params: { m: 0.3, k: { default: 0, v: 0.5 } }\n"
TEXT = HEAD + PARAMS + "outputs: { mix.safetensors: a + (b - c)*m*k, sub/other.safetensors: a }\n"


def call(name: str, code: int, command: str, **rest: object) -> Case:
    return Case(name, code, TEXT, command=command, **rest)  # type: ignore[arg-type]


SET = [
    call("set-misspelt", 2, "build recipe.yaml --set mm=0.4"),
    call("set-a-source", 2, "build recipe.yaml --set a=0.4"),
    call("set-without-value", 2, "build recipe.yaml --set m"),
    call("set-empty", 2, "build recipe.yaml --set m="),
    call("set-percent", 2, "build recipe.yaml --set m=30%"),
    call("set-comma", 2, "build recipe.yaml --set m=0,3"),
    call("set-text", 2, "build recipe.yaml --set m=much"),
    call("set-block-unknown", 2, "build recipe.yaml --set k.vv=0.3"),
    call("set-block-empty", 2, "build recipe.yaml --set k.=0.3"),
    call("source-misspelt", 2, "build recipe.yaml --source bb=a.safetensors"),
    call("source-without-value", 2, "build recipe.yaml --source b"),
    call("source-given-but-missing", 4, "build recipe.yaml --source b=no-such.safetensors"),
    call("source-given-empty", 2, "build recipe.yaml --source b="),
    Case("source-given-of-another-architecture", 2, HEAD + "outputs: { mix.safetensors: a + (b - c) }\n",
         command="build recipe.yaml --source b=flux.safetensors", files={"a.safetensors": sd1(1), "b.safetensors": sd1(2), "c.safetensors": sd1(3), "flux.safetensors": flux(1)}),
    call("source-given-is-the-output", 2, "build recipe.yaml --source b=mix.safetensors", files={"mix.safetensors": small(5)}),
]  # fmt: skip

OPTIONS = [
    call("output-unknown", 2, "build recipe.yaml mixx.safetensors"),
    call("command-unknown", 2, "biuld recipe.yaml"),
    call("command-forgotten", 2, "recipe.yaml"),
    call("option-unknown", 2, "build recipe.yaml --fource"),
    call("jobs-zero", 2, "build recipe.yaml -j 0"),
    call("jobs-not-a-number", 2, "build recipe.yaml -j many"),
    call("memory-not-an-amount", 2, "build recipe.yaml --memory lots"),
    call("memory-zero", 2, "build recipe.yaml --memory 0"),
    call("memory-percent", 2, "build recipe.yaml --memory 50%"),
    call("memory-of-many-digits", 2, "build recipe.yaml --memory " + "9" * 400),
    call("memory-too-small", 7, "build recipe.yaml --memory 50MB"),
    call("device-unknown", 2, "build recipe.yaml --device tpu"),
    call("output-root-missing-argument", 2, "build recipe.yaml --output-root"),
    call("json-error", 2, "build recipe.yaml --set mm=0.4 --json"),
]

LOCK = "lock: 1\nnumerics: 1\nsources:\n  a: { digest: 'b3:00', sha256: '00', size: 1, tensors: 1 }\n"
LOCKS = [
    call("lock-missing", 4, "build recipe.yaml --locked"),
    call("lock-garbage", 5, "build recipe.yaml --locked", files={"recipe.lock": b"\xff\xfe\0garbage"}),
    call("lock-not-yaml", 5, "build recipe.yaml --locked", files={"recipe.lock": "a: [b\nc: d\n"}),
    call("lock-empty", 5, "build recipe.yaml --locked", files={"recipe.lock": ""}),
    call("lock-a-list", 5, "build recipe.yaml --locked", files={"recipe.lock": "- a\n- b\n"}),
    call("lock-with-unknown-key", 5, "build recipe.yaml --locked", files={"recipe.lock": "lock: 1\nsuorces: {}\n"}),
    call("lock-of-a-later-version", 5, "build recipe.yaml --locked", files={"recipe.lock": "lock: 2\n"}),
    call("lock-bomb", 5, "build recipe.yaml --locked", files={
        "recipe.lock": "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"b{i}: &{'abcdefghij'[i]} [{','.join(['*' + 'abcdefghij'[i - 1]] * 10)}]\n" for i in range(1, 10))}),
    call("lock-does-not-hold", 6, "build recipe.yaml --locked", files={"recipe.lock": LOCK}),
    call("lock-is-a-folder", 5, "build recipe.yaml --locked", change=lambda f: (f / "recipe.lock").mkdir()),
]  # fmt: skip


def merge(name: str, code: int, rest: str, **more: object) -> Case:
    return Case(f"merge-{name}", code, command=f"merge {rest}", **more)  # type: ignore[arg-type]


MERGES = [
    merge("lacks-a-name", 2, "'a + (b - c)*m' a=a.safetensors b=b.safetensors -o x.safetensors"),
    merge("name-misspelt", 2, "'a + (b - cc)' a=a.safetensors b=b.safetensors c=c.safetensors -o x.safetensors"),
    merge("name-twice", 2, "'a*0.5 + b*0.5' a=a.safetensors a=b.safetensors b=b.safetensors -o x.safetensors"),
    merge("name-without-value", 2, "'a*0.5 + b*0.5' a b=b.safetensors -o x.safetensors"),
    merge("without-output", 2, "'a*0.5 + b*0.5' a=a.safetensors b=b.safetensors"),
    merge("output-not-a-model", 2, "a a=a.safetensors -o x.gguf"),
    merge("output-is-an-input", 2, "'a*0.5 + b*0.5' a=a.safetensors b=b.safetensors -o a.safetensors"),
    merge("output-not-ours", 2, "'a*0.5 + b*0.5' a=a.safetensors b=b.safetensors -o c.safetensors"),
    merge("source-missing", 4, "'a*0.5 + b*0.5' a=a.safetensors b=no-such.safetensors -o x.safetensors"),
    merge("source-no-model", 5, "'a*0.5 + b*0.5' a=a.safetensors b=b.ckpt -o x.safetensors", files={"b.ckpt": "hello"}),
    merge("file-in-the-expression", 2, "'a.safetensors*0.5 + b.safetensors*0.5' -o x.safetensors"),
    merge("output-behind-a-link", 2, "'a*0.5 + b*0.5' a=a.safetensors b=b.safetensors -o out/x.safetensors",
          change=lambda f: (f / "out").symlink_to("..", target_is_directory=True)),
    merge("source-unused-and-missing", 4, "'a*0.5 + b*0.5' a=a.safetensors b=no-such.safetensors c=nothing -o x.safetensors"),
    merge("number-percent", 2, "'a + (b - c)*m' a=a.safetensors b=b.safetensors c=c.safetensors m=30% -o x.safetensors"),
    merge("number-comma", 2, "'a + (b - c)*m' a=a.safetensors b=b.safetensors c=c.safetensors m=0,3 -o x.safetensors"),
    merge("range", 2, "'a + (b - c)*m' a=a.safetensors b=b.safetensors c=c.safetensors m=0:1:0.5 -o x.safetensors"),
    merge("expression-broken", 2, "'a + (b - c' a=a.safetensors b=b.safetensors c=c.safetensors -o x.safetensors"),
    merge("degree", 2, "'a + b' a=a.safetensors b=b.safetensors -o x.safetensors"),
    merge("dtype-unknown", 2, "a a=a.safetensors -o x.safetensors --dtype flaot16"),
    merge("recipe-there", 2, "a a=a.safetensors -o x.safetensors --save-recipe r.yaml", files={"r.yaml": "mine"}),
]  # fmt: skip

CASES = [*SET, *OPTIONS, *LOCKS, *MERGES]
