/* Programs with kernels for the CPU: what stages.py does with torch calls, without importing torch. The same bytes,
   which tests/executor/test_compiled.py holds both to. Values, sums and how a program is packed: _values.h.

   run(program, inputs, outs, elements) evaluates a program a block at a time, without the interpreter's lock. Its
   operations are sums, kernels, and what is to be found of a whole tensor, which adds to what is in `outs` already:

       SUM      to `outs[out]`, or kept for later operations where out is -1; so with all kernels
       ZERO     no operands
       TRIM     x where its magnitude is above `divisor`, else 0
       ELECT    sum_sign; flags BY_COUNT, MEAN
       DROP     x, mask: x where the mask (bytes) is 1, else 0
       LOST     a sum, of which only is counted what is not finite: run returns how many
       COUNT    two int64: how many magnitudes are above `high`, how many from `low` to `high`; then those
       TALLY    int64: how many are in each range of 2**flags from `low` to `high`
       DOTS     GRID float64 for each pair from `low` up to `high`: running sums of the operands' products; with the
                flag FROM_FIRST of their differences to the first operand. Pair i(i+1)/2 + j is of i and j.
       LENGTH   GRID float64: running sums of magnitudes

   Running sums are as mergeflow/methods/sums.py has them: element i is added onto sum i mod GRID, in order. A call
   begins at an element whose number is a multiple of GRID where there are such. */

#include "_values.h"

#define GRID (1 << 16)

enum kind { SUM, ZERO, TRIM, ELECT, DROP, LOST, COUNT, TALLY, DOTS, LENGTH, KINDS };
enum flag { BY_COUNT = 1, MEAN = 2, FROM_FIRST = 1 };
enum { MASK = DTYPES }; /* the dtype of a mask: bytes that are 0 or 1 */

INLINE int width_of(int dtype) { return dtype == MASK ? 1 : WIDTH[dtype]; }

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
    const float *values = as_floats(room->operand, x, dtype, halves, n);
    for (Py_ssize_t i = 0; i < n; i++) ((double *)to)[i] = values[i];
    return to;
}

