"""Units of work: over any layout they make each byte of the output once, from the right bytes of the sources."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from mergeflow.digest import CHUNK
from mergeflow.formats.blocks import blocks
from mergeflow.formats.layout import lay_out
from mergeflow.plan.program import COPY, ZERO, Op, Program, TensorWork, Wide
from mergeflow.plan.units import LONGEST, cut, largest_part, slot_sizes
from mergeflow.tensors import DType, TensorSpec

FLOATS = [d for d in DType if d.is_float]


@st.composite
def programs(draw: st.DrawFn) -> list[Program]:
    result = []
    for _ in range(draw(st.integers(1, 4))):
        inputs = tuple(draw(st.lists(st.sampled_from(FLOATS), min_size=1, max_size=4)))
        out = draw(st.sampled_from(FLOATS))
        op = Op(tuple((Fraction(2), i) for i in range(len(inputs))), 3, out.compute, out)
        result.append(Program(inputs, (op,)))
    return result


SIZES = st.one_of(
    st.integers(0, 5),
    st.integers(0, 3000),
    st.sampled_from([CHUNK // 2, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, 3 * CHUNK - 1, 5 * CHUNK, 70_001]),
)


@st.composite
def outputs(draw: st.DrawFn) -> tuple[list[TensorWork], tuple[TensorSpec, ...], list[Program], dict[tuple, int]]:
    """Works in the order of their layout, and where each source really has each tensor."""
    made = draw(programs())
    sources = [0] * 4
    works: dict[str, TensorWork] = {}
    for i in range(draw(st.integers(0, 12))):
        name, n = f"t{draw(st.integers(0, 99))}.{i}", draw(SIZES)
        number = draw(st.integers(-2, len(made) - 1))
        if number >= 0:
            dtype, widths = made[number].out, [d.size for d in made[number].inputs]
        else:
            dtype = draw(st.sampled_from(list(DType)))
            widths = [dtype.size] if number == COPY else []
        reads = []
        for slot, width in enumerate(widths):
            source = draw(st.sampled_from([slot, draw(st.integers(0, 3))]))
            sources[source] += draw(st.sampled_from([0, 0, 0, 8]))  # neighbours here are neighbours there, or not
            reads.append((source, sources[source]))
            sources[source] += n * width
        works[name] = TensorWork(name, dtype, (n,), "key", number, tuple(reads))
    layout = lay_out(((w.name, w.dtype, w.shape) for w in works.values()), {})
    return [works[s.name] for s in layout.tensors], layout.tensors, made, {}


@settings(max_examples=200)
@given(outputs(), st.sampled_from([CHUNK, 2 * CHUNK, 3 * CHUNK]))
def test_units_cover_the_output_exactly_once(
    output: tuple[list[TensorWork], tuple[TensorSpec, ...], list[Program], dict], unit_bytes: int
) -> None:
    works, specs, made, _ = output
    units = list(cut([(works, specs)], made, unit_bytes))
    at = specs[0].start if specs else 0
    for unit in units:
        (part,) = unit.parts
        assert part.block.offset == at  # in file order, without holes, without overlaps
        assert 0 < part.block.nbytes <= unit_bytes
        assert unit.elements * part.block.dtype.size == part.block.nbytes
        assert len(part.block.bounds) <= LONGEST + 4
        at += part.block.nbytes
    assert at == (specs[-1].start + specs[-1].nbytes if specs else 0)
    for unit in units:
        check_reads(unit, unit.parts[0], works, specs, made)


def check_reads(unit, part, works, specs, made) -> None:  # type: ignore[no-untyped-def]
    """Input by input, the pieces of the tensors that lie in this part, put where their elements are."""
    wanted: dict[int, list[tuple[int, int, int, int]]] = {}
    begin, end = part.block.offset, part.block.offset + part.block.nbytes
    for work, spec in zip(works, specs, strict=True):
        low, high = max(begin, spec.start), min(end, spec.start + spec.nbytes)
        if low >= high:
            continue
        assert work.program == part.program
        assert spec.dtype is part.block.dtype
        widths = [d.size for d in made[work.program].inputs] if work.program >= 0 else [spec.dtype.size]
        for slot, (source, offset), width in zip(part.slots, work.reads, widths, strict=False):
            first, count = (low - spec.start) // spec.dtype.size, (high - low) // spec.dtype.size
            at = (low - begin) // spec.dtype.size * width
            wanted.setdefault(slot, []).append((source, offset + first * width, count * width, at))
    found: dict[int, list[tuple[int, int, int, int]]] = {}
    for r in unit.reads:
        found.setdefault(r.slot, []).append((r.source, r.offset, r.nbytes, r.at))
    assert set(part.slots) == (wanted.keys() if part.program != ZERO else set())
    for slot in part.slots:
        assert joined(sorted(found[slot], key=lambda p: p[3])) == joined(wanted[slot])


def joined(pieces: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    result: list[tuple[int, int, int, int]] = []
    for source, offset, nbytes, at in pieces:
        if result:
            s, o, n, a = result[-1]
            if (s, o + n, a + n) == (source, offset, at):
                result[-1] = (s, o, n + nbytes, a)
                continue
        result.append((source, offset, nbytes, at))
    return result


@settings(max_examples=100)
@given(outputs(), st.sampled_from([CHUNK, 2 * CHUNK]))
def test_units_are_hashed_along_the_chunks_of_the_digest(
    output: tuple[list[TensorWork], tuple[TensorSpec, ...], list[Program], dict], unit_bytes: int
) -> None:
    """Cut for reading or for making: the same chunks, under the same numbers."""
    works, specs, made, _ = output

    def chunks(found) -> dict[int, tuple[int, int]]:  # type: ignore[no-untyped-def]
        result = {}
        for b in found:
            for i, (low, high) in enumerate(zip(b.bounds, b.bounds[1:], strict=False)):
                assert b.first_chunk + i not in result
                result[b.first_chunk + i] = (b.offset + low, b.offset + high)
        return result

    made_along = chunks(u.parts[0].block for u in cut([(works, specs)], made, unit_bytes))
    assert made_along == chunks(blocks(specs))
    expected, number = {}, 0
    for s in specs:
        for low in range(0, s.nbytes, CHUNK):
            expected[number] = (s.start + low, s.start + min(low + CHUNK, s.nbytes))
            number += 1
    assert made_along == expected


def test_many_tiny_tensors_share_units() -> None:
    made = [Program((DType.F16, DType.F16), (Op(((Fraction(1), 0), (Fraction(2), 1)), 3, DType.F32, DType.F16),))]
    works = [TensorWork(f"t{i:05}", DType.F16, (4,), "", 0, ((0, 8 * i), (1, 8 * i))) for i in range(10_000)]
    layout = lay_out(((w.name, w.dtype, w.shape) for w in works), {})
    units = list(cut([(works, layout.tensors)], made, 2 * CHUNK))
    assert len(units) == 3
    assert [len(u.reads) for u in units] == [2, 2, 2]  # neighbours in the sources are read at once


def test_a_wide_tensor_is_one_unit_whatever_its_size() -> None:
    program = Program((DType.F16, DType.F16), (Op(((Fraction(1), 0), (Fraction(1), 1)), 1, DType.F32, DType.F16),))
    shape = (320, 9, 50, 50)
    work = TensorWork("w", DType.F16, shape, "", 0, ((0, 100), (1, 50), (0, 100)), Wide(320, 9, 4, 2500),
                      (True, False), DType.F16)  # fmt: skip
    layout = lay_out([("w", DType.F16, shape)], {})
    (unit,) = cut([([work], layout.tensors)], [program], CHUNK)
    assert unit.parts[0].block.nbytes == 320 * 9 * 2500 * 2
    assert [r.nbytes for r in unit.reads] == [320 * 9 * 5000, 320 * 4 * 5000]
    assert unit.parts[0].slots == (0, 1, 0)  # the primary is an input as well: it is read once


@st.composite
def passes(draw: st.DrawFn) -> tuple[list[tuple[list[TensorWork], tuple[TensorSpec, ...]]], list[Program]]:
    """Up to four outputs over the same three sources: tensors with programs, dtypes and neighbours of their own, some
    left out."""
    made = [
        Program(tuple(inputs), (Op(tuple((Fraction(n + 1), i) for i in range(len(inputs))), 3, out.compute, out),))
        for n, (inputs, out) in enumerate(
            draw(st.lists(st.tuples(st.lists(st.just(DType.F16), min_size=1, max_size=3), st.sampled_from(FLOATS)),
                          min_size=1, max_size=4))
        )
    ]  # fmt: skip
    sizes = draw(st.lists(SIZES, max_size=8))
    at = [draw(st.sampled_from([0, 8])) for _ in range(3)]
    places: list[list[int]] = []
    for n in sizes:
        places.append(list(at))
        at = [a + 2 * n + draw(st.sampled_from([0, 0, 8])) for a in at]
    outputs = []
    for _ in range(draw(st.integers(1, 4))):
        usual = draw(st.integers(-1, len(made) - 1))
        works = {}
        for i, n in enumerate(sizes):
            if draw(st.integers(0, 9)) == 0:
                continue
            number = usual if draw(st.integers(0, 4)) else draw(st.integers(-2, len(made) - 1))
            inputs = len(made[number].inputs) if number >= 0 else 1 if number == COPY else 0
            sources = draw(st.permutations(range(3)))[:inputs]
            dtype = made[number].out if number >= 0 else DType.F16
            reads = tuple((s, places[i][s]) for s in sources)
            works[f"t{i}"] = TensorWork(f"t{i}", dtype, (n,), "", number, reads)
        layout = lay_out(((w.name, w.dtype, w.shape) for w in works.values()), {})
        outputs.append(([works[s.name] for s in layout.tensors], layout.tensors))
    return outputs, made


@settings(max_examples=200)
@given(passes(), st.sampled_from([CHUNK, 2 * CHUNK]))
def test_outputs_of_one_pass_share_what_they_read(
    planned: tuple[list[tuple[list[TensorWork], tuple[TensorSpec, ...]]], list[Program]], unit_bytes: int
) -> None:
    """Every output is covered once, from the right bytes, along its own chunks; each byte of a source is read once."""
    outputs, made = planned
    units = list(cut(outputs, made, unit_bytes))
    for number, (works, specs) in enumerate(outputs):
        parts = [(u, p) for u in units for p in u.parts if p.output == number]
        chunks = {}
        for unit, part in parts:
            assert unit.elements * part.block.dtype.size == part.block.nbytes
            check_reads(unit, part, works, specs, made)
            for i, (low, high) in enumerate(zip(part.block.bounds, part.block.bounds[1:], strict=False)):
                assert part.block.first_chunk + i not in chunks
                chunks[part.block.first_chunk + i] = (part.block.offset + low, part.block.offset + high)
        expected = {}
        for s in specs:
            for low in range(0, s.nbytes, CHUNK):
                expected[len(expected)] = (s.start + low, s.start + min(low + CHUNK, s.nbytes))
        assert chunks == expected
    read = sorted((r.source, r.offset, r.offset + r.nbytes) for u in units for r in u.reads)
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(read))
    sizes = slot_sizes(units)
    assert all(r.at + r.nbytes <= sizes[r.slot] for u in units for r in u.reads)
    assert all(p.block.nbytes <= largest_part(units) for u in units for p in u.parts)
