/*
 * The calls into wasmtime that every request makes, and the way back from wasm into Python: what calls.py does by
 * ctypes, in C, since there each of them costs as much as the engine's own part of it; and a request's head, where it
 * is plain. Same names, same behaviour;
 * docs/adr/0016-hot-path.md has the numbers. Nothing is linked: wasmtime's functions are looked up in the library
 * that wasmtime-py has loaded, and their prototypes are below.
 *
 * Source: wasmtime C API headers wasmtime/{async,store,instance,func,extern,val}.h, version 50.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "guest memory is little-endian, and is read as it is; without this file calls.py does the same"
#endif

enum { KIND_I32 = 0, EXTERN_FUNC = 0, EXTERN_MEMORY = 3, MAX_PARAMS = 12 };
enum { IDLE_TICKS = 200 };
enum { DONE = 0, FAILED = 1, PENDING = 2, MISSING = 3 };
/* calls.REVISION: what was compiled from an older file is not used */
enum { REVISION = 2 };
/* the steps of an exchange, see calls.INSTANTIATE */
enum { INSTANTIATE = 0, INITIALIZE = 1, ALLOC = 2, HANDLE = 3, START = 4, ANSWERED = 5 };

typedef struct {
    uint8_t kind;
    uint64_t of[3];
} extern_t;

typedef struct {
    uint8_t kind;
    uint64_t of[3];
} val_t;

/* capi.Frame */
typedef struct {
    uint64_t instance[2];
    extern_t found;
    extern_t memory;
    void *trap;
    void *error;
    val_t args[2];
    val_t results[1];
} frame_t;

static struct {
    void *(*store_new)(void *, void *, void *);
    void *(*store_context)(void *);
    void (*store_limiter)(void *, int64_t, int64_t, int64_t, int64_t, int64_t);
    void (*store_delete)(void *);
    void (*set_epoch_deadline)(void *, uint64_t);
    void *(*yield_and_update)(void *, uint64_t);
    void *(*instantiate)(void *, void *, void *, void *, void *);
    bool (*export_get)(void *, void *, const char *, size_t, void *);
    void *(*func_call)(void *, void *, void *, size_t, void *, size_t, void *, void *);
    bool (*future_poll)(void *);
    void (*future_delete)(void *);
    bool (*caller_export_get)(void *, const char *, size_t, void *);
    uint8_t *(*memory_data)(void *, void *);
    size_t (*memory_data_size)(void *, void *);
    void *(*trap_new)(const char *, size_t);
    void (*increment_epoch)(void *);
} wasmtime;

static const struct {
    const char *name;
    void *at;
} SYMBOLS[] = {
    {"wasmtime_store_new", &wasmtime.store_new},
    {"wasmtime_store_context", &wasmtime.store_context},
    {"wasmtime_store_limiter", &wasmtime.store_limiter},
    {"wasmtime_store_delete", &wasmtime.store_delete},
    {"wasmtime_context_set_epoch_deadline", &wasmtime.set_epoch_deadline},
    {"wasmtime_context_epoch_deadline_async_yield_and_update", &wasmtime.yield_and_update},
    {"wasmtime_instance_pre_instantiate_async", &wasmtime.instantiate},
    {"wasmtime_instance_export_get", &wasmtime.export_get},
    {"wasmtime_func_call_async", &wasmtime.func_call},
    {"wasmtime_call_future_poll", &wasmtime.future_poll},
    {"wasmtime_call_future_delete", &wasmtime.future_delete},
    {"wasmtime_caller_export_get", &wasmtime.caller_export_get},
    {"wasmtime_memory_data", &wasmtime.memory_data},
    {"wasmtime_memory_data_size", &wasmtime.memory_data_size},
    {"wasmtime_trap_new", &wasmtime.trap_new},
    {"wasmtime_engine_increment_epoch", &wasmtime.increment_epoch},
};

/* The guest whose slice runs on this thread; borrowed, the slice's caller holds it. */
static __thread PyObject *current_guest;

static PyObject *memory_fault;
static PyObject *str_memory, *str_failure, *str_bind_memory, *str_host;

/* --- integers that are addresses -------------------------------------------------------------------------------- */

static bool pointer_of(PyObject *number, void **out)
{
    *out = PyLong_AsVoidPtr(number);
    return *out != NULL || !PyErr_Occurred();
}

static bool n_arguments(const char *name, Py_ssize_t given, Py_ssize_t wanted)
{
    if (given == wanted)
        return true;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments, %zd given", name, wanted, given);
    return false;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* --- a guest's memory ------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    void *context;
    void *handle;
    uint8_t *base;
    uint64_t size; /* a lower bound: memories only grow, and never move */
} Memory;

