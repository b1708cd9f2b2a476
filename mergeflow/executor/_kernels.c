/* Programs with kernels for the CPU: what stages.py does with torch calls, without importing torch. The same bytes,
   which tests/executor/test_compiled.py holds both to. Values, sums and how a program is packed: _values.h.

   run(program, inputs, outs, elements) evaluates a program a block at a time, without the interpreter's lock. Its
   operations are sums, kernels, and what is to be found of a whole tensor, which adds to what is in `outs` already:

       SUM      to `outs[out]`, or kept for later operations where out is -1; so with all kernels. A sum alone may have
                a mask: what it drops is 0
       ZERO     no operands
       TRIM     x where its magnitude is above `divisor`, else 0
       ELECT    sum_sign; flags BY_COUNT, MEAN
       LOST     a sum, of which only is counted what is not finite: run returns how many
       COUNT    two int64: how many magnitudes are above `high`, how many from `low` to `high`; then those
       TALLY    int64: how many are in each range of 2**flags from `low` to `high`
       DOTS     GRID float64, or as many as the tensor has elements where these are fewer, for each pair from `low` up
                to `high`: running sums of the operands' products; with the flag FROM_FIRST of their differences to
                the first operand. Pair i(i+1)/2 + j is of i and j.
       LENGTH   as many float64: running sums of magnitudes

   Running sums are as mergeflow/methods/sums.py has them: element i is added onto sum i mod GRID, in order. A call
   begins at an element whose number is a multiple of GRID where there are such. */

#include "_calls.h"
#include "_masks.h"

#define GRID (1 << 16)

#if defined(_MSC_VER)
#define RESTRICT __restrict
#else
#define RESTRICT restrict
#endif

enum kind { SUM, ZERO, TRIM, ELECT, LOST, COUNT, TALLY, DOTS, LENGTH, KINDS };
enum flag { BY_COUNT = 1, MEAN = 2, FROM_FIRST = 1 };

INLINE float float_magnitude(float x) { return fabsf(x); }
INLINE double double_magnitude(double x) { return fabs(x); }
INLINE uint32_t float_bits(float x) { return to_bits(x); }
INLINE float float_real(uint32_t bits) { return from_bits(bits); }
INLINE uint64_t double_bits(double x) { uint64_t bits; memcpy(&bits, &x, 8); return bits; }
INLINE double double_real(uint64_t bits) { double x; memcpy(&x, &bits, 8); return x; }
static const uint32_t float_NOT_A_NUMBER = 0x7f800001u;
static const uint64_t double_NOT_A_NUMBER = 0x7ff0000000000001u;

#define REAL float
#define BITS uint32_t
#define NAME(x) float_##x
#include "_kernel_blocks.h"

#define REAL double
#define BITS uint64_t
#define NAME(x) double_##x
#include "_kernel_blocks.h"

/* ---- programs ---------------------------------------------------------------------------------------------------- */

/* `at` has room for a pointer to each operand, `results` for a block of each operation, `wide` for a block of each
   operand of one. */
typedef struct {
    const op_t *first;
    int32_t ops, inputs, outs, most;
    const int32_t *width;
    const Py_buffer *in, *out;
    const uint8_t **at;
    uint8_t *results, *wide;
    const void **operands;
    room_t *room;
    Py_ssize_t block, stride;
} call_t;

/* The operand as float32 or float64, in `to` where it is not already. */
INLINE const void *as_compute(void *to, const uint8_t *x, int dtype, int compute, room_t *room, const halves_t *halves,
                              Py_ssize_t n)
{
    if (compute == F32) return as_floats(to, x, dtype, halves, n);
    if (dtype == F64) return x;
    if (dtype == F16) {
        halves->widen_twice(to, (const uint16_t *)x, n);
        return to;
    }
    const float *values = as_floats(room->operand, x, dtype, halves, n);
    for (Py_ssize_t i = 0; i < n; i++) ((double *)to)[i] = values[i];
    return to;
}

