/* Random masks: Philox4x32 with ten rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a byte
   of it for each element. What a mask is, is said where it is drawn with numpy: mergeflow/methods/masks.py. */

#ifndef MERGEFLOW_MASKS_H
#define MERGEFLOW_MASKS_H

#include "_values.h"

#define ROUNDS 10
/* Blocks drawn together, their bytes, elements decided together. */
enum { TOGETHER = 8, DRAWN = 16 * TOGETHER, SPAN = 32 * DRAWN };

/* `upper` are the two upper words of the counters: of the bytes, and of what decides where a byte does not. */
typedef struct {
    uint32_t keys[ROUNDS][2], upper[2][2];
    uint8_t whole;
    uint64_t rest, begin;
    uint8_t *out;
    Py_ssize_t elements;
} mask_t;

static const uint32_t ONE = 0xD2511F53u, TWO = 0xCD9E8D57u; /* its factors */

/* TOGETHER blocks as bytes: those with the numbers `each`, or that follow each other from `first` on. */
static void draw_plain(uint8_t *to, uint64_t first, const uint64_t *each, const uint32_t *upper, const mask_t *m)
{
    uint32_t a[TOGETHER], b[TOGETHER], c[TOGETHER], d[TOGETHER];
    for (int i = 0; i < TOGETHER; i++) {
        const uint64_t number = each ? each[i] : first + (uint64_t)i;
        a[i] = (uint32_t)number;
        b[i] = (uint32_t)(number >> 32);
        c[i] = upper[0];
        d[i] = upper[1];
    }
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < TOGETHER; i++) {
            const uint64_t p = (uint64_t)a[i] * ONE, q = (uint64_t)c[i] * TWO;
            a[i] = (uint32_t)(q >> 32) ^ b[i] ^ m->keys[round][0];
            b[i] = (uint32_t)q;
            c[i] = (uint32_t)(p >> 32) ^ d[i] ^ m->keys[round][1];
            d[i] = (uint32_t)p;
        }
    for (int i = 0; i < TOGETHER; i++) {
        const uint32_t words[4] = {a[i], b[i], c[i], d[i]};
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        for (int k = 0; k < 16; k++) to[16 * i + k] = (uint8_t)(words[k / 4] >> (8 * (k % 4)));
#else
        memcpy(to + 16 * i, words, sizeof words);
#endif
    }
}

typedef void (*draw_t)(uint8_t *, uint64_t, const uint64_t *, const uint32_t *, const mask_t *);

#define EACH 0x0101010101010101u /* byte of a word */

/* Which of DRAWN bytes are below the limit. Those equal to it are noted behind the `count` that are: their places,
   counted from `at`. */
INLINE int compare(uint8_t *to, const uint8_t *bytes, uint16_t *equal, int count, int at, const mask_t *m)
{
    const uint8_t whole = m->whole;
    for (int i = 0; i < DRAWN; i++) to[i] = bytes[i] < whole ? 1 : 0;
    for (int i = 0; m->rest && i < DRAWN; i += 8) {
        uint64_t eight;
        memcpy(&eight, bytes + i, 8);
        eight ^= whole * EACH;
        if (!((eight - EACH) & ~eight & 0x80 * EACH)) continue; /* no byte of them is equal */
        for (int k = i; k < i + 8; k++) {
            equal[count] = (uint16_t)(at + k);
            count += bytes[k] == whole;
        }
    }
    return count;
}

/* Those whose byte is equal to the limit, by 64 bits more. */
INLINE void settle(uint8_t *kept, const uint16_t *equal, int count, uint64_t first, draw_t draw, const mask_t *m)
{
    for (int i = 0; i < count; i += TOGETHER) {
        uint64_t elements[TOGETHER] = {0};
        uint8_t bytes[DRAWN];
        const int n = count - i < TOGETHER ? count - i : TOGETHER;
        for (int k = 0; k < n; k++) elements[k] = first + equal[i + k];
        draw(bytes, 0, elements, m->upper[1], m);
        for (int k = 0; k < n; k++) {
            uint64_t number = 0;
            for (int j = 0; j < 8; j++) number |= (uint64_t)bytes[16 * k + j] << (8 * j);
            kept[equal[i + k]] = number < m->rest ? 1 : 0;
        }
    }
}

