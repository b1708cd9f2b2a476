/* Values and sums of them, for the compiled modules (_sums.c, _kernels.c): dtypes, casts that are exact or rounded once,
   and one operation of a program, over a block of elements that stays in the first-level cache.

   A sum is separate multiplications and additions, one division, one rounding to nearest even: compiled with
   -ffp-contract=off, since a fused multiply-add is another number. Multiplying by 1 and -1 is exact, so that those
   shares need no case of their own.

   float64 to fewer than 32 bits goes by way of float32 rounded to odd, which keeps what the second rounding must know
   (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums"). */

#ifndef MERGEFLOW_VALUES_H
#define MERGEFLOW_VALUES_H

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

/* A program is packed by native.py: the number of operations (int32, and as many bytes of nothing), then each operation
   with its terms. Operands count the inputs first, then the results of earlier operations. */
typedef struct {
    int32_t operand, dtype;
    double share;
} term_t;

typedef struct {
    int32_t compute, to, terms, kind;
    int32_t out, flags, mask, unused; /* mask: an input of bytes, 0 where a sum is to be 0, else 1; or -1 */
    double divisor; /* of a sum; of other kinds, which _kernels.c has, a number of theirs */
    int64_t low, high;
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

/* ---- blocks: inlined into a plain function and, where the processor has AVX2, into a fast one ------------------------------ */

typedef struct {
    double total[BLOCK]; /* float32 sums use the first half of it */
    float operand[BLOCK];
} room_t;

typedef struct {
    void (*widen)(float *, const uint16_t *, Py_ssize_t);
    void (*widen_twice)(double *, const uint16_t *, Py_ssize_t);
    void (*narrow)(uint16_t *, const float *, Py_ssize_t);
    /* a float32 sum of float32, float16 and bfloat16 to any of them, of whole 32 elements; may be NULL */
    void (*sum)(const op_t *, const uint8_t *const *, const uint8_t *, uint8_t *, Py_ssize_t);
} halves_t;

static void halves_to_floats(float *to, const uint16_t *x, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) to[i] = half_to_float(x[i]);
}

static void halves_to_doubles(double *to, const uint16_t *x, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) to[i] = half_to_float(x[i]);
}

static void floats_to_halves(uint16_t *to, const float *x, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) to[i] = float_to_half(x[i]);
}

static const halves_t PLAIN = {halves_to_floats, halves_to_doubles, floats_to_halves, NULL};

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

/* A sum in `room->total`. With a mask that is 0 where the mask is, whatever it would be. */
INLINE void sum_in_float(const op_t *op, const uint8_t *const *x, const uint8_t *mask, room_t *room,
                         const halves_t *halves, Py_ssize_t n)
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
    if (mask)
        for (Py_ssize_t i = 0; i < n; i++) total[i] = mask[i] ? total[i] : 0;
}

INLINE void sum_in_double(const op_t *op, const uint8_t *const *x, const uint8_t *mask, room_t *room,
                          const halves_t *halves, Py_ssize_t n)
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
    if (mask)
        for (Py_ssize_t i = 0; i < n; i++) total[i] = mask[i] ? total[i] : 0;
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

/* Whether halves->sum can do it. */
INLINE int in_registers(const op_t *op)
{
    int fits = op->compute == F32 && op->to >= F32 && op->to <= BF16;
    for (int32_t k = 0; k < op->terms; k++) fits &= terms_of(op)[k].dtype >= F32 && terms_of(op)[k].dtype <= BF16;
    return fits;
}

INLINE void sum_block(const op_t *op, const uint8_t *const *x, const uint8_t *mask, uint8_t *to, room_t *room,
                      const halves_t *halves, Py_ssize_t n)
{
    if (halves->sum && n % 32 == 0 && in_registers(op)) {
        halves->sum(op, x, mask, to, n);
    } else if (op->compute == F32) {
        sum_in_float(op, x, mask, room, halves, n);
        from_floats(to, op->to, (const float *)room->total, halves, n);
    } else {
        sum_in_double(op, x, mask, room, halves, n);
        round_doubles(to, op->to, room, halves, n);
    }
}

