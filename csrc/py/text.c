/* text.c - text that leaves in sentences: valid UTF-8 and one line, whatever it quotes.
 *
 * A file name that is no UTF-8 is a str with halves of surrogate pairs in Python, and bytes in C. Neither can be sent:
 * a worker of Spark's that tries hangs its job. Such bytes, and what would break a line, become escapes: caf\xe9. */
#include "py/py.h"

#include "base/alloc.h"

#include <stdio.h>
#include <string.h>

#define LONGEST 6 /* \ud800 */

/* Control characters, line and paragraph separators, halves of surrogate pairs. */
static int is_awkward(Py_UCS4 c) {
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x2028 || c == 0x2029 || (c >= 0xd800 && c < 0xe000);
}

/* `c` as repr() would spell it; U+DC80 to U+DCFF are how Python keeps bytes of file names. */
static int escape(char out[LONGEST + 1], Py_UCS4 c) {
    if (c == '\n') return snprintf(out, LONGEST + 1, "\\n");
    if (c == '\r') return snprintf(out, LONGEST + 1, "\\r");
    if (c == '\t') return snprintf(out, LONGEST + 1, "\\t");
    if (c < 0x100) return snprintf(out, LONGEST + 1, "\\x%02x", (unsigned)(c & 0xff));
    if (c >= 0xdc80 && c <= 0xdcff) return snprintf(out, LONGEST + 1, "\\x%02x", (unsigned)(c & 0xff));
    return snprintf(out, LONGEST + 1, "\\u%04x", (unsigned)(c & 0xffff));
}

static PyObject *escaped(PyObject *text, Py_ssize_t length, Py_ssize_t awkward) {
    Py_UCS4 *made;
    if (fs_alloc(&made, (size_t)(length + awkward * (LONGEST - 1)), sizeof *made) != FS_OK) return PyErr_NoMemory();
    Py_ssize_t n = 0;
    for (Py_ssize_t i = 0; i < length; i++) {
        const Py_UCS4 c = PyUnicode_ReadChar(text, i);
        char spelt[LONGEST + 1];
        const int count = is_awkward(c) ? escape(spelt, c) : 0;
        for (int k = 0; k < count; k++) made[n++] = (Py_UCS4)spelt[k];
        if (!count) made[n++] = c;
    }
    int order = PY_LITTLE_ENDIAN ? -1 : 1;
    PyObject *result = PyUnicode_DecodeUTF32((const char *)made, n * (Py_ssize_t)sizeof *made, NULL, &order);
    fs_free(made);
    return result;
}

PyObject *fs_py_plain(PyObject *text) {
    if (!PyUnicode_Check(text)) {
        PyErr_Format(PyExc_TypeError, "text must be str, not %R", (PyObject *)Py_TYPE(text));
        return NULL;
    }
    const Py_ssize_t length = PyUnicode_GetLength(text);
    Py_ssize_t awkward = 0;
    for (Py_ssize_t i = 0; i < length; i++) awkward += is_awkward(PyUnicode_ReadChar(text, i));
    return awkward ? escaped(text, length, awkward) : Py_NewRef(text);
}

PyObject *fs_py_text(const char *bytes) {
    PyObject *text = PyUnicode_DecodeUTF8(bytes, (Py_ssize_t)strlen(bytes), "backslashreplace");
    PyObject *plain = text ? fs_py_plain(text) : NULL;
    Py_XDECREF(text);
    return plain;
}

const char fs_py_plain_text_doc[] = PyDoc_STR(
    "plain_text(text)\n--\n\n"
    "The text as one line of valid UTF-8: control characters, line separators and halves of surrogate pairs,\n"
    "as which Python has bytes of file names that are no UTF-8, become escapes such as \\\\n and \\\\xe9.");

PyObject *fs_py_plain_text(PyObject *Py_UNUSED(module), PyObject *text) { return fs_py_plain(text); }
