/* What compiled calls do before and after their work: buffers of Python objects, the shape of a packed program, modules.
   Functions that fail return with an exception set. */

#ifndef MERGEFLOW_CALLS_H
#define MERGEFLOW_CALLS_H

#include "_values.h"

/* Opens the buffers of a tuple: how many, or -1; `views` has to be closed either way. */
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

/* Room for `count` things of a size, or NULL. */
static void *room_for(size_t count, size_t size)
{
    void *found = malloc((count + 1) * size);
    if (!found) PyErr_NoMemory();
    return found;
}

/* How many operations a packed program has, 0 where it cannot be one; the first of them. */
static int32_t operations(const Py_buffer *code, const op_t **first)
{
    int32_t count = 0;
    if (code->len < 8) return 0;
    memcpy(&count, code->buf, 4);
    *first = (const op_t *)((const uint8_t *)code->buf + 8);
    return count;
}

/* Whether an operation lies in its program whole, and says of itself what it may; `operands` are those before it. */
static int sound(const op_t *op, const Py_buffer *code, int32_t operands)
{
    const uint8_t *end = (const uint8_t *)code->buf + code->len;
    int good = (const uint8_t *)(op + 1) <= end && op->terms >= 0 && op->to >= 0 && op->to < DTYPES &&
               (op->compute == F32 || op->compute == F64) &&
               (end - (const uint8_t *)terms_of(op)) / (Py_ssize_t)sizeof(term_t) >= op->terms;
    for (int32_t t = 0; good && t < op->terms; t++) {
        const term_t *term = terms_of(op) + t;
        good = term->operand >= 0 && term->operand < operands && term->dtype >= 0 && term->dtype < DTYPES;
    }
    return good;
}

/* Notes that an operand has elements of so many bytes, if it is an input. */
static void note_width(int32_t *width, int32_t inputs, int32_t operand, int bytes)
{
    if (operand < inputs && width[operand] < bytes) width[operand] = bytes;
}

/* Whether the inputs have so many elements; those that no operation takes have a width of 0. */
static int long_enough(const Py_buffer *views, const int32_t *width, int32_t inputs, Py_ssize_t elements)
{
    for (int32_t i = 0; i < inputs; i++)
        if (width[i] && views[i].len / width[i] < elements) return 0;
    return 1;
}

static int does_not_fit(const char *what)
{
    PyErr_Format(PyExc_ValueError, "%s does not fit its buffers", what);
    return 0;
}

/* A new module, told by its `plain` to use the processor's instructions where there are any. */
static PyObject *module_of(PyModuleDef *definition, PyObject *(*plain)(PyObject *, PyObject *))
{
    PyObject *module = PyModule_Create(definition), *done = module ? plain(module, Py_False) : NULL;
    if (!done) {
        Py_XDECREF(module);
        return NULL;
    }
    Py_DECREF(done);
    return module;
}

#endif