/* The products of two operands and themselves: three sums, as `dots` takes them. */
INLINE void dots_of_two(double *totals, Py_ssize_t row, const double *a, const double *b, Py_ssize_t n)
{
    double *RESTRICT own = totals, *RESTRICT both = totals + row, *RESTRICT other = totals + 2 * row;
    for (Py_ssize_t i = 0; i < n; i++) {
        own[i] += a[i] * a[i];
        both[i] += b[i] * a[i];
        other[i] += b[i] * b[i];
    }
}

/* Products of pairs of operands, added onto running sums from `totals` on, `row` for each pair. */
INLINE void dots(const op_t *op, double *totals, Py_ssize_t row, const double *const *x, double *wide, Py_ssize_t n)
{
    const int32_t first = op->flags & FROM_FIRST ? 1 : 0;
    if (!first && op->terms == 2 && op->low == 0 && op->high == 3) {
        dots_of_two(totals, row, x[0], x[1], n);
        return;
    }
    if (first)
        for (int32_t k = 1; k < op->terms; k++) {
            double *to = wide + (size_t)k * BLOCK;
            for (Py_ssize_t i = 0; i < n; i++) to[i] = x[k][i] - x[0][i];
        }
    int64_t pair = 0;
    for (int32_t k = first; k < op->terms; k++)
        for (int32_t l = first; l <= k; l++, pair++) {
            if (pair < op->low || pair >= op->high) continue;
            double *total = totals + (pair - op->low) * row;
            const double *a = first ? wide + (size_t)k * BLOCK : x[k], *b = first ? wide + (size_t)l * BLOCK : x[l];
            for (Py_ssize_t i = 0; i < n; i++) total[i] += a[i] * b[i];
        }
}

INLINE void kernel(const op_t *op, uint8_t *to, const void *const *x, const call_t *c, Py_ssize_t begin, Py_ssize_t n)
{
    const int real = op->compute == F32;
    switch (op->kind) {
    case ZERO: memset(to, 0, (size_t)(n * WIDTH[op->to])); break;
    case TRIM:
        if (real)
            float_trim((float *)to, x[0], (float)op->divisor, n);
        else
            double_trim((double *)to, x[0], op->divisor, n);
        break;
    case ELECT:
        if (real)
            float_elect(op, (float *)to, (const float *const *)x, n);
        else
            double_elect(op, (double *)to, (const double *const *)x, n);
        break;
    case COUNT: {
        const Py_ssize_t room = (c->out[op->out].len - 16) / WIDTH[op->compute];
        if (real)
            float_count(op, (int64_t *)to, room, x[0], (uint32_t *)c->room->total, n);
        else
            double_count(op, (int64_t *)to, room, x[0], (uint64_t *)c->room->total, n);
        break;
    }
    case TALLY:
        if (real)
            float_tally(op, (int64_t *)to, x[0], n);
        else
            double_tally(op, (int64_t *)to, x[0], n);
        break;
    case DOTS: {
        const Py_ssize_t row = op->high > op->low ? c->out[op->out].len / 8 / (op->high - op->low) : 0;
        dots(op, (double *)to + begin % GRID, row, (const double *const *)x, (double *)c->wide, n);
        break;
    }
    default: {
        const double *values = x[0];
        double *total = (double *)to + begin % GRID;
        for (Py_ssize_t i = 0; i < n; i++) total[i] += fabs(values[i]);
    }
    }
}

