/* Sums of tensors for the CPU: what cpu.py does with torch calls, in one pass over a tile that stays in the first-level
   cache, without importing torch. The same bytes, which the device contract's tests hold both to.

   run(program, inputs, out, elements) and lost(program, inputs, elements) are called without the interpreter's lock.
   A program is packed by native.py (all values little-endian int32 or float64 of this machine):

       ops: int32; then for each op
           compute, to, terms: int32, zero: int32, divisor: float64
           for each term: operand: int32, dtype: int32, share: float64

   Operands count the inputs first, then the results of earlier ops. A sum is separate multiplications and additions,
   one division, one rounding to nearest even: compiled with -ffp-contract=off, since a fused multiply-add is another
   number. Multiplying by 1 and -1 is exact, so that those shares need no case of their own.

   float64 to fewer than 32 bits goes by way of float32 rounded to odd, which keeps what the second rounding must know
   (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums"). */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define WITH_F16C 1
#include <immintrin.h>
#else
#define WITH_F16C 0
#endif

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

enum dtype { F64, F32, F16, BF16, E4M3, E5M2, DTYPES };
static const int WIDTH[DTYPES] = {8, 4, 2, 2, 1, 1};

#define BLOCK 2048 /* elements: accumulator, operand and result together stay in 32 KB */

typedef struct {
    int32_t operand, dtype;
    double share;
} term_t;

typedef struct {
    int32_t compute, to, terms, zero;
    double divisor;
} op_t; /* its terms follow it */

static const term_t *terms_of(const op_t *op) { return (const term_t *)(op + 1); }
static const op_t *after(const op_t *op) { return (const op_t *)(terms_of(op) + op->terms); }

