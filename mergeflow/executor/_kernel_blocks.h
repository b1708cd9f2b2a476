/* Kernels over a block of elements, for one compute dtype: REAL, with BITS for an unsigned integer of its size, and
   NAME(x) for the functions' names. Included twice by _kernels.c.

   What each computes is said where the kernel is declared (mergeflow/methods); the torch functions there are the other
   way to the same bits. Loops of a fixed length are what compilers make vectors of. */

#define LANES 64 /* enough for a loop to stay one */
#define FEW 32

/* x where its magnitude is above a number, else 0; NaN stays. */
INLINE void NAME(trim)(REAL *to, const REAL *x, REAL above, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) to[i] = NAME(magnitude)(x[i]) <= above ? 0 : x[i];
}

/* x where the mask has 1, else 0. */
INLINE void NAME(drop)(REAL *to, const REAL *x, const uint8_t *mask, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) to[i] = NAME(real)(NAME(bits)(x[i]) & (BITS)-(BITS)mask[i]);
}

INLINE REAL NAME(sign)(REAL x) { return (x > 0 ? (REAL)1 : (REAL)0) - (x < 0 ? (REAL)1 : (REAL)0); } /* 0 of NaN */

/* The sum, or the mean, of those weighed operands that have the elected sign, for `n` elements from `i` on. */
INLINE void NAME(elect_some)(const op_t *op, REAL *to, const REAL *const *x, REAL least, Py_ssize_t i, int n)
{
    const term_t *terms = terms_of(op);
    const int by_count = op->flags & BY_COUNT, mean = op->flags & MEAN;
    REAL sign[LANES], sum[LANES], count[LANES], along[LANES];
    for (int j = 0; j < n; j++) sign[j] = sum[j] = count[j] = 0;
    for (int32_t k = 0; k < op->terms; k++) {
        const REAL share = (REAL)terms[k].share, *values = x[k] + i;
        if (by_count)
            for (int j = 0; j < n; j++) sign[j] += NAME(sign)(values[j] * share);
        else
            for (int j = 0; j < n; j++) sign[j] += values[j] * share;
    }
    for (int j = 0; j < n; j++) sign[j] = NAME(sign)(sign[j]);
    for (int32_t k = 0; k < op->terms; k++) {
        const REAL share = (REAL)terms[k].share, counts = NAME(magnitude)(share), *values = x[k] + i;
        for (int j = 0; j < n; j++) along[j] = values[j] * share * sign[j];
        for (int j = 0; j < n; j++) along[j] = along[j] <= 0 ? 0 : along[j]; /* NaN stays */
        for (int j = 0; j < n; j++) sum[j] += along[j];
        for (int j = 0; j < n; j++) count[j] += along[j] > 0 ? counts : 0;
    }
    if (mean)
        for (int j = 0; j < n; j++) sum[j] /= count[j] < least ? least : count[j];
    else if (op->divisor != 1.0)
        for (int j = 0; j < n; j++) sum[j] /= (REAL)op->divisor;
    for (int j = 0; j < n; j++) to[i + j] = sum[j] * sign[j] + 0;
}

INLINE void NAME(elect)(const op_t *op, REAL *to, const REAL *const *x, Py_ssize_t n)
{
    REAL least = 0;
    Py_ssize_t i = 0;
    for (int32_t k = 0; k < op->terms; k++) {
        const REAL share = NAME(magnitude)((REAL)terms_of(op)[k].share);
        if (share > 0 && (least == 0 || share < least)) least = share;
    }
    if (least == 0) least = 1;
    for (; i + LANES <= n; i += LANES) NAME(elect_some)(op, to, x, least, i, LANES);
    if (i < n) NAME(elect_some)(op, to, x, least, i, (int)(n - i));
}

/* ---- what is found of a whole tensor ----------------------------------------------------------------------------- */

/* Magnitudes as integers, which order like them; every NaN as one, above all numbers. */
INLINE BITS NAME(rank)(REAL x)
{
    const BITS bits = NAME(bits)(x) & (BITS)-1 >> 1;
    return bits > NAME(NOT_A_NUMBER) ? NAME(NOT_A_NUMBER) : bits;
}

/* `found`: how many ranks are above `high`, how many from `low` to `high`; behind that those, while there is room. */
INLINE void NAME(count)(const op_t *op, int64_t *found, Py_ssize_t room, const REAL *x, BITS *offset, Py_ssize_t n)
{
    const BITS low = (BITS)op->low, high = (BITS)op->high, width = high - low;
    BITS *kept = (BITS *)(found + 2) + found[1];
    BITS above = 0, inside = 0;
    Py_ssize_t i = 0;
    for (Py_ssize_t j = 0; j < n; j++) {
        const BITS rank = NAME(rank)(x[j]);
        above += rank > high;
        offset[j] = rank - low; /* what is below wraps round to large numbers */
        inside += offset[j] <= width;
    }
    if (found[1] + (int64_t)inside <= room) {
        for (; i + FEW <= n; i += FEW) {
            int any = 0;
            for (int j = 0; j < FEW; j++) any |= offset[i + j] <= width;
            if (!any) continue;
            for (int j = 0; j < FEW; j++)
                if (offset[i + j] <= width) *kept++ = offset[i + j] + low;
        }
        for (; i < n; i++)
            if (offset[i] <= width) *kept++ = offset[i] + low;
    }
    found[0] += (int64_t)above;
    found[1] += (int64_t)inside;
}

/* How many ranks from `low` to `high` there are in each of many ranges of equal width. */
INLINE void NAME(tally)(const op_t *op, int64_t *counts, const REAL *x, Py_ssize_t n)
{
    const BITS low = (BITS)op->low, width = (BITS)op->high - low;
    for (Py_ssize_t i = 0; i < n; i++) {
        const BITS offset = NAME(rank)(x[i]) - low;
        if (offset <= width) counts[offset >> op->flags]++;
    }
}

#undef LANES
#undef FEW
#undef REAL
#undef BITS
#undef NAME