INLINE Py_ssize_t run_block(const call_t *c, const halves_t *halves, Py_ssize_t begin, Py_ssize_t n)
{
    const op_t *op = c->first;
    for (int32_t i = 0; i < c->inputs; i++) c->at[i] = (const uint8_t *)c->in[i].buf + begin * c->width[i];
    for (int32_t k = 0; k < c->ops; k++, op = after(op)) {
        const uint8_t *dropped = op->mask < 0 ? NULL : c->at[op->mask];
        if (op->kind == LOST) {
            if (op->compute == F32)
                sum_in_float(op, c->at, dropped, c->room, halves, n);
            else
                sum_in_double(op, c->at, dropped, c->room, halves, n);
            return not_finite(c->room, op->compute, n);
        }
        uint8_t *to = c->results + (size_t)(k * c->block) * 8;
        if (op->out >= 0) to = (uint8_t *)c->out[op->out].buf + (op->kind < LOST ? begin * WIDTH[op->to] : 0);
        c->at[c->inputs + k] = to;
        if (op->kind == SUM) {
            sum_block(op, c->at, dropped, to, c->room, halves, n);
            continue;
        }
        for (int32_t t = 0; t < op->terms; t++) {
            const term_t *term = terms_of(op) + t;
            uint8_t *wide = c->wide + (size_t)t * BLOCK * 8;
            c->operands[t] = as_compute(wide, c->at[term->operand], term->dtype, op->compute, c->room, halves, n);
        }
        kernel(op, to, c->operands, c, begin, n);
    }
    return 0;
}

/* In strides, so that running sums stay in the cache while all that is added onto them comes by. */
INLINE Py_ssize_t run_blocks(const call_t *c, const halves_t *halves, Py_ssize_t elements)
{
    Py_ssize_t lost = 0;
    for (Py_ssize_t first = 0; first < c->stride && first < elements; first += c->block)
        for (Py_ssize_t begin = first; begin < elements; begin += c->stride)
            lost += run_block(c, halves, begin, elements - begin < c->block ? elements - begin : c->block);
    return lost;
}

static Py_ssize_t run_plain(const call_t *c, Py_ssize_t elements) { return run_blocks(c, &PLAIN, elements); }

#if WITH_F16C
FAST static Py_ssize_t run_fast(const call_t *c, Py_ssize_t elements)
{
    return run_blocks(c, &WITH_INSTRUCTIONS, elements);
}
#endif

static Py_ssize_t (*run_program)(const call_t *, Py_ssize_t) = run_plain;

/* Bytes that an operation needs of its `out`, -1 where what it says makes no sense. */
static Py_ssize_t needed(const op_t *op, Py_ssize_t elements)
{
    const int64_t pairs = op->high - op->low;
    const Py_ssize_t row = (elements < GRID ? elements : GRID) * 8;
    const int32_t k = op->terms - (op->flags & FROM_FIRST ? 1 : 0);
    switch (op->kind) {
    case SUM: return op->terms > 0 ? elements * WIDTH[op->to] : -1;
    case LOST: return op->terms > 0 ? 0 : -1;
    case ZERO: return op->terms == 0 ? elements * WIDTH[op->to] : -1;
    case ELECT: return op->terms > 0 && op->to == op->compute ? elements * WIDTH[op->to] : -1;
    case TRIM: return op->terms == 1 && op->to == op->compute ? elements * WIDTH[op->to] : -1;
    case COUNT: return op->terms == 1 && op->low >= 0 && pairs >= 0 ? 16 : -1;
    case TALLY:
        if (op->terms != 1 || op->low < 0 || pairs < 0 || op->flags < 0 || op->flags > 62) return -1;
        return (pairs >> op->flags) < 1 << 24 ? ((Py_ssize_t)(pairs >> op->flags) + 1) * 8 : -1;
    case DOTS:
        if (k < 1 || k > 4096 || op->low < 0 || pairs < 0 || op->high > (int64_t)k * (k + 1) / 2) return -1;
        return op->compute == F64 ? (Py_ssize_t)pairs * row : -1;
    case LENGTH: return op->terms == 1 && op->compute == F64 ? row : -1;
    default: return -1;
    }
}

