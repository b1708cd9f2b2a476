"""The tensors of complete models, against the counts and sizes of the published files."""

from __future__ import annotations

import math

import pytest

from bench import sd15
from mergeflow.arch import detect
from mergeflow.arch.expected import expected, fits

PUBLISHED = {
    ("sd1", "model.diffusion_model."): (686, 859_520_964),
    ("sd1", "first_stage_model."): (248, 83_653_863),
    ("sd1", "cond_stage_model."): (197, 123_060_557),
    ("sd1", ""): (1131, 1_066_235_384),
    ("sd2", "model.diffusion_model."): (686, 865_910_724),
    ("sd2", "cond_stage_model."): (294, 354_032_641),
    ("sdxl", "model.diffusion_model."): (1680, 2_567_463_684),
    ("sdxl", "conditioner.embedders.1."): (390, 694_659_841),
    ("sdxl-refiner", "model.diffusion_model."): (1220, 2_259_526_660),
}


@pytest.mark.parametrize(("key", "numbers"), PUBLISHED.items())
def test_counts_and_parameters_are_the_published_ones(key: tuple[str, str], numbers: tuple[int, int]) -> None:
    architecture, prefix = key
    shapes = [shape for name, shape in expected(architecture).items() if name.startswith(prefix)]
    assert (len(shapes), sum(map(math.prod, shapes))) == numbers


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
def test_what_is_expected_is_recognised(architecture: str) -> None:
    assert detect(expected(architecture))[0].name == architecture


def test_of_others_nothing_is_expected() -> None:
    assert not expected("llama")
    assert expected("sd1") == dict(sd15.tensors())


def test_variants_take_more_channels() -> None:
    first = "model.diffusion_model.input_blocks.0.0.weight"
    wanted = expected("sd1")[first]
    assert all(fits(first, (320, channels, 3, 3), wanted) for channels in (4, 5, 8, 9))
    assert not fits(first, (320, 3, 3, 3), wanted)
    assert not fits(first, (128, 4, 3, 3), wanted)
