/* Sums of tensors for the CPU: what cpu.py does with torch calls, in one pass over a tile that stays in the first-level
   cache, without importing torch. The same bytes, which the device contract's tests hold both to. What a sum is and how
   a program is packed is said in _values.h.

   run(program, inputs, out, elements) and lost(program, inputs, elements) are called without the interpreter's lock. */

#include "_calls.h"

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
            if (!to) {
                if (op->compute == F32)
                    sum_in_float(op, c->at, NULL, c->room, halves, n);
                else
                    sum_in_double(op, c->at, NULL, c->room, halves, n);
                lost += not_finite(c->room, op->compute, n);
                break;
            }
            if (last) to += begin * c->out_width;
            sum_block(op, c->at, NULL, to, c->room, halves, n);
            c->at[c->inputs + k] = to;
        }
    }
    return lost;
}

static Py_ssize_t sum_plain(const call_t *c, Py_ssize_t elements) { return sum_all(c, &PLAIN, elements); }

#if WITH_F16C
FAST static Py_ssize_t sum_fast(const call_t *c, Py_ssize_t elements)
{
    return sum_all(c, &WITH_INSTRUCTIONS, elements);
}
#endif

static Py_ssize_t (*sum)(const call_t *, Py_ssize_t) = sum_plain;

/* Checks a packed program against the buffers it is to run over and fills in what it says: 0 with an exception set. */
static int checked(call_t *c, int32_t *width, const Py_buffer *code, const Py_buffer *views, Py_ssize_t elements)
{
    memset(width, 0, (size_t)c->inputs * sizeof *width);
    c->ops = operations(code, &c->first);
    int good = c->ops > 0 && elements >= 0;
    const op_t *op = c->first;
    for (int32_t k = 0; good && k < c->ops; k++, op = after(op)) {
        good = sound(op, code, c->inputs + k) && op->terms > 0 && op->mask < 0;
        for (int32_t t = 0; good && t < op->terms; t++)
            note_width(width, c->inputs, terms_of(op)[t].operand, WIDTH[terms_of(op)[t].dtype]);
        if (good) c->out_width = WIDTH[op->to];
    }
    return (good && long_enough(views, width, c->inputs, elements)) || does_not_fit("a program");
}

/* run(program, inputs, out, elements) and lost(program, inputs, elements). */
static PyObject *call(PyObject *args, int with_out)
{
    Py_buffer code = {0}, out = {0}, *views = NULL;
    PyObject *sequence, *result = NULL;
    Py_ssize_t elements, lost;
    const uint8_t **bases = NULL;
    int32_t *width = NULL;
    if (!(with_out ? PyArg_ParseTuple(args, "y*O!w*n", &code, &PyTuple_Type, &sequence, &out, &elements)
                   : PyArg_ParseTuple(args, "y*O!n", &code, &PyTuple_Type, &sequence, &elements)))
        return NULL;
    call_t c = {0};
    c.inputs = opened(sequence, &views, PyBUF_SIMPLE);
    if (c.inputs < 0 || !(bases = room_for((size_t)c.inputs, sizeof *bases)) ||
        !(width = room_for((size_t)c.inputs, sizeof *width)) || !checked(&c, width, &code, views, elements) ||
        (with_out && out.len / c.out_width < elements && !does_not_fit("the result")))
        goto done;
    for (int32_t i = 0; i < c.inputs; i++) bases[i] = views[i].buf;
    c.width = width;
    c.bases = bases;
    c.out = with_out ? out.buf : NULL;
    c.block = c.ops <= 32 ? BLOCK : 64; /* thousands of rounding points still fit a cache */
    if (!(c.room = room_for(1, sizeof *c.room)) || !(c.at = room_for((size_t)(c.inputs + c.ops), sizeof *c.at)) ||
        !(c.results = room_for((size_t)(c.ops * c.block), 8)))
        goto done;
    Py_BEGIN_ALLOW_THREADS
    lost = sum(&c, elements);
    Py_END_ALLOW_THREADS
    result = PyLong_FromSsize_t(lost);
done:
    closed(views);
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
    if (!chosen && has_instructions()) sum = sum_fast;
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

PyMODINIT_FUNC PyInit__sums(void) { return module_of(&MODULE, plain); }