static PyTypeObject MemoryType;

static PyObject *memory_new_at(void *context, void *handle)
{
    Memory *self = PyObject_New(Memory, &MemoryType);
    if (self != NULL) {
        self->context = context;
        self->handle = handle;
        self->base = wasmtime.memory_data(context, handle);
        self->size = wasmtime.memory_data_size(context, handle);
    }
    return (PyObject *)self;
}

/* Whether *length* bytes at *ptr* are inside; raises MemoryFaultError otherwise. Both come from unsigned integers. */
static bool inside(Memory *self, uint64_t ptr, uint64_t length)
{
    if (ptr <= self->size && length <= self->size - ptr)
        return true;
    self->size = wasmtime.memory_data_size(self->context, self->handle);
    if (ptr <= self->size && length <= self->size - ptr)
        return true;
    PyErr_SetNone(memory_fault);
    return false;
}

static bool unsigned_of(PyObject *number, uint64_t *out)
{
    *out = PyLong_AsUnsignedLongLong(number);
    return *out != (uint64_t)-1 || !PyErr_Occurred();
}

static PyObject *memory_size(Memory *self, PyObject *Py_UNUSED(ignored))
{
    self->size = wasmtime.memory_data_size(self->context, self->handle);
    return PyLong_FromUnsignedLongLong(self->size);
}

static PyObject *memory_read(Memory *self, PyObject *const *args, Py_ssize_t n)
{
    uint64_t ptr, length;
    if (!n_arguments("read", n, 2) || !unsigned_of(args[0], &ptr) || !unsigned_of(args[1], &length) ||
        !inside(self, ptr, length))
        return NULL;
    return PyBytes_FromStringAndSize((const char *)self->base + ptr, (Py_ssize_t)length);
}