INLINE void draw_all(const mask_t *m, draw_t draw)
{
    const uint64_t end = m->begin + (uint64_t)m->elements;
    for (uint64_t first = m->begin / 16 * 16; first < end; first += SPAN) {
        uint8_t bytes[DRAWN], kept[SPAN];
        uint16_t equal[SPAN + 8];
        const int n = end - first < SPAN ? (int)(end - first) : SPAN;
        int count = 0;
        for (int at = 0; at < n; at += DRAWN) {
            draw(bytes, (first + (uint64_t)at) / 16, NULL, m->upper[0], m);
            count = compare(kept + at, bytes, equal, count, at, m);
        }
        settle(kept, equal, count, first, draw, m);
        const int from = first < m->begin ? (int)(m->begin - first) : 0;
        memcpy(m->out + (first + (uint64_t)from - m->begin), kept + from, (size_t)(n - from));
    }
}

static void mask_plain(const mask_t *m) { draw_all(m, draw_plain); }

#if WITH_F16C
/* The same in registers: words in lanes of 64 bits, whose upper halves do not matter until the end. The order of the
   lanes is such that blocks come out one after the other. */
FAST static inline void draw_fast(uint8_t *to, uint64_t first, const uint64_t *each, const uint32_t *upper,
                                  const mask_t *m)
{
    const __m256i one = _mm256_set1_epi64x(ONE), two = _mm256_set1_epi64x(TWO);
    __m256i a, b, c = _mm256_set1_epi64x(upper[0]), d = _mm256_set1_epi64x(upper[1]), e, f, g = c, h = d;
    if (each) {
        a = _mm256_permute4x64_epi64(_mm256_loadu_si256((const __m256i *)each), 0xD8);
        e = _mm256_permute4x64_epi64(_mm256_loadu_si256((const __m256i *)(each + 4)), 0xD8);
    } else {
        a = _mm256_add_epi64(_mm256_set1_epi64x((long long)first), _mm256_setr_epi64x(0, 2, 1, 3));
        e = _mm256_add_epi64(a, _mm256_set1_epi64x(4));
    }
    b = _mm256_srli_epi64(a, 32);
    f = _mm256_srli_epi64(e, 32);
    for (int round = 0; round < ROUNDS; round++) {
        const __m256i key = _mm256_set1_epi64x(m->keys[round][0]), other = _mm256_set1_epi64x(m->keys[round][1]);
        const __m256i p = _mm256_mul_epu32(a, one), q = _mm256_mul_epu32(c, two);
        const __m256i r = _mm256_mul_epu32(e, one), s = _mm256_mul_epu32(g, two);
        a = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(q, 32), b), key);
        b = q;
        c = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p, 32), d), other);
        d = p;
        e = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(s, 32), f), key);
        f = s;
        g = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(r, 32), h), other);
        h = r;
    }
    a = _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xAA);
    c = _mm256_blend_epi32(c, _mm256_slli_epi64(d, 32), 0xAA);
    e = _mm256_blend_epi32(e, _mm256_slli_epi64(f, 32), 0xAA);
    g = _mm256_blend_epi32(g, _mm256_slli_epi64(h, 32), 0xAA);
    _mm256_storeu_si256((__m256i *)to, _mm256_unpacklo_epi64(a, c));
    _mm256_storeu_si256((__m256i *)(to + 32), _mm256_unpackhi_epi64(a, c));
    _mm256_storeu_si256((__m256i *)(to + 64), _mm256_unpacklo_epi64(e, g));
    _mm256_storeu_si256((__m256i *)(to + 96), _mm256_unpackhi_epi64(e, g));
}

FAST static void mask_fast(const mask_t *m) { draw_all(m, draw_fast); }
#endif

static void (*draw_mask)(const mask_t *) = mask_plain;

static uint32_t word(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* mask(key, whole, rest, begin, out): for each element from `begin` on 1 where it is kept, else 0. */
static PyObject *mask(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer key = {0}, out = {0};
    unsigned long long rest, begin;
    int whole;
    if (!PyArg_ParseTuple(args, "y*iKKw*", &key, &whole, &rest, &begin, &out)) return NULL;
    mask_t m = {.whole = (uint8_t)whole, .rest = rest, .begin = begin, .out = out.buf, .elements = out.len};
    const int good = key.len >= 24 && whole >= 0 && whole < 256;
    if (good) {
        const uint8_t *bytes = key.buf;
        for (int i = 0; i < 4; i++) m.upper[i / 2][i % 2] = word(bytes + 8 + 4 * i);
        for (int round = 0; round < ROUNDS; round++) {
            m.keys[round][0] = word(bytes) + (uint32_t)round * 0x9E3779B9u;
            m.keys[round][1] = word(bytes + 4) + (uint32_t)round * 0xBB67AE85u;
        }
        Py_BEGIN_ALLOW_THREADS
        draw_mask(&m);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "a mask takes a key of 24 bytes and a limit below 256");
    }
    PyBuffer_Release(&key);
    PyBuffer_Release(&out);
    if (!good) return NULL;
    Py_RETURN_NONE;
}

#endif
