"""What a recipe is once read: frozen values, checked, with the place of everything a later error could be about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, field_validator, model_validator

from mergeflow.errors import Place
from mergeflow.recipe.expression import Comparison, Expression
from mergeflow.recipe.template import Template
from mergeflow.tensors import DType

Kind = Literal["model", "delta", "vae"]
Embed = Literal["sidecar", "recipe", "none"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Source(_Value):
    """A named input: one file, one step of another recipe, or (`many`) a list of those."""

    path: str | None = Field(default=None, description="The model file, relative to the folder of the recipe.")
    url: str | None = Field(
        default=None,
        description="Where the file can be fetched: https://…, s3://…, hf:owner/repo/file, civitai:NUMBER.",
    )
    sha256: str | None = Field(default=None, description="The sha256 the file must have: 64 hexadecimal digits.")
    hash: str | None = Field(
        default=None,
        description="A hash of the file, 8, 10, 12 or 64 hexadecimal digits, or the digest of its model, b3: and 64.",
    )
    size: int | None = Field(default=None, description="The size the file must have, in bytes.")
    kind: Kind | None = Field(
        default=None,
        description="What the file holds: a whole model, a difference of models, or a VAE (of a whole model, its VAE).",
    )
    ema: Literal["keep", "drop", "use"] | None = Field(
        default=None, description="What to do with running averages: keep them apart, drop them, use them."
    )
    arch: str | None = Field(
        default=None, description="The architecture, where it is not to be recognised from tensor names."
    )
    recipe: str | None = Field(default=None, description="Another recipe, relative to this one's folder.")
    step: str | None = Field(default=None, description="The step of that recipe to use.")
    set: dict[str, str] = Field(default={}, description="Params of that recipe to set.")
    note: str | None = Field(default=None, description="Anything worth remembering.")
    license: str | None = Field(default=None, description="The licence of the file.")
    many: tuple[Source, ...] = ()
    folder: Path = Path()
    place: InstanceOf[Place] = Place()
    given: bool = False  # by --source, in the place of what the recipe says

    @property
    def called(self) -> str:
        """The path; of a source without one, its address or hash, which no file is called by."""
        return self.path or self.url or (f"sha256:{self.sha256}" if self.sha256 else f"hash:{self.hash}")

    @field_validator("sha256")
    @classmethod
    def _sha256(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            short = "; a shorter one is given as hash:" if len(value) in (8, 10, 12) else ""
            raise ValueError(f"a sha256 is 64 hexadecimal digits, this has {len(value)} characters{short}")
        return value.lower() if value is not None else None

    @field_validator("hash")
    @classmethod
    def _hash(cls, value: str | None) -> str | None:
        if value is not None and value.lower().startswith("b3:"):
            if not re.fullmatch(r"[0-9a-f]{64}", value.lower().removeprefix("b3:")):
                raise ValueError(
                    "the digest of a model is b3: and 64 hexadecimal digits, as `mergeflow hash` prints it"
                )
            return value.lower()
        if value is not None and not re.fullmatch(
            r"(?:[0-9a-fA-F]{8}|[0-9a-fA-F]{10}|[0-9a-fA-F]{12}|[0-9a-fA-F]{64})", value
        ):
            raise ValueError(f"a hash is 8, 10, 12 or 64 hexadecimal digits, this has {len(value)} characters")
        return value

    @field_validator("size", mode="before")
    @classmethod
    def _size(cls, value: str | int | None) -> int | None:
        if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,18}", value):
            raise ValueError("a size is a whole number of bytes")
        return int(value) if value is not None else None


class ProfileEntry(_Value):
    """One line of a profile: what it selects, and the number there; several are a gradient over its blocks."""

    selector: str
    numbers: tuple[InstanceOf[Expression], ...]
    place: InstanceOf[Place]


class BlockList(_Value):
    """The numbers by block that lie beneath a profile's selectors: those of a preset, or a list as it was pasted."""

    preset: str | None = Field(default=None, description="A preset of block weights: GRAD_V, TRUE_CUBIC_HERMITE, …")
    mbw: str | None = Field(default=None, description="A list of block weights as pasted from a card.")
    blocks: str | None = Field(
        default=None, description="The architecture that the preset or list is written for; blocks are taken by name."
    )
    place: InstanceOf[Place] = Place()

    @model_validator(mode="after")
    def _one_of_two(self) -> BlockList:
        if self.preset is not None and self.mbw is not None:
            raise ValueError("a param has either preset: or mbw:, not both")
        if self.preset is None and self.mbw is None:
            raise ValueError("blocks: says what a preset: or an mbw: list is written for, and there is neither")
        return self


class Param(_Value):
    """A named number (`value`), a profile (numbers for parts of a model), or a `sweep` over values, each a param in
    itself with the `label` that it was given. A profile has, from wide to narrow, a `default`, a preset or a list by
    blocks (`listed`), and lines with selectors (`profile`). A value of a sweep may name a model."""

    value: InstanceOf[Expression] | None = None
    profile: tuple[ProfileEntry, ...] = ()
    default: InstanceOf[Expression] | None = None
    listed: BlockList | None = None
    sweep: tuple[Param, ...] = ()
    label: str | None = None
    place: InstanceOf[Place] = Place()

    @property
    def is_profile(self) -> bool:
        return self.value is None and not self.sweep

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """All that it is computed from."""
        alone = (e for e in (self.value, self.default) if e is not None)
        swept = (e for value in self.sweep for e in value.expressions)
        return (*alone, *(number for entry in self.profile for number in entry.numbers), *swept)