/* Checks a packed program against the buffers it is to run over and fills in what it says: 0 with an exception set. */
static int checked(call_t *c, int32_t *width, const Py_buffer *code, Py_ssize_t elements)
{
    memset(width, 0, (size_t)c->inputs * sizeof *width);
    c->ops = operations(code, &c->first);
    c->stride = elements + BLOCK;
    int good = c->ops > 0 && elements >= 0 && elements < PY_SSIZE_T_MAX / 64;
    const op_t *op = c->first;
    for (int32_t k = 0; good && k < c->ops; k++, op = after(op)) {
        good = sound(op, code, c->inputs + k) && op->out >= -1 && op->out < c->outs && op->mask >= -1 &&
               op->mask < c->inputs && (op->mask < 0 || op->kind == SUM || op->kind == LOST);
        if (!good) break;
        const Py_ssize_t room = needed(op, elements);
        good = room >= 0 && (op->out >= 0 ? c->out[op->out].len >= room : op->kind <= LOST) &&
               (op->kind != LOST || k == c->ops - 1);
        if (op->kind >= DOTS) c->stride = GRID;
        if (op->terms > c->most) c->most = op->terms;
        if (op->mask >= 0) note_width(width, c->inputs, op->mask, 1);
        for (int32_t t = 0; t < op->terms; t++)
            note_width(width, c->inputs, terms_of(op)[t].operand, WIDTH[terms_of(op)[t].dtype]);
    }
    return (good && long_enough(c->in, width, c->inputs, elements)) || does_not_fit("a program");
}

static PyObject *run(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer code = {0}, *in = NULL, *out = NULL;
    PyObject *inputs, *outs, *result = NULL;
    Py_ssize_t elements, lost;
    int32_t *width = NULL;
    if (!PyArg_ParseTuple(args, "y*O!O!n", &code, &PyTuple_Type, &inputs, &PyTuple_Type, &outs, &elements)) return NULL;
    call_t c = {0};
    c.inputs = opened(inputs, &in, PyBUF_SIMPLE);
    if (c.inputs < 0) goto done;
    c.outs = opened(outs, &out, PyBUF_WRITABLE);
    if (c.outs < 0) goto done;
    c.in = in;
    c.out = out;
    if (!(width = room_for((size_t)c.inputs, sizeof *width)) || !checked(&c, width, &code, elements)) goto done;
    c.width = width;
    c.block = c.ops <= 32 ? 1024 : 64;
    if (!(c.room = room_for(1, sizeof *c.room)) || !(c.at = room_for((size_t)(c.inputs + c.ops), sizeof *c.at)) ||
        !(c.results = room_for((size_t)(c.ops * c.block), 8)) || !(c.wide = room_for((size_t)c.most * BLOCK, 8)) ||
        !(c.operands = room_for((size_t)c.most, sizeof *c.operands)))
        goto done;
    Py_BEGIN_ALLOW_THREADS
    lost = run_program(&c, elements);
    Py_END_ALLOW_THREADS
    result = PyLong_FromSsize_t(lost);
done:
    closed(in);
    closed(out);
    free(width);
    free(c.room);
    free(c.at);
    free(c.results);
    free(c.wide);
    free(c.operands);
    PyBuffer_Release(&code);
    return result;
}

/* ---- the module -------------------------------------------------------------------------------------------------- */

static PyObject *plain(PyObject *self, PyObject *flag)
{
    (void)self;
    const int chosen = PyObject_IsTrue(flag);
    if (chosen < 0) return NULL;
    run_program = run_plain;
    draw_mask = mask_plain;
#if WITH_F16C
    if (!chosen && has_instructions()) {
        run_program = run_fast;
        draw_mask = mask_fast;
    }
#endif
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"run", run, METH_VARARGS, "run(program, inputs, outs, elements): compute a program."},
    {"mask", mask, METH_VARARGS, "mask(key, whole, rest, begin, out): random bytes, 1 where an element is kept."},
    {"plain", plain, METH_O, "plain(flag): whether to do without the processor's half precision instructions."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_kernels", "Kernels of tensors, compiled.", -1, METHODS,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return module_of(&MODULE, plain); }