/* Products of pairs of operands, added onto running sums from `where` on. */
INLINE void dots(const op_t *op, double *totals, Py_ssize_t where, const double *const *x, double *wide, Py_ssize_t n)
{
    const int32_t first = op->flags & FROM_FIRST ? 1 : 0;
    if (first)
        for (int32_t k = 1; k < op->terms; k++) {
            double *to = wide + (size_t)k * BLOCK;
            for (Py_ssize_t i = 0; i < n; i++) to[i] = x[k][i] - x[0][i];
        }
    int64_t pair = 0;
    for (int32_t k = first; k < op->terms; k++)
        for (int32_t l = first; l <= k; l++, pair++) {
            if (pair < op->low || pair >= op->high) continue;
            double *total = totals + (pair - op->low) * GRID + where;
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
    case DROP:
        if (real)
            float_drop((float *)to, x[0], x[1], n);
        else
            double_drop((double *)to, x[0], x[1], n);
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
    case DOTS: dots(op, (double *)to, begin % GRID, (const double *const *)x, (double *)c->wide, n); break;
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
        if (op->kind == LOST) {
            if (op->compute == F32)
                sum_in_float(op, c->at, c->room, halves, n);
            else
                sum_in_double(op, c->at, c->room, halves, n);
            return not_finite(c->room, op->compute, n);
        }
        uint8_t *to = c->results + (size_t)(k * c->block) * 8;
        if (op->out >= 0) to = (uint8_t *)c->out[op->out].buf + (op->kind < LOST ? begin * WIDTH[op->to] : 0);
        c->at[c->inputs + k] = to;
        if (op->kind == SUM) {
            sum_block(op, c->at, to, c->room, halves, n);
            continue;
        }
        for (int32_t t = 0; t < op->terms; t++) {
            const term_t *term = terms_of(op) + t;
            uint8_t *wide = c->wide + (size_t)t * BLOCK * 8;
            c->operands[t] = term->dtype == MASK ? c->at[term->operand]
                                                 : as_compute(wide, c->at[term->operand], term->dtype, op->compute,
                                                              c->room, halves, n);
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
    const int32_t k = op->terms - (op->flags & FROM_FIRST ? 1 : 0);
    switch (op->kind) {
    case SUM: return op->terms > 0 ? elements * WIDTH[op->to] : -1;
    case LOST: return op->terms > 0 ? 0 : -1;
    case ZERO: return op->terms == 0 ? elements * WIDTH[op->to] : -1;
    case ELECT: return op->terms > 0 && op->to == op->compute ? elements * WIDTH[op->to] : -1;
    case TRIM: return op->terms == 1 && op->to == op->compute ? elements * WIDTH[op->to] : -1;
    case DROP:
        return op->terms == 2 && op->to == op->compute && terms_of(op)[1].dtype == MASK ? elements * WIDTH[op->to] : -1;
    case COUNT: return op->terms == 1 && op->low >= 0 && pairs >= 0 ? 16 : -1;
    case TALLY:
        if (op->terms != 1 || op->low < 0 || pairs < 0 || op->flags < 0 || op->flags > 62) return -1;
        return (pairs >> op->flags) < 1 << 24 ? ((Py_ssize_t)(pairs >> op->flags) + 1) * 8 : -1;
    case DOTS:
        if (k < 1 || k > 4096 || op->low < 0 || pairs < 0 || op->high > (int64_t)k * (k + 1) / 2) return -1;
        return op->compute == F64 ? (Py_ssize_t)pairs * GRID * 8 : -1;
    case LENGTH: return op->terms == 1 && op->compute == F64 ? GRID * 8 : -1;
    default: return -1;
    }
}

/* Checks a packed program against the buffers it is to run over and fills in what it says: 0 with an exception set. */
static int checked(call_t *c, int32_t *width, const Py_buffer *code, Py_ssize_t elements)
{
    const uint8_t *end = (const uint8_t *)code->buf + code->len;
    int good = code->len >= 8 && elements >= 0 && elements < PY_SSIZE_T_MAX / 64;
    c->stride = elements + BLOCK;
    if (good) {
        memcpy(&c->ops, code->buf, 4);
        c->first = (const op_t *)((const uint8_t *)code->buf + 8);
        good = c->ops > 0;
    }
    const op_t *op = c->first;
    for (int32_t k = 0; good && k < c->ops; k++, op = after(op)) {
        good = (const uint8_t *)(op + 1) <= end && op->terms >= 0 && op->to >= 0 && op->to < DTYPES &&
               (op->compute == F32 || op->compute == F64) && op->out >= -1 && op->out < c->outs &&
               (end - (const uint8_t *)terms_of(op)) / (Py_ssize_t)sizeof(term_t) >= op->terms;
        if (!good) break;
        const Py_ssize_t room = needed(op, elements);
        good = room >= 0 && (op->out >= 0 ? c->out[op->out].len >= room : op->kind <= LOST) &&
               (op->kind != LOST || k == c->ops - 1);
        if (op->kind >= DOTS) c->stride = GRID;
        if (op->terms > c->most) c->most = op->terms;
        for (int32_t t = 0; good && t < op->terms; t++) {
            const term_t *term = terms_of(op) + t;
            const int mask = op->kind == DROP && t == 1;
            good = term->operand >= 0 && term->operand < c->inputs + k && term->dtype >= 0 &&
                   (mask ? term->operand < c->inputs : term->dtype < DTYPES);
            if (good && term->operand < c->inputs) width[term->operand] = width_of(term->dtype);
        }
    }
    for (int32_t i = 0; good && i < c->inputs; i++) good = !width[i] || c->in[i].len / width[i] >= elements;
    if (!good) PyErr_SetString(PyExc_ValueError, "a program that does not fit its buffers");
    return good;
}

/* Opens the buffers of a tuple: how many, or -1 with an exception set; `views` has to be closed either way. */
static int32_t opened(PyObject *sequence, Py_buffer **views, int flags)
{
    const int32_t count = (int32_t)PyTuple_Size(sequence);
    *views = calloc((size_t)count + 1, sizeof **views);
    if (!*views) {
        PyErr_NoMemory();
        return -1;
    }
    for (int32_t i = 0; i < count; i++)
        if (PyObject_GetBuffer(PyTuple_GetItem(sequence, i), *views + i, flags) < 0) return -1;
    return count;
}

static void closed(Py_buffer *views)
{
    for (Py_buffer *view = views; view && view->obj; view++) PyBuffer_Release(view);
    free(views);
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
    width = calloc((size_t)c.inputs + 1, sizeof *width);
    if (!width) {
        PyErr_NoMemory();
        goto done;
    }
    if (!checked(&c, width, &code, elements)) goto done;
    c.width = width;
    c.block = c.ops <= 32 ? 1024 : 64;
    c.room = malloc(sizeof *c.room);
    c.at = malloc((size_t)(c.inputs + c.ops) * sizeof *c.at);
    c.results = malloc((size_t)(c.ops * c.block) * 8);
    c.wide = malloc((size_t)(c.most + 1) * BLOCK * 8);
    c.operands = malloc((size_t)(c.most + 1) * sizeof *c.operands);
    if (!c.room || !c.at || !c.results || !c.wide || !c.operands) {
        PyErr_NoMemory();
        goto done;
    }
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

/* ---- masks ------------------------------------------------------------------------------------------------------- */

#if defined(_MSC_VER)
#include <intrin.h>
INLINE uint64_t multiply(uint64_t a, uint64_t b, uint64_t *high) { return _umul128(a, b, high); }
#else
INLINE uint64_t multiply(uint64_t a, uint64_t b, uint64_t *high)
{
    const unsigned __int128 product = (unsigned __int128)a * b;
    *high = (uint64_t)(product >> 64);
    return (uint64_t)product;
}
#endif

#define ROUNDS 10

/* Philox4x64 with ten rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). `keys` are those of
   the rounds. */
INLINE void philox(uint64_t *x, uint64_t counter, const uint64_t keys[ROUNDS][2])
{
    uint64_t a = counter, b = 0, c = 0, d = 0;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t high, higher;
        const uint64_t low = multiply(0xD2E7470EE14C6C93u, a, &high), lower = multiply(0xCA5A826395121157u, c, &higher);
        a = higher ^ b ^ keys[round][0];
        b = lower;
        c = high ^ d ^ keys[round][1];
        d = low;
    }
    x[0] = a;
    x[1] = b;
    x[2] = c;
    x[3] = d;
}

#define BATCH 64 /* blocks of Philox: of 16 elements each */

typedef struct {
    uint64_t keys[ROUNDS][2], begin;
    uint16_t limit;
    uint8_t tie, *out;
    Py_ssize_t elements;
} mask_t;

/* Each word of a block is 16 bits of four elements, the lowest first. */
INLINE void draw(uint16_t *bits, uint64_t block, const mask_t *m)
{
    for (int k = 0; k < BATCH; k++) {
        uint64_t words[4];
        philox(words, block + (uint64_t)k + 1, m->keys);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        for (int i = 0; i < 16; i++) bits[16 * k + i] = (uint16_t)(words[i / 4] >> (16 * (i % 4)));
#else
        memcpy(bits + 16 * k, words, sizeof words);
#endif
    }
}

INLINE Py_ssize_t draw_all(const mask_t *m)
{
    Py_ssize_t ties = 0;
    const uint64_t end = m->begin + (uint64_t)m->elements;
    const uint16_t limit = m->limit, tie = m->tie;
    for (uint64_t block = m->begin / 16; block * 16 < end; block += BATCH) {
        uint16_t bits[16 * BATCH];
        uint8_t bytes[16 * BATCH];
        draw(bits, block, m);
        for (int i = 0; i < 16 * BATCH; i++)
            bytes[i] = (uint8_t)((bits[i] < limit ? 1 : 0) | (bits[i] == limit ? tie : 0));
        const uint64_t first = block * 16 < m->begin ? m->begin - block * 16 : 0;
        const uint64_t last = end - block * 16 < 16 * BATCH ? end - block * 16 : 16 * BATCH;
        uint16_t equal = 0;
        for (uint64_t i = first; i < last; i++) equal += bits[i] == limit;
        ties += equal;
        memcpy(m->out + (block * 16 + first - m->begin), bytes + first, (size_t)(last - first));
    }
    return ties;
}

static Py_ssize_t draw_plain(const mask_t *m) { return draw_all(m); }

#if WITH_F16C
FAST static Py_ssize_t draw_fast(const mask_t *m) { return draw_all(m); }
#endif

static Py_ssize_t (*draw_mask)(const mask_t *) = draw_plain;

/* mask(key, limit, tie, begin, out): for each element from `begin` on 1 where its 16 random bits are below the limit,
   `tie` where they are equal to it, else 0; how many are equal. Block b of 16 elements is Philox's of the counter
   b + 1, as numpy counts. */
static PyObject *mask(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer out = {0};
    unsigned long long key, other, begin;
    int limit, tie;
    if (!PyArg_ParseTuple(args, "(KK)iiKw*", &key, &other, &limit, &tie, &begin, &out)) return NULL;
    mask_t m = {{{0}}, begin, (uint16_t)limit, (uint8_t)tie, out.buf, out.len};
    for (int round = 0; round < ROUNDS; round++) {
        m.keys[round][0] = key + (uint64_t)round * 0x9E3779B97F4A7C15u;
        m.keys[round][1] = other + (uint64_t)round * 0xBB67AE8584CAA73Bu;
    }
    Py_ssize_t ties;
    Py_BEGIN_ALLOW_THREADS
    ties = draw_mask(&m);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&out);
    return PyLong_FromSsize_t(ties);
}

/* ---- the module -------------------------------------------------------------------------------------------------- */

static PyObject *plain(PyObject *self, PyObject *flag)
{
    (void)self;
    const int chosen = PyObject_IsTrue(flag);
    if (chosen < 0) return NULL;
    run_program = run_plain;
    draw_mask = draw_plain;
#if WITH_F16C
    if (!chosen && has_instructions()) {
        run_program = run_fast;
        draw_mask = draw_fast;
    }
#endif
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"run", run, METH_VARARGS, "run(program, inputs, outs, elements): compute a program."},
    {"mask", mask, METH_VARARGS, "mask(key, limit, tie, begin, out): random bytes, 1 with a chance of limit / 65536."},
    {"plain", plain, METH_O, "plain(flag): whether to do without the processor's half precision instructions."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_kernels", "Kernels of tensors, compiled.", -1, METHODS,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void)
{
    PyObject *module = PyModule_Create(&MODULE);
    if (module) {
        PyObject *done = plain(module, Py_False);
        if (!done) {
            Py_DECREF(module);
            return NULL;
        }
        Py_DECREF(done);
    }
    return module;
}