#if WITH_F16C
#define FAST __attribute__((target("avx2,f16c,bmi2")))

FAST static void halves_to_floats_fast(float *to, const uint16_t *x, Py_ssize_t n)
{
    Py_ssize_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
    for (; i < n; i++) to[i] = half_to_float(x[i]);
}

FAST static void halves_to_doubles_fast(double *to, const uint16_t *x, Py_ssize_t n)
{
    Py_ssize_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 values = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i)));
        _mm256_storeu_pd(to + i, _mm256_cvtps_pd(_mm256_castps256_ps128(values)));
        _mm256_storeu_pd(to + i + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1)));
    }
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

FAST static inline __m256 brain(const uint8_t *x)
{
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}

FAST static inline __m256 half(const uint8_t *x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x)); }

/* 32 values from element i on. */
FAST static inline void load(__m256 *to, const uint8_t *x, int dtype, Py_ssize_t i)
{
    if (dtype == F16)
        for (int j = 0; j < 4; j++) to[j] = half(x + 2 * i + 16 * j);
    else if (dtype == F32)
        for (int j = 0; j < 4; j++) to[j] = _mm256_loadu_ps((const float *)x + i + 8 * j);
    else
        for (int j = 0; j < 4; j++) to[j] = brain(x + 2 * i + 16 * j);
}

/* x where the mask has 1, 0 where it has 0. */
FAST static inline __m256 masked(__m256 x, const uint8_t *mask)
{
    const __m256i kept = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)mask));
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_setzero_si256(), kept)));
}

FAST static inline void store_eight(uint8_t *to, int dtype, Py_ssize_t i, __m256 x)
{
    if (dtype == F32) {
        _mm256_storeu_ps((float *)to + i, x);
    } else if (dtype == F16) {
        _mm_storeu_si128((__m128i *)(to + 2 * i), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    } else {
        float values[8];
        _mm256_storeu_ps(values, x);
        for (int j = 0; j < 8; j++) ((uint16_t *)to)[i + j] = float_to_bfloat(values[j]);
    }
}

/* The commonest sums of all, 32 elements at a time in registers. */
FAST static void sum_in_registers(const op_t *op, const uint8_t *const *x, const uint8_t *mask, uint8_t *to,
                                  Py_ssize_t n)
{
    const term_t *terms = terms_of(op);
    const __m256 divisor = _mm256_set1_ps((float)op->divisor);
    for (Py_ssize_t i = 0; i < n; i += 32) {
        __m256 total[4], values[4];
        load(total, x[terms->operand], terms->dtype, i);
        const __m256 first = _mm256_set1_ps((float)terms->share);
        for (int j = 0; j < 4; j++) total[j] = _mm256_mul_ps(total[j], first);
        for (int32_t k = 1; k < op->terms; k++) {
            const __m256 share = _mm256_set1_ps((float)terms[k].share);
            load(values, x[terms[k].operand], terms[k].dtype, i);
            for (int j = 0; j < 4; j++) total[j] = _mm256_add_ps(total[j], _mm256_mul_ps(values[j], share));
        }
        if (op->divisor != 1.0)
            for (int j = 0; j < 4; j++) total[j] = _mm256_div_ps(total[j], divisor);
        if (mask)
            for (int j = 0; j < 4; j++) total[j] = masked(total[j], mask + i + 8 * j);
        for (int j = 0; j < 4; j++) store_eight(to, op->to, i + 8 * j, total[j]);
    }
}

static const halves_t WITH_INSTRUCTIONS = {halves_to_floats_fast, halves_to_doubles_fast, floats_to_halves_fast,
                                           sum_in_registers};
#endif

/* Whether the processor has what the FAST functions use. */
static int has_instructions(void)
{
#if WITH_F16C
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
#else
    return 0;
#endif
}

#endif