class Step(_Value):
    """A named expression (`expr`) or a call in its long form (`method` and `arguments`)."""

    expr: InstanceOf[Expression] | None = Field(default=None, description="The expression of this step.")
    method: str | None = Field(default=None, description="The method to call; the other keys are its arguments.")
    arguments: dict[str, InstanceOf[Expression]] = {}
    round: DType | None = Field(default=None, description="Round the result to this dtype here.")
    keep: bool = Field(default=False, description="Keep the result in the store, for the builds to come.")
    like: str | None = Field(
        default=None, description="The model whose tensor names, integers and dtypes the result takes."
    )
    replace: dict[str, InstanceOf[Expression]] = Field(
        default={}, description="Components to take from another model instead."
    )
    note: str | None = Field(default=None, description="Anything worth remembering.")
    place: InstanceOf[Place] = Place()


class Output(_Value):
    """A file that the recipe makes. The options under defaults: are already in it."""

    expr: InstanceOf[Expression] = Field(description="The expression whose result is written.")
    template: InstanceOf[Template] = Template("", ())
    dtype: DType | None = Field(default=None, description="The dtype of the file's floating point tensors.")
    dtypes: dict[str, DType] = Field(default={}, description="Other dtypes, by component, block or name.")
    only: tuple[str, ...] = Field(default=(), description="Selectors of the tensors to keep; all when none is given.")
    drop: tuple[str, ...] = Field(default=(), description="Selectors of tensors to leave out.")
    fix: tuple[str, ...] = Field(default=(), description="Known faults to repair: clip_position_ids.")
    mark: tuple[str, ...] = Field(default=(), description="Empty tensors that loaders look for: v_pred, ztsnr.")
    metadata: dict[str, str] = Field(default={}, description="Entries for the file's own metadata.")
    like: str | None = Field(
        default=None, description="The model whose tensor names, integers and dtypes the result takes."
    )
    replace: dict[str, InstanceOf[Expression]] = Field(
        default={}, description="Components to take from another model instead."
    )
    embed: Embed = Field(
        default="sidecar", description="Where the recipe's text goes: beside the file, inside it, nowhere."
    )
    shard_size: int | None = Field(
        default=None, description="The most tensor bytes in a file, as 5GB: the model becomes shards with an index."
    )
    metadata_for: tuple[str, ...] = Field(
        default=(), description="Other tools that the file tells of its making: a1111, modelspec."
    )
    sidecars: tuple[str, ...] = Field(
        default=(),
        description="Files beside it: config (the first model's .yaml), sha256 (for sha256sum -c), provenance (an "
        "in-toto statement), card (a model card for Hugging Face).",
    )
    note: str | None = Field(default=None, description="Anything worth remembering.")
    place: InstanceOf[Place] = Place()


class Options(_Value):
    """What applies to the whole recipe and can change bytes or refuse them."""

    compute: Literal["auto"] | DType = Field(default="auto", description="The dtype sums are taken in.")
    missing: Literal["keep", "error"] = Field(default="keep", description="What to do when a model lacks a tensor.")
    nonfinite: Literal["warn", "error", "allow"] = Field(
        default="warn", description="What to do about infinities and NaNs."
    )
    policy: Literal["exact", "a1111"] = Field(
        default="exact", description="Whose arithmetic and rules: mergeflow's own, or those of A1111's merger."
    )
    seed: int = Field(default=0, description="What methods that draw random numbers begin from.")

    @field_validator("seed", mode="before")
    @classmethod
    def _seed(cls, value: str | int) -> int:
        if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,18}", value):
            raise ValueError("a seed is a whole number of at most 18 digits")
        return int(value)

    @field_validator("compute")
    @classmethod
    def _compute(cls, value: Literal["auto"] | DType) -> Literal["auto"] | DType:
        if value not in ("auto", DType.F32, DType.F64):
            raise ValueError("compute is auto, float32 or float64")
        return value


class Recipe(_Value):
    """A recipe file, with what it includes and what the command line overrode."""

    mergeflow: Literal[1] = Field(default=1, description="The version of the recipe language.")
    name: str | None = Field(default=None, description="A name for the recipe.")
    description: str | None = Field(default=None, description="What it makes.")
    license: str | None = Field(default=None, description="The licence of the result.")
    note: str | None = Field(default=None, description="Anything worth remembering.")
    arch: str | None = Field(default=None, description="The architecture of all sources.")
    include: tuple[str, ...] = Field(default=(), description="Recipes whose sources and params are used here too.")
    sources: dict[str, Source] = Field(default={}, description="The named inputs.")
    params: dict[str, Param] = Field(default={}, description="The named numbers.")
    steps: dict[str, Step] = Field(default={}, description="The named expressions and method calls.")
    asserts: tuple[InstanceOf[Comparison], ...] = Field(default=(), description="What must hold when planning.")
    outputs: dict[str, Output] = Field(default={}, description="The files to make, by path; {s} is a sweep's value.")
    options: Options = Field(default_factory=Options, description="What applies to the whole recipe.")
    extras: Mapping[str, Any] = {}
    path: Path | None = None
    text: str = ""
    files: tuple[Path, ...] = ()  # this file and those it includes
    overrides: tuple[str, ...] = ()
    replaced: tuple[Source, ...] = ()  # as the text has what --source put others in the place of