static PyObject *memory_write(Memory *self, PyObject *const *args, Py_ssize_t n)
{
    uint64_t ptr;
    Py_buffer payload;
    if (!n_arguments("write", n, 2) || !unsigned_of(args[0], &ptr))
        return NULL;
    if (PyObject_GetBuffer(args[1], &payload, PyBUF_SIMPLE) < 0)
        return NULL;
    bool fits = inside(self, ptr, (uint64_t)payload.len);
    if (fits)
        memcpy(self->base + ptr, payload.buf, (size_t)payload.len);
    PyBuffer_Release(&payload);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *memory_read_u32(Memory *self, PyObject *pointer)
{
    uint64_t ptr;
    uint32_t value;
    if (!unsigned_of(pointer, &ptr) || !inside(self, ptr, sizeof value))
        return NULL;
    memcpy(&value, self->base + ptr, sizeof value);
    return PyLong_FromUnsignedLong(value);
}

static PyObject *memory_read_u32s(Memory *self, PyObject *const *args, Py_ssize_t n)
{
    uint64_t ptr, count;
    if (!n_arguments("read_u32s", n, 2) || !unsigned_of(args[0], &ptr) || !unsigned_of(args[1], &count))
        return NULL;
    if (count > UINT32_MAX) {
        PyErr_SetNone(memory_fault);
        return NULL;
    }
    if (!inside(self, ptr, 4 * count))
        return NULL;
    PyObject *values = PyTuple_New((Py_ssize_t)count);
    for (Py_ssize_t i = 0; values != NULL && i < (Py_ssize_t)count; i++) {
        uint32_t value;
        memcpy(&value, self->base + ptr + 4 * (uint64_t)i, sizeof value);
        PyObject *number = PyLong_FromUnsignedLong(value);
        if (number == NULL)
            Py_CLEAR(values);
        else
            PyTuple_SET_ITEM(values, i, number);
    }
    return values;
}

static PyObject *write_number(Memory *self, const char *name, PyObject *const *args, Py_ssize_t n, size_t size)
{
    uint64_t ptr, value;
    if (!n_arguments(name, n, 2) || !unsigned_of(args[0], &ptr) || !unsigned_of(args[1], &value))
        return NULL;
    if (size < sizeof value && value >> (8 * size) != 0) {
        PyErr_SetString(PyExc_OverflowError, "the value is too large");
        return NULL;
    }
    if (!inside(self, ptr, size))
        return NULL;
    memcpy(self->base + ptr, &value, size);
    Py_RETURN_NONE;
}

static PyObject *memory_write_u32(Memory *self, PyObject *const *args, Py_ssize_t n)
{
    return write_number(self, "write_u32", args, n, 4);
}

static PyObject *memory_write_u64(Memory *self, PyObject *const *args, Py_ssize_t n)
{
    return write_number(self, "write_u64", args, n, 8);
}

static PyMethodDef memory_methods[] = {
    {"size", (PyCFunction)memory_size, METH_NOARGS, "Return the memory's size in bytes, now."},
    {"read", (PyCFunction)(void (*)(void))memory_read, METH_FASTCALL, "Return a copy of bytes."},
    {"write", (PyCFunction)(void (*)(void))memory_write, METH_FASTCALL, "Copy bytes into the memory."},
    {"read_u32", (PyCFunction)memory_read_u32, METH_O, "Return the u32 at a pointer."},
    {"read_u32s", (PyCFunction)(void (*)(void))memory_read_u32s, METH_FASTCALL, "Return consecutive u32."},
    {"write_u32", (PyCFunction)(void (*)(void))memory_write_u32, METH_FASTCALL, "Store a u32."},
    {"write_u64", (PyCFunction)(void (*)(void))memory_write_u64, METH_FASTCALL, "Store a u64."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject MemoryType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "faas.wasm._calls.LinearMemory",
    .tp_basicsize = sizeof(Memory),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "The GuestMemory of a live instance; see calls.LinearMemory.",
    .tp_methods = memory_methods,
};

static PyObject *memory_of_caller(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    void *context, *caller, *at;
    if (!n_arguments("memory_of_caller", n, 3) || !pointer_of(args[0], &context) || !pointer_of(args[1], &caller) ||
        !pointer_of(args[2], &at))
        return NULL;
    frame_t *frame = at;
    if (!wasmtime.caller_export_get(caller, "memory", 6, &frame->memory) || frame->memory.kind != EXTERN_MEMORY)
        Py_RETURN_NONE;
    return memory_new_at(context, frame->memory.of);
}

static PyObject *memory_of_instance(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    void *context, *at;
    if (!n_arguments("memory_of_instance", n, 2) || !pointer_of(args[0], &context) || !pointer_of(args[1], &at))
        return NULL;
    frame_t *frame = at;
    if (!wasmtime.export_get(context, frame->instance, "memory", 6, &frame->memory) ||
        frame->memory.kind != EXTERN_MEMORY)
        Py_RETURN_NONE;
    return memory_new_at(context, frame->memory.of);
}

/* --- stores and slices ------------------------------------------------------------------------------------------ */

static PyObject *store_new(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    void *engine;
    if (!n_arguments("store_new", n, 4) || !pointer_of(args[0], &engine))
        return NULL;
    int64_t memory_bytes = PyLong_AsLongLong(args[1]);
    int64_t table_elements = PyLong_AsLongLong(args[2]);
    uint64_t ticks = PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    void *store = wasmtime.store_new(engine, NULL, NULL);
    void *context = wasmtime.store_context(store);
    wasmtime.store_limiter(store, memory_bytes, table_elements, 1, -1, -1);
    wasmtime.set_epoch_deadline(context, ticks);
    wasmtime.yield_and_update(context, ticks);
    PyObject *pair = PyTuple_New(2);
    PyObject *first = PyLong_FromVoidPtr(store), *second = PyLong_FromVoidPtr(context);
    if (pair == NULL || first == NULL || second == NULL) {
        Py_XDECREF(pair);
        Py_XDECREF(first);
        Py_XDECREF(second);
        wasmtime.store_delete(store);
        return NULL;
    }
    PyTuple_SET_ITEM(pair, 0, first);
    PyTuple_SET_ITEM(pair, 1, second);
    return pair;
}

/* Unmaps and zeroes: not with the GIL held. */
static PyObject *store_delete(PyObject *Py_UNUSED(module), PyObject *pointer)
{
    void *store;
    if (!pointer_of(pointer, &store))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    wasmtime.store_delete(store);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* Run one slice of *guest* without the GIL, or the ticker could never end it; the future goes when it is done. */
static bool run_slice(PyObject *guest, void *future, uint64_t *took_ns)
{
    bool done;
    PyObject *before = current_guest;
    current_guest = guest;
    Py_BEGIN_ALLOW_THREADS
    uint64_t began = now_ns();
    done = wasmtime.future_poll(future);
    *took_ns = now_ns() - began;
    if (done)
        wasmtime.future_delete(future);
    Py_END_ALLOW_THREADS
    current_guest = before;
    return done;
}

/* (DONE or FAILED, ns, 0), or (PENDING, ns, future); without *now*, nothing has run yet. */
static PyObject *first_slice(PyObject *guest, frame_t *frame, void *future, bool now)
{
    uint64_t took_ns = 0;
    int status = PENDING;
    if (now && run_slice(guest, future, &took_ns)) {
        status = frame->trap != NULL || frame->error != NULL ? FAILED : DONE;
        future = NULL;
    }
    PyObject *answer = PyTuple_New(3);
    if (answer == NULL)
        return NULL;
    PyTuple_SET_ITEM(answer, 0, PyLong_FromLong(status));
    PyTuple_SET_ITEM(answer, 1, PyLong_FromUnsignedLongLong(took_ns));
    PyTuple_SET_ITEM(answer, 2, PyLong_FromVoidPtr(future));
    return answer;
}

static PyObject *instantiate(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    void *context, *at, *pre;
    if (!n_arguments("instantiate", n, 5) || !pointer_of(args[1], &context) || !pointer_of(args[2], &at) ||
        !pointer_of(args[3], &pre))
        return NULL;
    frame_t *frame = at;
    void *future = wasmtime.instantiate(pre, context, frame->instance, &frame->trap, &frame->error);
    return first_slice(args[0], frame, future, args[4] == Py_True);
}

static PyObject *call(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    void *context, *at;
    char *name;
    Py_ssize_t n_name;
    if (!n_arguments("call", n, 7) || !pointer_of(args[1], &context) || !pointer_of(args[2], &at))
        return NULL;
    if (PyBytes_AsStringAndSize(args[3], &name, &n_name) < 0)
        return NULL;
    if (!PyTuple_Check(args[4]) || PyTuple_GET_SIZE(args[4]) > 2) {
        PyErr_SetString(PyExc_TypeError, "call() takes a tuple of at most two i32");
        return NULL;
    }
    frame_t *frame = at;
    Py_ssize_t n_args = PyTuple_GET_SIZE(args[4]);
    for (Py_ssize_t i = 0; i < n_args; i++) {
        unsigned long value = PyLong_AsUnsignedLongMask(PyTuple_GET_ITEM(args[4], i));
        if (value == (unsigned long)-1 && PyErr_Occurred())
            return NULL;
        frame->args[i].kind = KIND_I32;
        frame->args[i].of[0] = (uint32_t)value;
    }
    long n_results = PyLong_AsLong(args[5]);
    if (n_results < 0 || n_results > 1) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "call() takes 0 or 1 results");
        return NULL;
    }
    if (!wasmtime.export_get(context, frame->instance, name, (size_t)n_name, &frame->found) ||
        frame->found.kind != EXTERN_FUNC)
        Py_RETURN_NONE;
    void *future = wasmtime.func_call(context, frame->found.of, frame->args, (size_t)n_args, frame->results,
                                      (size_t)n_results, &frame->trap, &frame->error);
    return first_slice(args[0], frame, future, args[6] == Py_True);
}

/* --- all that a plain request needs of its guest, in one go ------------------------------------------------------ */

typedef struct {
    void *context;
    frame_t *frame;
    void *future; /* of the step that is not done */
    uint64_t last_ns;
    uint64_t total_ns;
    uint64_t value; /* of the last call */
} run_t;

/* The functions here run without the GIL. */
static int run_first(run_t *run, void *future)
{
    uint64_t began = now_ns();
    bool done = wasmtime.future_poll(future);
    run->last_ns = now_ns() - began;
    run->total_ns += run->last_ns;
    if (!done) {
        run->future = future;
        return PENDING;
    }
    wasmtime.future_delete(future);
    return run->frame->trap != NULL || run->frame->error != NULL ? FAILED : DONE;
}

static int run_call(run_t *run, const char *name, uint64_t first, uint64_t second, size_t n_args, size_t n_results)
{
    frame_t *frame = run->frame;
    if (!wasmtime.export_get(run->context, frame->instance, name, strlen(name), &frame->found) ||
        frame->found.kind != EXTERN_FUNC)
        return MISSING;
    frame->args[0].kind = frame->args[1].kind = KIND_I32;
    frame->args[0].of[0] = (uint32_t)first;
    frame->args[1].of[0] = (uint32_t)second;
    int status = run_first(run, wasmtime.func_call(run->context, frame->found.of, frame->args, n_args, frame->results,
                                                   n_results, &frame->trap, &frame->error));
    if (status == DONE && n_results != 0) {
        const val_t *result = frame->results;
        run->value = result->kind == KIND_I32 ? (uint32_t)result->of[0] : result->of[0];
    }
    return status;
}

/* Where *length* bytes at *ptr* of the guest's memory are, NULL if they are not inside. */
static uint8_t *run_memory(run_t *run, uint64_t ptr, uint64_t length)
{
    extern_t memory;
    if (!wasmtime.export_get(run->context, run->frame->instance, "memory", 6, &memory) ||
        memory.kind != EXTERN_MEMORY)
        return NULL;
    uint64_t size = wasmtime.memory_data_size(run->context, memory.of);
    if (ptr > size || length > size - ptr)
        return NULL;
    return wasmtime.memory_data(run->context, memory.of) + ptr;
}

/* See calls.exchange. */
static PyObject *exchange(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    run_t run = {0};
    void *at, *pre;
    char *message = NULL;
    Py_ssize_t n_message = 0;
    uint64_t max_bytes = 0;
    if (!n_arguments("exchange", n, 7) || !pointer_of(args[1], &run.context) || !pointer_of(args[2], &at) ||
        !pointer_of(args[3], &pre))
        return NULL;
    bool initialize = args[4] == Py_True, is_command = args[5] == Py_None;
    if (!is_command && PyBytes_AsStringAndSize(args[5], &message, &n_message) < 0)
        return NULL;
    if (!unsigned_of(args[6], &max_bytes))
        return NULL;
    run.frame = at;
    int step = INSTANTIATE, status = DONE;
    const uint8_t *answer = NULL;
    uint64_t n_answer = 0, ready_ns = 0;
    PyObject *before = current_guest;
    current_guest = args[0];
    Py_BEGIN_ALLOW_THREADS
    uint64_t began = now_ns();
    if (pre != NULL)
        status = run_first(&run, wasmtime.instantiate(pre, run.context, run.frame->instance, &run.frame->trap,
                                                      &run.frame->error));
    if (status == DONE && initialize) {
        step = INITIALIZE;
        status = run_call(&run, "_initialize", 0, 0, 0, 0);
    }
    ready_ns = now_ns() - began;
    if (status == DONE && is_command) {
        step = START;
        status = run_call(&run, "_start", 0, 0, 0, 0);
    } else if (status == DONE) {
        step = ALLOC;
        status = run_call(&run, "faas_alloc", (uint64_t)n_message, 0, 1, 1);
        uint64_t ptr = run.value;
        uint8_t *to = status == DONE && ptr != 0 ? run_memory(&run, ptr, (uint64_t)n_message) : NULL;
        if (to != NULL) {
            memcpy(to, message, (size_t)n_message);
            step = HANDLE;
            status = run_call(&run, "faas_handle", ptr, (uint64_t)n_message, 2, 1);
            n_answer = run.value & UINT32_MAX;
            if (status == DONE && n_answer <= max_bytes)
                answer = run_memory(&run, run.value >> 32, n_answer);
        }
    }
    Py_END_ALLOW_THREADS
    current_guest = before;
    PyObject *value;
    if (answer != NULL) {
        step = ANSWERED;
        value = PyBytes_FromStringAndSize((const char *)answer, (Py_ssize_t)n_answer);
    } else {
        value = PyLong_FromUnsignedLongLong(status == PENDING ? (uint64_t)(uintptr_t)run.future : run.value);
    }
    if (value == NULL)
        return NULL;
    return Py_BuildValue("iiKKKN", step, status, (unsigned long long)run.last_ns, (unsigned long long)run.total_ns,
                         (unsigned long long)ready_ns, value);
}

static PyObject *poll(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    void *future;
    uint64_t took_ns;
    if (!n_arguments("poll", n, 2) || !pointer_of(args[1], &future))
        return NULL;
    return PyBool_FromLong(run_slice(args[0], future, &took_ns));
}

static PyObject *future_delete(PyObject *Py_UNUSED(module), PyObject *pointer)
{
    void *future;
    if (!pointer_of(pointer, &future))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    wasmtime.future_delete(future);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* --- a request's head ---------------------------------------------------------------------------------------------- */

enum { MAX_PLAIN_BYTES = 4096, MAX_PLAIN_HEADERS = 32 };

/* What a field name may consist of (RFC 9110 5.6.2), in lower case; 0 for anything else. */
static unsigned char token[256];

static void fill_token(void)
{
    for (const char *c = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"; *c != 0; c++)
        token[(unsigned char)*c] = (unsigned char)*c;
    for (int c = 'A'; c <= 'Z'; c++)
        token[c] = (unsigned char)(c - 'A' + 'a');
}

/* Fields that say something about the connection or a body, or decide what the parser does next: not plain. */
static bool is_special(const unsigned char *name, size_t n)
{
    static const char *const NAMES[] = {"connection",       "content-length",    "content-encoding", "expect",
                                        "proxy-connection", "transfer-encoding", "upgrade"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        if (strlen(NAMES[i]) == n && memcmp(NAMES[i], name, n) == 0)
            return true;
    return false;
}

/* Add one field, its line without the line's end, to *headers*; 0 if it is not plain, -1 with an exception set. */
static int plain_field(const unsigned char *line, size_t n, PyObject *headers)
{
    unsigned char name[64];
    size_t at = 0;
    for (; at < n && line[at] != ':'; at++)
        if (at == sizeof name || (name[at] = token[line[at]]) == 0)
            return 0;
    if (at == 0 || at == n || is_special(name, at))
        return 0;
    const unsigned char *value = line + at + 1, *end = line + n;
    while (value < end && (*value == ' ' || *value == '\t'))
        value++;
    while (value < end && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    for (const unsigned char *c = value; c < end; c++)
        if ((*c < 0x20 && *c != '\t') || *c > 0x7e)
            return 0;
    PyObject *key = PyUnicode_DecodeASCII((const char *)name, (Py_ssize_t)at, NULL);
    PyObject *text = PyUnicode_DecodeASCII((const char *)value, end - value, NULL);
    int done = -1;
    if (key != NULL && text != NULL) {
        done = PyDict_Contains(headers, key);
        if (done >= 0)
            done = done != 0 ? 0 : PyDict_SetItem(headers, key, text) < 0 ? -1 : 1;
    }
    Py_XDECREF(key);
    Py_XDECREF(text);
    return done;
}

/* See calls.plain_head. */
static PyObject *plain_head(PyObject *Py_UNUSED(module), PyObject *head)
{
    static const char *const METHODS[] = {"GET ", "HEAD ", "DELETE ", "POST ", "PUT ", "PATCH "};
    static const char VERSION[] = " HTTP/1.1\r\n";
    char *bytes;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(head, &bytes, &size) < 0)
        return NULL;
    if (size > MAX_PLAIN_BYTES || size < 4 || memcmp(bytes + size - 4, "\r\n\r\n", 4) != 0)
        Py_RETURN_NONE;
    const unsigned char *at = (const unsigned char *)bytes, *end = at + size - 2;
    size_t n_method = 0;
    for (size_t i = 0; i < sizeof METHODS / sizeof *METHODS && n_method == 0; i++)
        if (strncmp(bytes, METHODS[i], strlen(METHODS[i])) == 0)
            n_method = strlen(METHODS[i]) - 1;
    const unsigned char *target = at + n_method + 1, *after = target;
    if (n_method == 0 || *target != '/')
        Py_RETURN_NONE;
    while (*after > 0x20 && *after < 0x7f && *after != '#')
        after++;
    if ((size_t)(end - after) < sizeof VERSION - 1 || memcmp(after, VERSION, sizeof VERSION - 1) != 0)
        Py_RETURN_NONE;
    PyObject *headers = PyDict_New();
    int done = headers == NULL ? -1 : 1, n_headers = 0;
    at = after + sizeof VERSION - 1;
    while (done > 0 && at < end) {
        const unsigned char *line_end = memchr(at, '\r', (size_t)(end - at));
        if (line_end == NULL || line_end[1] != '\n' || ++n_headers > MAX_PLAIN_HEADERS) {
            done = 0;
            break;
        }
        done = plain_field(at, (size_t)(line_end - at), headers);
        at = line_end + 2;
    }
    PyObject *made = NULL;
    if (done > 0) {
        int has_host = PyDict_Contains(headers, str_host);
        if (has_host > 0)
            made = Py_BuildValue("s#s#O", bytes, (Py_ssize_t)n_method, (const char *)target,
                                 (Py_ssize_t)(after - target), headers);
        done = has_host;
    }
    Py_XDECREF(headers);
    if (done == 0)
        Py_RETURN_NONE;
    return made;
}

/* --- the ticker -------------------------------------------------------------------------------------------------- */

/* See calls.Ticker. This thread never has the GIL: it does not take a turn of Python's for each tick. */
typedef struct {
    PyObject_HEAD
    void *engine;
    struct timespec tick;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t awoken;
    atomic_bool woken;
    atomic_bool asleep;  /* written under the lock */
    atomic_bool stopped; /* written under the lock */
    bool started;
} Ticker;

static void *ticker_run(void *at)
{
    Ticker *self = at;
    int left = 0;

    while (!atomic_load(&self->stopped)) {
        if (atomic_exchange(&self->woken, false)) {
            left = IDLE_TICKS;
        } else if (left == 0) {
            pthread_mutex_lock(&self->lock);
            atomic_store(&self->asleep, true);
            /* A wake() before this look at woken is seen here, a later one sees asleep and waits for the lock. */
            while (!atomic_load(&self->woken) && !atomic_load(&self->stopped))
                pthread_cond_wait(&self->awoken, &self->lock);
            atomic_store(&self->asleep, false);
            pthread_mutex_unlock(&self->lock);
            continue;
        }
        left--;
        nanosleep(&self->tick, NULL);
        wasmtime.increment_epoch(self->engine);
    }
    return NULL;
}

static PyObject *ticker_wake(Ticker *self, PyObject *Py_UNUSED(ignored))
{
    if (!atomic_load_explicit(&self->woken, memory_order_relaxed))
        atomic_store(&self->woken, true);
    if (atomic_load(&self->asleep)) {
        pthread_mutex_lock(&self->lock);
        pthread_cond_signal(&self->awoken);
        pthread_mutex_unlock(&self->lock);
    }
    Py_RETURN_NONE;
}

static PyObject *ticker_stop(Ticker *self, PyObject *Py_UNUSED(ignored))
{
    if (self->started) {
        self->started = false;
        pthread_mutex_lock(&self->lock);
        atomic_store(&self->stopped, true);
        pthread_cond_signal(&self->awoken);
        pthread_mutex_unlock(&self->lock);
        Py_BEGIN_ALLOW_THREADS
        pthread_join(self->thread, NULL);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static PyObject *ticker_asleep(Ticker *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(atomic_load(&self->asleep));
}

static int ticker_init(Ticker *self, PyObject *args, PyObject *kwargs)
{
    PyObject *engine;
    double tick_s;
    static char *names[] = {"engine", "tick_s", NULL};
    if (self->started) {
        PyErr_SetString(PyExc_RuntimeError, "it runs already");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Od", names, &engine, &tick_s) ||
        !pointer_of(engine, &self->engine))
        return -1;
    self->tick.tv_sec = (time_t)tick_s;
    self->tick.tv_nsec = (long)((tick_s - (double)self->tick.tv_sec) * 1e9);
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->awoken, NULL);
    atomic_store(&self->stopped, false);
    int error = pthread_create(&self->thread, NULL, ticker_run, self);
    if (error != 0) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    pthread_setname_np(self->thread, "faas-ticker");
    self->started = true;
    return 0;
}

static void ticker_dealloc(Ticker *self)
{
    Py_XDECREF(ticker_stop(self, NULL));
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef ticker_methods[] = {
    {"wake", (PyCFunction)ticker_wake, METH_NOARGS, "See calls.Ticker.wake."},
    {"stop", (PyCFunction)ticker_stop, METH_NOARGS, "See calls.Ticker.stop."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef ticker_attributes[] = {
    {"asleep", (getter)ticker_asleep, NULL, "See calls.Ticker.asleep.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject TickerType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "faas.wasm._calls.Ticker",
    .tp_basicsize = sizeof(Ticker),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "See calls.Ticker.",
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)ticker_init,
    .tp_dealloc = (destructor)ticker_dealloc,
    .tp_methods = ticker_methods,
    .tp_getset = ticker_attributes,
};

/* --- from wasm into Python -------------------------------------------------------------------------------------- */

typedef struct {
    PyObject *handler;
    int n_params;
    char params[MAX_PARAMS];
} host_function;

static void *trap_with_failure(PyObject *guest)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyObject *failure = PyErr_GetRaisedException();
#else
    PyObject *type, *failure, *trace;
    PyErr_Fetch(&type, &failure, &trace);
    PyErr_NormalizeException(&type, &failure, &trace);
    if (trace != NULL)
        PyException_SetTraceback(failure, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
#endif
    if (PyObject_SetAttr(guest, str_failure, failure) < 0)
        PyErr_WriteUnraisable(guest);
    Py_XDECREF(failure);
    return wasmtime.trap_new("host", 4);
}

static void *host_call(void *env, void *caller, uint64_t *raw, size_t Py_UNUSED(n))
{
    PyGILState_STATE gil = PyGILState_Ensure();
    host_function *function = env;
    PyObject *guest = current_guest;
    PyObject *argv[MAX_PARAMS + 2], **args = argv + 1; /* argv[0] is vectorcall's to use */
    PyObject *answer = NULL;
    void *trap = NULL;
    int n_made = 1;

    Py_INCREF(guest);
    args[0] = guest;
    PyObject *memory = PyObject_GetAttr(guest, str_memory);
    if (memory == NULL)
        goto failed;
    Py_DECREF(memory);
    if (memory == Py_None) {
        PyObject *at = PyLong_FromVoidPtr(caller);
        PyObject *bound = at == NULL ? NULL : PyObject_CallMethodOneArg(guest, str_bind_memory, at);
        Py_XDECREF(at);
        if (bound == NULL)
            goto failed;
        Py_DECREF(bound);
    }
    for (; n_made <= function->n_params; n_made++) {
        const uint64_t *value = raw + 2 * (n_made - 1);
        args[n_made] = function->params[n_made - 1] == 'I' ? PyLong_FromUnsignedLongLong(*value)
                                                          : PyLong_FromUnsignedLong(*(const uint32_t *)value);
        if (args[n_made] == NULL)
            goto failed;
    }
    answer = PyObject_Vectorcall(function->handler, args, (size_t)n_made | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    if (answer == NULL)
        goto failed;
    if (answer != Py_None) {
        unsigned long value = PyLong_AsUnsignedLongMask(answer);
        if (value == (unsigned long)-1 && PyErr_Occurred())
            goto failed;
        *(uint32_t *)raw = (uint32_t)value;
    }
    goto end;
failed:
    trap = trap_with_failure(guest);
end:
    Py_XDECREF(answer);
    while (n_made > 0)
        Py_DECREF(args[--n_made]);
    PyGILState_Release(gil);
    return trap;
}

static void free_host_function(PyObject *capsule)
{
    host_function *function = PyCapsule_GetPointer(capsule, NULL);
    Py_XDECREF(function->handler);
    PyMem_Free(function);
}

/* (callback, env, what to keep alive as long as the linker) */
static PyObject *host_callback(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    Py_ssize_t n_params;
    if (!n_arguments("host_callback", n, 2))
        return NULL;
    const char *params = PyUnicode_AsUTF8AndSize(args[1], &n_params);
    if (params == NULL)
        return NULL;
    if (n_params > MAX_PARAMS) {
        PyErr_SetString(PyExc_ValueError, "a host function has too many parameters");
        return NULL;
    }
    host_function *function = PyMem_Malloc(sizeof *function);
    if (function == NULL)
        return PyErr_NoMemory();
    Py_INCREF(args[0]);
    function->handler = args[0];
    function->n_params = (int)n_params;
    memcpy(function->params, params, (size_t)n_params);
    PyObject *keep = PyCapsule_New(function, NULL, free_host_function);
    if (keep == NULL) {
        Py_DECREF(args[0]);
        PyMem_Free(function);
        return NULL;
    }
    return Py_BuildValue("NNN", PyLong_FromVoidPtr((void *)host_call), PyLong_FromVoidPtr(function), keep);
}

static PyObject *current(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (current_guest == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "no guest runs on this thread");
        return NULL;
    }
    Py_INCREF(current_guest);
    return current_guest;
}

/* --- the module ------------------------------------------------------------------------------------------------- */

static PyObject *open_library(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    if (!n_arguments("open_library", n, 2))
        return NULL;
    const char *path = PyUnicode_AsUTF8(args[0]);
    if (path == NULL)
        return NULL;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        PyErr_SetString(PyExc_OSError, dlerror());
        return NULL;
    }
    for (size_t i = 0; i < sizeof SYMBOLS / sizeof *SYMBOLS; i++) {
        void *symbol = dlsym(library, SYMBOLS[i].name);
        if (symbol == NULL) {
            PyErr_Format(PyExc_OSError, "%s has no %s", path, SYMBOLS[i].name);
            return NULL;
        }
        memcpy(SYMBOLS[i].at, &symbol, sizeof symbol);
    }
    Py_INCREF(args[1]);
    Py_XSETREF(memory_fault, args[1]);
    Py_RETURN_NONE;
}

#define FAST(name, text) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, text}

static PyMethodDef functions[] = {
    FAST(open_library, "Look wasmtime's functions up in a library; to be called once, before all others."),
    FAST(store_new, "See calls.store_new."),
    {"store_delete", store_delete, METH_O, "See calls.store_delete."},
    FAST(instantiate, "See calls.instantiate."),
    FAST(call, "See calls.call."),
    FAST(exchange, "See calls.exchange."),
    FAST(poll, "See calls.poll."),
    {"future_delete", future_delete, METH_O, "See calls.future_delete."},
    FAST(memory_of_caller, "See calls.memory_of_caller."),
    FAST(memory_of_instance, "See calls.memory_of_instance."),
    FAST(host_callback, "See calls.host_callback."),
    {"plain_head", plain_head, METH_O, "See calls.plain_head."},
    {"current", current, METH_NOARGS, "See calls.current."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "faas.wasm._calls",
    .m_doc = "calls.py's functions in C.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__calls(void)
{
    if (PyType_Ready(&MemoryType) < 0 || PyType_Ready(&TickerType) < 0)
        return NULL;
    fill_token();
    str_memory = PyUnicode_InternFromString("memory");
    str_failure = PyUnicode_InternFromString("failure");
    str_bind_memory = PyUnicode_InternFromString("bind_memory");
    str_host = PyUnicode_InternFromString("host");
    if (str_memory == NULL || str_failure == NULL || str_bind_memory == NULL || str_host == NULL)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && (PyModule_AddIntConstant(made, "FRAME_BYTES", sizeof(frame_t)) < 0 ||
                         PyModule_AddIntConstant(made, "REVISION", REVISION) < 0 ||
                         PyModule_AddObjectRef(made, "Ticker", (PyObject *)&TickerType) < 0))
        Py_CLEAR(made);
    return made;
}