INLINE float from_bits(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
INLINE uint32_t to_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

/* ---- one value at a time: exact casts to float32, and roundings from it --------------------------------------- */

INLINE float half_to_float(uint16_t h)
{
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
    uint32_t bits = to_bits(from_bits(magnitude) * 0x1p112f); /* moves the exponent; subnormals come out normal */
    if (magnitude >= 0x7c00u << 13) bits |= 0x7f800000u;
    return from_bits(bits | (uint32_t)(h & 0x8000) << 16);
}

INLINE uint16_t float_to_half(float x)
{
    uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* 65520, half way above the largest */
    if (magnitude < 0x38800000u) /* below the least normal: let the addition round, at a fixed exponent */
        return (uint16_t)(sign | (to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f)));
    return (uint16_t)(sign | ((magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

INLINE uint16_t float_to_bfloat(float x)
{
    uint32_t bits = to_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000u) return (uint16_t)(bits >> 16 & 0x8000) | 0x7fc0;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE float e4m3_to_float(uint8_t code)
{
    uint32_t magnitude = code & 0x7f;
    float value = magnitude == 0x7f ? from_bits(0x7fc00000u) : from_bits(magnitude << 20) * 0x1p120f;
    return code & 0x80 ? -value : value;
}

/* To 8 bits: the same steps as to 16, with another width of the fraction and other limits. */
INLINE uint8_t float_to_small(float x, int fraction, int bias, uint32_t too_large, uint8_t over)
{
    uint32_t bits = to_bits(x), magnitude = bits & 0x7fffffff, drop = 23 - fraction;
    uint8_t sign = (uint8_t)(bits >> 24 & 0x80);
    if (magnitude >= too_large) return sign | over;
    if (magnitude < (uint32_t)(128 - bias) << 23) {
        float fixed = from_bits((uint32_t)(127 - bias + 24 - fraction) << 23); /* its last bit is the least subnormal */
        return (uint8_t)(sign | (to_bits(from_bits(magnitude) + fixed) - to_bits(fixed)));
    }
    uint32_t lowered = magnitude - ((uint32_t)(127 - bias) << 23);
    return (uint8_t)(sign | ((lowered + ((1u << (drop - 1)) - 1) + (lowered >> drop & 1)) >> drop));
}

/* What float8_e4m3fn cannot hold is NaN, so that it is counted; 464 is half way above the largest number, and a tie
   goes down to it. */
INLINE uint8_t float_to_e4m3(float x)
{
    return fabsf(x) <= 464.0f ? float_to_small(x, 3, 7, 0x43e80001u, 0x7e) : 0x7f;
}

INLINE uint8_t float_to_e5m2(float x)
{
    if (x != x) return 0x7e;
    return float_to_small(x, 2, 15, 0x47700000u, 0x7c); /* 61440, half way above the largest */
}

INLINE float odd(double x)
{
    float near = (float)x;
    double back = near;
    if (back == x || x != x || isinf(x)) return near;
    uint32_t bits = to_bits(near);
    if (fabs(back) > fabs(x)) bits -= 1; /* towards zero */
    return from_bits(bits | 1);
}

/* ---- blocks: inlined into sum_plain and, where the processor has AVX2, into sum_fast ------------------------------ */

typedef struct {
    double total[BLOCK]; /* float32 sums use the first half of it */
    float operand[BLOCK];
} room_t;

typedef struct {
    void (*widen)(float *, const uint16_t *, Py_ssize_t);
    void (*narrow)(uint16_t *, const float *, Py_ssize_t);
    void (*sum)(const op_t *, const uint8_t *const *, uint16_t *, Py_ssize_t); /* of whole 32 elements; may be NULL */
} halves_t;

static void halves_to_floats(float *to, const uint16_t *x, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) to[i] = half_to_float(x[i]);
}

static void floats_to_halves(uint16_t *to, const float *x, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) to[i] = float_to_half(x[i]);
}

static const halves_t PLAIN = {halves_to_floats, floats_to_halves, NULL};

/* Values as float32; those that are float32 already are used where they lie. */
INLINE const float *as_floats(float *room, const uint8_t *x, int dtype, const halves_t *halves, Py_ssize_t n)
{
    switch (dtype) {
    case F32: return (const float *)x;
    case F16: halves->widen(room, (const uint16_t *)x, n); break;
    case BF16:
        for (Py_ssize_t i = 0; i < n; i++) room[i] = from_bits((uint32_t)((const uint16_t *)x)[i] << 16);
        break;
    case E4M3:
        for (Py_ssize_t i = 0; i < n; i++) room[i] = e4m3_to_float(x[i]);
        break;
    case E5M2:
        for (Py_ssize_t i = 0; i < n; i++) room[i] = half_to_float((uint16_t)(x[i] << 8));
        break;
    default: /* F64 in a float32 sum: `compute: float32` on float64 tensors */
        for (Py_ssize_t i = 0; i < n; i++) room[i] = (float)((const double *)x)[i];
    }
    return room;
}

INLINE void from_floats(uint8_t *to, int dtype, const float *x, const halves_t *halves, Py_ssize_t n)
{
    switch (dtype) {
    case F64:
        for (Py_ssize_t i = 0; i < n; i++) ((double *)to)[i] = x[i];
        break;
    case F32: memcpy(to, x, (size_t)n * 4); break;
    case F16: halves->narrow((uint16_t *)to, x, n); break;
    case BF16:
        for (Py_ssize_t i = 0; i < n; i++) ((uint16_t *)to)[i] = float_to_bfloat(x[i]);
        break;
    case E4M3:
        for (Py_ssize_t i = 0; i < n; i++) to[i] = float_to_e4m3(x[i]);
        break;
    default:
        for (Py_ssize_t i = 0; i < n; i++) to[i] = float_to_e5m2(x[i]);
    }
}

INLINE void sum_in_float(const op_t *op, const uint8_t *const *x, room_t *room, const halves_t *halves, Py_ssize_t n)
{
    float *total = (float *)room->total;
    const term_t *terms = terms_of(op);
    for (int32_t k = 0; k < op->terms; k++) {
        const float share = (float)terms[k].share;
        const float *values = as_floats(room->operand, x[terms[k].operand], terms[k].dtype, halves, n);
        if (k == 0)
            for (Py_ssize_t i = 0; i < n; i++) total[i] = values[i] * share;
        else
            for (Py_ssize_t i = 0; i < n; i++) total[i] = total[i] + values[i] * share;
    }
    if (op->divisor != 1.0) {
        const float divisor = (float)op->divisor;
        for (Py_ssize_t i = 0; i < n; i++) total[i] = total[i] / divisor;
    }
}

INLINE void sum_in_double(const op_t *op, const uint8_t *const *x, room_t *room, const halves_t *halves, Py_ssize_t n)
{
    double *total = room->total;
    const term_t *terms = terms_of(op);
    for (int32_t k = 0; k < op->terms; k++) {
        const double share = terms[k].share;
        const uint8_t *operand = x[terms[k].operand];
        if (terms[k].dtype == F64) {
            const double *values = (const double *)operand;
            if (k == 0)
                for (Py_ssize_t i = 0; i < n; i++) total[i] = values[i] * share;
            else
                for (Py_ssize_t i = 0; i < n; i++) total[i] = total[i] + values[i] * share;
        } else {
            const float *values = as_floats(room->operand, operand, terms[k].dtype, halves, n);
            if (k == 0)
                for (Py_ssize_t i = 0; i < n; i++) total[i] = (double)values[i] * share;
            else
                for (Py_ssize_t i = 0; i < n; i++) total[i] = total[i] + (double)values[i] * share;
        }
    }
    if (op->divisor != 1.0)
        for (Py_ssize_t i = 0; i < n; i++) total[i] = total[i] / op->divisor;
}

INLINE void round_doubles(uint8_t *to, int dtype, room_t *room, const halves_t *halves, Py_ssize_t n)
{
    const double *total = room->total;
    if (dtype == F64) {
        memcpy(to, total, (size_t)n * 8);
    } else if (dtype == F32) {
        for (Py_ssize_t i = 0; i < n; i++) ((float *)to)[i] = (float)total[i];
    } else {
        for (Py_ssize_t i = 0; i < n; i++) room->operand[i] = odd(total[i]);
        from_floats(to, dtype, room->operand, halves, n);
    }
}

INLINE Py_ssize_t not_finite(const room_t *room, int compute, Py_ssize_t n)
{
    Py_ssize_t count = 0;
    for (Py_ssize_t i = 0; i < n; i++)
        count += compute == F32 ? !isfinite(((const float *)room->total)[i]) : !isfinite(room->total[i]);
    return count;
}

INLINE int only_halves(const op_t *op)
{
    int only = op->compute == F32 && op->to == F16;
    for (int32_t k = 0; k < op->terms; k++) only &= terms_of(op)[k].dtype == F16;
    return only;
}

/* ---- programs ---------------------------------------------------------------------------------------------------- */

/* A program with the buffers it runs over. `at` has room for a pointer to each operand, `results` for a block of each
   op; without `out` the last results are counted and not rounded. */
typedef struct {
    const op_t *first;
    int32_t ops, inputs, out_width;
    const int32_t *width;
    const uint8_t *const *bases;
    uint8_t *out;
    const uint8_t **at;
    uint8_t *results;
    room_t *room;
    Py_ssize_t block;
} call_t;

INLINE Py_ssize_t sum_all(const call_t *c, const halves_t *halves, Py_ssize_t elements)
{
    Py_ssize_t lost = 0;
    for (Py_ssize_t begin = 0; begin < elements; begin += c->block) {
        const Py_ssize_t n = elements - begin < c->block ? elements - begin : c->block;
        const op_t *op = c->first;
        for (int32_t i = 0; i < c->inputs; i++) c->at[i] = c->bases[i] + begin * c->width[i];
        for (int32_t k = 0; k < c->ops; k++, op = after(op)) {
            const int last = k == c->ops - 1;
            uint8_t *to = last ? c->out : c->results + (size_t)(k * c->block) * 8;
            if (halves->sum && to && n % 32 == 0 && only_halves(op)) {
                if (last) to += begin * c->out_width;
                halves->sum(op, c->at, (uint16_t *)to, n);
                c->at[c->inputs + k] = to;
                continue;
            }
            if (op->compute == F32)
                sum_in_float(op, c->at, c->room, halves, n);
            else
                sum_in_double(op, c->at, c->room, halves, n);
            if (last && !to) {
                lost += not_finite(c->room, op->compute, n);
                break;
            }
            if (last) to += begin * c->out_width;
            if (op->compute == F32)
                from_floats(to, op->to, (const float *)c->room->total, halves, n);
            else
                round_doubles(to, op->to, c->room, halves, n);
            c->at[c->inputs + k] = to;
        }
    }
    return lost;
}

static Py_ssize_t sum_plain(const call_t *c, Py_ssize_t elements) { return sum_all(c, &PLAIN, elements); }

#if WITH_F16C
#define FAST __attribute__((target("avx2,f16c")))

FAST static void halves_to_floats_fast(float *to, const uint16_t *x, Py_ssize_t n)
{
    Py_ssize_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
    for (; i < n; i++) to[i] = half_to_float(x[i]);
}

FAST static void floats_to_halves_fast(uint16_t *to, const float *x, Py_ssize_t n)
{
    Py_ssize_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(to + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    for (; i < n; i++) to[i] = float_to_half(x[i]);
}

/* A sum of halves to halves, the commonest of all, 32 elements at a time in registers. */
FAST static void sum_halves_fast(const op_t *op, const uint8_t *const *x, uint16_t *to, Py_ssize_t n)
{
    const term_t *terms = terms_of(op);
    const __m256 divisor = _mm256_set1_ps((float)op->divisor);
    for (Py_ssize_t i = 0; i < n; i += 32) {
        __m256 a = divisor, b = divisor, c = divisor, d = divisor;
        for (int32_t k = 0; k < op->terms; k++) {
            const __m128i *values = (const __m128i *)(x[terms[k].operand] + 2 * i);
            const __m256 share = _mm256_set1_ps((float)terms[k].share);
            const __m256 e = _mm256_mul_ps(_mm256_cvtph_ps(_mm_loadu_si128(values)), share);
            const __m256 f = _mm256_mul_ps(_mm256_cvtph_ps(_mm_loadu_si128(values + 1)), share);
            const __m256 g = _mm256_mul_ps(_mm256_cvtph_ps(_mm_loadu_si128(values + 2)), share);
            const __m256 h = _mm256_mul_ps(_mm256_cvtph_ps(_mm_loadu_si128(values + 3)), share);
            a = k ? _mm256_add_ps(a, e) : e;
            b = k ? _mm256_add_ps(b, f) : f;
            c = k ? _mm256_add_ps(c, g) : g;
            d = k ? _mm256_add_ps(d, h) : h;
        }
        if (op->divisor != 1.0) {
            a = _mm256_div_ps(a, divisor);
            b = _mm256_div_ps(b, divisor);
            c = _mm256_div_ps(c, divisor);
            d = _mm256_div_ps(d, divisor);
        }
        __m128i *out = (__m128i *)(to + i);
        _mm_storeu_si128(out, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        _mm_storeu_si128(out + 1, _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        _mm_storeu_si128(out + 2, _mm256_cvtps_ph(c, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        _mm_storeu_si128(out + 3, _mm256_cvtps_ph(d, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}

static const halves_t WITH_INSTRUCTIONS = {halves_to_floats_fast, floats_to_halves_fast, sum_halves_fast};

FAST static Py_ssize_t sum_fast(const call_t *c, Py_ssize_t elements)
{
    return sum_all(c, &WITH_INSTRUCTIONS, elements);
}
#endif

static Py_ssize_t (*sum)(const call_t *, Py_ssize_t) = sum_plain;

/* Checks a packed program against the buffers it is to run over and fills in what it says: 0 with an exception set. */
static int checked(call_t *c, int32_t *width, const Py_buffer *code, const Py_buffer *views, Py_ssize_t elements)
{
    const uint8_t *end = (const uint8_t *)code->buf + code->len;
    int good = code->len >= 8 && elements >= 0;
    if (good) {
        memcpy(&c->ops, code->buf, 4);
        c->first = (const op_t *)((const uint8_t *)code->buf + 8);
        good = c->ops > 0;
    }
    const op_t *op = c->first;
    for (int32_t k = 0; good && k < c->ops; k++, op = after(op)) {
        good = (const uint8_t *)(op + 1) <= end && op->terms > 0 && op->to >= 0 && op->to < DTYPES &&
               (op->compute == F32 || op->compute == F64) &&
               (end - (const uint8_t *)terms_of(op)) / (Py_ssize_t)sizeof(term_t) >= op->terms;
        for (int32_t t = 0; good && t < op->terms; t++) {
            const term_t *term = terms_of(op) + t;
            good = term->operand >= 0 && term->operand < c->inputs + k && term->dtype >= 0 && term->dtype < DTYPES;
            if (good && term->operand < c->inputs) width[term->operand] = WIDTH[term->dtype];
        }
        if (good) c->out_width = WIDTH[op->to];
    }
    for (int32_t i = 0; good && i < c->inputs; i++) good = !width[i] || views[i].len / width[i] >= elements;
    if (!good) PyErr_SetString(PyExc_ValueError, "a program that does not fit its buffers");
    return good;
}

/* run(program, inputs, out, elements) and lost(program, inputs, elements). */
static PyObject *call(PyObject *args, int with_out)
{
    Py_buffer code = {0}, out = {0};
    PyObject *sequence, *result = NULL;
    Py_ssize_t elements, lost, opened = 0;
    if (!(with_out ? PyArg_ParseTuple(args, "y*O!w*n", &code, &PyTuple_Type, &sequence, &out, &elements)
                   : PyArg_ParseTuple(args, "y*O!n", &code, &PyTuple_Type, &sequence, &elements)))
        return NULL;
    call_t c = {0};
    c.inputs = (int32_t)PyTuple_Size(sequence);
    Py_buffer *views = calloc((size_t)c.inputs + 1, sizeof *views);
    const uint8_t **bases = calloc((size_t)c.inputs + 1, sizeof *bases);
    int32_t *width = calloc((size_t)c.inputs + 1, sizeof *width);
    if (!views || !bases || !width) {
        PyErr_NoMemory();
        goto done;
    }
    for (; opened < c.inputs; opened++) {
        if (PyObject_GetBuffer(PyTuple_GetItem(sequence, opened), &views[opened], PyBUF_SIMPLE) < 0) goto done;
        bases[opened] = views[opened].buf;
    }
    if (!checked(&c, width, &code, views, elements)) goto done;
    if (with_out && out.len / c.out_width < elements) {
        PyErr_SetString(PyExc_ValueError, "the result does not fit its buffer");
        goto done;
    }
    c.width = width;
    c.bases = bases;
    c.out = with_out ? out.buf : NULL;
    c.block = c.ops <= 32 ? BLOCK : 64; /* thousands of rounding points still fit a cache */
    c.room = malloc(sizeof *c.room);
    c.at = malloc((size_t)(c.inputs + c.ops) * sizeof *c.at);
    c.results = malloc((size_t)(c.ops * c.block) * 8);
    if (!c.room || !c.at || !c.results) {
        PyErr_NoMemory();
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    lost = sum(&c, elements);
    Py_END_ALLOW_THREADS
    result = PyLong_FromSsize_t(lost);
done:
    while (opened--) PyBuffer_Release(&views[opened]);
    free(views);
    free(bases);
    free(width);
    free(c.room);
    free(c.at);
    free(c.results);
    PyBuffer_Release(&code);
    if (with_out) PyBuffer_Release(&out);
    return result;
}

static PyObject *run(PyObject *self, PyObject *args)
{
    (void)self;
    return call(args, 1);
}

static PyObject *lost(PyObject *self, PyObject *args)
{
    (void)self;
    return call(args, 0);
}

/* plain(True) leaves the processor's half precision instructions alone, plain(False) uses them where there are any. */
static PyObject *plain(PyObject *self, PyObject *flag)
{
    (void)self;
    const int chosen = PyObject_IsTrue(flag);
    if (chosen < 0) return NULL;
    sum = sum_plain;
#if WITH_F16C
    __builtin_cpu_init();
    if (!chosen && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) sum = sum_fast;
#endif
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"run", run, METH_VARARGS, "run(program, inputs, out, elements): compute a program."},
    {"lost", lost, METH_VARARGS, "lost(program, inputs, elements): results not finite before the last rounding."},
    {"plain", plain, METH_O, "plain(flag): whether to do without the processor's half precision instructions."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_sums", "Sums of tensors, compiled.", -1, METHODS,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__sums(void)
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
