/*
 * Component values: wasmtime's wasmtime_component_val_t to Python objects and back, driven by WIT types, and the way
 * from a component into a Python host function. values.py has the same by ctypes; same names, same behaviour.
 * Nothing is linked: wasmtime's functions are looked up in the library that wasmtime-py has loaded.
 *
 * Source: wasmtime C API headers wasmtime/component/{func,instance,linker,val}.h and wasmtime/async.h, version 50.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "without this file values.py does the same"
#endif

enum { MAX_PARAMS = 12, MAX_ARGS = 4, MAX_ROOMS = 2 /* as engine.MAX_ROOMS */, FIRST_SLOTS = 16 };

/* wasmtime_component_valkind_t */
enum kind {
    K_BOOL, K_S8, K_U8, K_S16, K_U16, K_S32, K_U32, K_S64, K_U64, K_F32, K_F64, K_CHAR, K_STRING, K_LIST, K_RECORD,
    K_TUPLE, K_VARIANT, K_ENUM, K_OPTION, K_RESULT, K_FLAGS, K_RESOURCE, N_KINDS,
};

typedef struct {
    size_t size;
    char *data;
} name_t;

typedef struct value value_t;

typedef struct {
    size_t size;
    value_t *data;
} values_t;

/* wasmtime_component_val_t */
struct value {
    uint8_t kind;
    union {
        bool boolean;
        uint8_t u8;
        int8_t s8;
        uint16_t u16;
        int16_t s16;
        uint32_t u32;
        int32_t s32;
        uint64_t u64;
        int64_t s64;
        float f32;
        double f64;
        name_t name;     /* string, enum */
        values_t values; /* list, tuple */
        struct {
            size_t size;
            void *data;
        } vec; /* record, flags */
        struct {
            name_t name;
            value_t *payload;
        } variant;
        struct {
            bool is_ok;
            value_t *payload;
        } result;
        value_t *option;
        void *resource;
    } of;
};

typedef struct {
    name_t name;
    value_t value;
} field_t;

_Static_assert(sizeof(value_t) == 32 && sizeof(field_t) == 48, "wasmtime/component/val.h has these sizes");

typedef struct {
    void *callback, *env, *finalizer;
} continuation_t;

/* wasmtime_val_t, of integers */
typedef struct {
    uint8_t kind;
    union {
        uint32_t i32;
        uint64_t raw[3];
    } of;
} core_value_t;

/* wasmtime_extern_t */
typedef struct {
    uint8_t kind;
    uint64_t of[3];
} extern_t;

enum { CORE_I32 = 0, EXTERN_FUNC = 0 };

_Static_assert(sizeof(core_value_t) == 32 && sizeof(extern_t) == 32, "wasmtime/{val,extern}.h have these sizes");

static struct {
    void *(*context_get_data)(void *);
    void (*context_set_data)(void *, void *);
    void *(*error_new)(const char *);
    void (*bytes_new)(name_t *, size_t);
    value_t *(*value_new)(value_t *);
    void (*value_delete)(value_t *);
    void (*list_new)(values_t *, size_t);
    void (*tuple_new)(values_t *, size_t);
    void (*record_new)(void *, size_t);
    void (*flags_new)(void *, size_t);
    void *(*host_new)(bool, uint32_t, uint32_t);
    uint32_t (*host_rep)(void *);
    uint32_t (*host_type)(void *);
    bool (*host_owned)(void *);
    void (*host_delete)(void *);
    void *(*host_to_any)(void *, void *, void **);
    void *(*any_to_host)(void *, void *, void **);
    void (*error_delete)(void *);
    bool (*get_func)(void *, void *, void *, void *);
    void *(*func_call)(void *, void *, value_t *, size_t, value_t *, size_t, void *);
    uint8_t *(*memory_data)(void *, void *);
    size_t (*memory_data_size)(void *, void *);
    bool (*export_get)(void *, const void *, const char *, size_t, extern_t *);
    void *(*core_call)(void *, const void *, const core_value_t *, size_t, core_value_t *, size_t, void **, void **);
    bool (*future_poll)(void *);
    void (*future_delete)(void *);
    void (*trap_message)(const void *, name_t *);
    void (*error_message)(const void *, name_t *);
    void (*trap_delete)(void *);
    void (*bytes_delete)(name_t *);
} wasmtime;

static const struct {
    const char *name;
    void *at;
} SYMBOLS[] = {
    {"wasmtime_context_get_data", &wasmtime.context_get_data},
    {"wasmtime_context_set_data", &wasmtime.context_set_data},
    {"wasmtime_error_new", &wasmtime.error_new},
    {"wasm_byte_vec_new_uninitialized", &wasmtime.bytes_new},
    {"wasmtime_component_val_new", &wasmtime.value_new},
    {"wasmtime_component_val_delete", &wasmtime.value_delete},
    {"wasmtime_component_vallist_new_uninit", &wasmtime.list_new},
    {"wasmtime_component_valtuple_new_uninit", &wasmtime.tuple_new},
    {"wasmtime_component_valrecord_new_uninit", &wasmtime.record_new},
    {"wasmtime_component_valflags_new_uninit", &wasmtime.flags_new},
    {"wasmtime_component_resource_host_new", &wasmtime.host_new},
    {"wasmtime_component_resource_host_rep", &wasmtime.host_rep},
    {"wasmtime_component_resource_host_type", &wasmtime.host_type},
    {"wasmtime_component_resource_host_owned", &wasmtime.host_owned},
    {"wasmtime_component_resource_host_delete", &wasmtime.host_delete},
    {"wasmtime_component_resource_host_to_any", &wasmtime.host_to_any},
    {"wasmtime_component_resource_any_to_host", &wasmtime.any_to_host},
    {"wasmtime_error_delete", &wasmtime.error_delete},
    {"wasmtime_component_instance_get_func", &wasmtime.get_func},
    {"wasmtime_component_func_call_async", &wasmtime.func_call},
    {"wasmtime_memory_data", &wasmtime.memory_data},
    {"wasmtime_memory_data_size", &wasmtime.memory_data_size},
    {"wasmtime_instance_export_get", &wasmtime.export_get},
    {"wasmtime_func_call_async", &wasmtime.core_call},
    {"wasmtime_call_future_poll", &wasmtime.future_poll},
    {"wasmtime_call_future_delete", &wasmtime.future_delete},
    {"wasm_trap_message", &wasmtime.trap_message},
    {"wasmtime_error_message", &wasmtime.error_message},
    {"wasm_trap_delete", &wasmtime.trap_delete},
    {"wasm_byte_vec_delete", &wasmtime.bytes_delete},
};

static PyObject *wit_error, *trap_error;
static PyObject *str_failure, *str_value, *str_drop, *str_suspend, *str_settled, *str_store_number, *str_ok, *str_err,
    *str_room_failed;

static bool n_arguments(const char *name, Py_ssize_t given, Py_ssize_t wanted)
{
    if (given == wanted)
        return true;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments, %zd given", name, wanted, given);
    return false;
}

static bool pointer_of(PyObject *number, void **out)
{
    *out = PyLong_AsVoidPtr(number);
    return *out != NULL || !PyErr_Occurred();
}

/* --- handles ----------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *guest; /* borrowed: it has us */
    PyObject **slots; /* rep - 1 is the index; NULL: free */
    uint32_t n_slots, n_used, first_free, max;
    uint32_t *next_free;
    /* of the call that runs */
    value_t args[MAX_ARGS], results[1];
    size_t n_args;
    uint64_t func[4];
    uint64_t memory[3]; /* wasmtime_memory_t: store, core instance (0: not known), which of its memories */
    /* of the bytes that a host call returns, see values.Handles.room_is */
    struct {
        uint64_t instance[2]; /* wasmtime_instance_t: store, core instance (0: not known) */
        char name[32];
    } reallocs[MAX_ROOMS];
    void *room; /* the call that makes room; NULL: none runs */
    Py_buffer room_view; /* what goes there; obj NULL: nothing */
    extern_t room_realloc;
    core_value_t room_args[4], room_at[1];
    void *room_trap, *room_error;
    /* of the host call that waits */
    struct function *waiting;
    value_t *waiting_results;
    void *waiting_context;
} Handles;

static PyTypeObject HandlesType;

/* Takes *object*'s reference; 0 and an exception if it can't. */
static uint32_t handles_put(Handles *self, PyObject *object)
{
    if (self->n_used >= self->max) {
        Py_DECREF(object);
        PyErr_Format(trap_error, "the guest holds more than %u handles at once; drop those that it is done with",
                     self->max);
        return 0;
    }
    if (self->first_free == self->n_slots) {
        uint32_t n = self->n_slots ? 2 * self->n_slots : FIRST_SLOTS;
        PyObject **slots = PyMem_Realloc(self->slots, n * sizeof *slots);
        if (slots != NULL)
            self->slots = slots;
        uint32_t *next = slots == NULL ? NULL : PyMem_Realloc(self->next_free, n * sizeof *next);
        if (next == NULL) {
            Py_DECREF(object);
            PyErr_NoMemory();
            return 0;
        }
        self->next_free = next;
        for (uint32_t i = self->n_slots; i < n; i++) {
            slots[i] = NULL;
            next[i] = i + 1;
        }
        self->n_slots = n;
    }
    uint32_t at = self->first_free;
    self->first_free = self->next_free[at];
    self->slots[at] = object;
    self->n_used++;
    return at + 1;
}

/* A borrowed reference; NULL and an exception if there is none. */
static PyObject *handles_at(Handles *self, uint32_t rep)
{
    if (rep - 1 < self->n_slots && self->slots[rep - 1] != NULL)
        return self->slots[rep - 1];
    PyErr_Format(PyExc_LookupError, "no handle %u", rep);
    return NULL;
}

/* A new reference, out of the table. */
static PyObject *handles_take(Handles *self, uint32_t rep)
{
    PyObject *object = handles_at(self, rep);
    if (object != NULL) {
        self->slots[rep - 1] = NULL;
        self->next_free[rep - 1] = self->first_free;
        self->first_free = rep - 1;
        self->n_used--;
    }
    return object;
}

static PyObject *handles_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *guest;
    unsigned int max;
    if (!PyArg_ParseTuple(args, "OI", &guest, &max))
        return NULL;
    Handles *self = (Handles *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->guest = guest;
        self->max = max;
    }
    return (PyObject *)self;
}

static void delete_args(Handles *self)
{
    while (self->n_args > 0)
        wasmtime.value_delete(&self->args[--self->n_args]);
}

static void delete_result(Handles *self)
{
    wasmtime.value_delete(self->results);
    memset(self->results, 0, sizeof self->results);
}

static int handles_traverse(Handles *self, visitproc visit, void *arg)
{
    for (uint32_t i = 0; i < self->n_slots; i++)
        Py_VISIT(self->slots[i]);
    return 0;
}

static int handles_clear(Handles *self)
{
    for (uint32_t i = 0; i < self->n_slots; i++)
        if (self->slots[i] != NULL)
            Py_DECREF(handles_take(self, i + 1));
    return 0;
}

static void handles_dealloc(Handles *self)
{
    PyObject_GC_UnTrack(self);
    PyBuffer_Release(&self->room_view);
    delete_args(self);
    delete_result(self);
    handles_clear(self);
    PyMem_Free(self->slots);
    PyMem_Free(self->next_free);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *handles_bind(Handles *self, PyObject *pointer)
{
    void *context;
    if (!pointer_of(pointer, &context))
        return NULL;
    wasmtime.context_set_data(context, self);
    Py_RETURN_NONE;
}

/* See values.Handles.memory_is. */
static PyObject *handles_memory_is(Handles *self, PyObject *const *args, Py_ssize_t n)
{
    if (!n_arguments("memory_is", n, 2))
        return NULL;
    uint64_t store = PyLong_AsUnsignedLongLong(args[0]), number = PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    self->memory[0] = store;
    self->memory[1] = (uint32_t)number;
    self->memory[2] = 0;
    Py_RETURN_NONE;
}

/* See values.Handles.room_is. */
static PyObject *handles_room_is(Handles *self, PyObject *const *args, Py_ssize_t n)
{
    if (!n_arguments("room_is", n, 3))
        return NULL;
    size_t room = PyLong_AsSize_t(args[0]);
    uint64_t number = room == (size_t)-1 ? 0 : PyLong_AsUnsignedLongLong(args[1]);
    char *name;
    Py_ssize_t length;
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[2], &name, &length) < 0)
        return NULL;
    if (room - 1 >= MAX_ROOMS || (size_t)length >= sizeof self->reallocs->name) {
        PyErr_SetString(PyExc_ValueError, "room_is() takes 1 or 2, a number, and a name of at most 31 bytes");
        return NULL;
    }
    memcpy(self->reallocs[room - 1].name, name, (size_t)length + 1);
    self->reallocs[room - 1].instance[1] = (uint32_t)number;
    Py_RETURN_NONE;
}

static PyObject *handles_objects(Handles *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list != NULL && i < self->n_slots; i++)
        if (self->slots[i] != NULL && PyList_Append(list, self->slots[i]) < 0)
            Py_CLEAR(list);
    return list;
}

static Py_ssize_t handles_length(Handles *self)
{
    return self->n_used;
}

static PyMethodDef handles_methods[] = {
    {"bind", (PyCFunction)handles_bind, METH_O, "See values.Handles.bind."},
    {"memory_is", (PyCFunction)(void (*)(void))handles_memory_is, METH_FASTCALL, "See values.Handles.memory_is."},
    {"room_is", (PyCFunction)(void (*)(void))handles_room_is, METH_FASTCALL, "See values.Handles.room_is."},
    {"objects", (PyCFunction)handles_objects, METH_NOARGS, "See values.Handles.objects."},
    {NULL, NULL, 0, NULL},
};

static PySequenceMethods handles_sequence = {.sq_length = (lenfunc)handles_length};

static PyTypeObject HandlesType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "faas.wasm._values.Handles",
    .tp_basicsize = sizeof(Handles),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, /* what a handle stands for may know the guest */
    .tp_doc = "See values.Handles.",
    .tp_new = handles_new,
    .tp_dealloc = (destructor)handles_dealloc,
    .tp_traverse = (traverseproc)handles_traverse,
    .tp_clear = (inquiry)handles_clear,
    .tp_methods = handles_methods,
    .tp_as_sequence = &handles_sequence,
};

/* --- types ------------------------------------------------------------------------------------------------------- */

enum { T_BYTES = N_KINDS, T_OWN, T_BORROW };

typedef struct node {
    PyObject_HEAD
    int kind; /* of enum kind, or one of the above; K_RESOURCE isn't used */
    uint32_t resource;
    Py_ssize_t n;
    struct node **nodes; /* NULL: no payload */
    PyObject *names;     /* tuple of str: fields, cases or flags */
} Node;

static PyTypeObject NodeType;

static const struct {
    const char *name;
    int kind;
} PRIMITIVES[] = {
    {"bool", K_BOOL}, {"s8", K_S8},   {"u8", K_U8},   {"s16", K_S16}, {"u16", K_U16}, {"s32", K_S32},   {"u32", K_U32},
    {"s64", K_S64},   {"u64", K_U64}, {"f32", K_F32}, {"f64", K_F64}, {"char", K_CHAR}, {"string", K_STRING},
};

static Node *node_of(PyObject *type, PyObject *ids);

static bool node_children(Node *self, Py_ssize_t n)
{
    if (n < 0)
        return false;
    self->n = n;
    self->nodes = PyMem_Calloc((size_t)(n ? n : 1), sizeof *self->nodes);
    if (self->nodes == NULL)
        PyErr_NoMemory();
    return self->nodes != NULL;
}

static bool node_child(Node *self, Py_ssize_t i, PyObject *type, PyObject *ids)
{
    return type == Py_None || (self->nodes[i] = node_of(type, ids)) != NULL;
}

static bool node_is(PyObject *type, const char *name)
{
    return PyUnicode_Check(type) && PyUnicode_CompareWithASCIIString(type, name) == 0;
}

static bool no_type(PyObject *type)
{
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_TypeError, "no WIT type: %R", type);
    return false;
}

/* How many parts a type has; -1 and an exception if that is no tuple. */
static Py_ssize_t size_of(PyObject *parts)
{
    if (PyTuple_Check(parts))
        return PyTuple_GET_SIZE(parts);
    no_type(parts);
    return -1;
}

/* (name, type) pairs, or names alone */
static bool node_named(Node *self, PyObject *items, bool pairs, PyObject *ids)
{
    Py_ssize_t n = size_of(items);
    if (!node_children(self, n) || (self->names = PyTuple_New(n)) == NULL)
        return false;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PyTuple_GET_ITEM(items, i);
        if (pairs && (size_of(item) < 0 || PyTuple_GET_SIZE(item) != 2 || !PyUnicode_Check(PyTuple_GET_ITEM(item, 0))))
            return no_type(item);
        PyObject *name = pairs ? PyTuple_GET_ITEM(item, 0) : item, *type = pairs ? PyTuple_GET_ITEM(item, 1) : NULL;
        if (!PyUnicode_Check(name))
            return no_type(name);
        Py_INCREF(name);
        PyUnicode_InternInPlace(&name);
        PyTuple_SET_ITEM(self->names, i, name);
        if (pairs && !node_child(self, i, type, ids))
            return false;
    }
    return true;
}

static bool node_fill(Node *self, PyObject *type, PyObject *ids)
{
    if (PyUnicode_Check(type)) {
        for (size_t i = 0; i < sizeof PRIMITIVES / sizeof *PRIMITIVES; i++)
            if (node_is(type, PRIMITIVES[i].name)) {
                self->kind = PRIMITIVES[i].kind;
                return true;
            }
    }
    PyObject *head = PyTuple_Check(type) && PyTuple_GET_SIZE(type) >= 2 ? PyTuple_GET_ITEM(type, 0) : NULL;
    PyObject *first = head == NULL ? NULL : PyTuple_GET_ITEM(type, 1);
    if (head == NULL || PyTuple_GET_SIZE(type) != (node_is(head, "result") ? 3 : 2))
        return no_type(type);
    if (node_is(head, "list")) {
        self->kind = node_is(first, "u8") ? T_BYTES : K_LIST;
        return self->kind == T_BYTES || (node_children(self, 1) && node_child(self, 0, first, ids));
    }
    if (node_is(head, "option")) {
        self->kind = K_OPTION;
        return node_children(self, 1) && node_child(self, 0, first, ids);
    }
    if (node_is(head, "result")) {
        self->kind = K_RESULT;
        return node_children(self, 2) && node_child(self, 0, first, ids) &&
               node_child(self, 1, PyTuple_GET_ITEM(type, 2), ids);
    }
    if (node_is(head, "tuple")) {
        self->kind = K_TUPLE;
        if (!node_children(self, size_of(first)))
            return false;
        for (Py_ssize_t i = 0; i < self->n; i++)
            if (!node_child(self, i, PyTuple_GET_ITEM(first, i), ids))
                return false;
        return true;
    }
    if (node_is(head, "own") || node_is(head, "borrow")) {
        PyObject *id = PyDict_GetItemWithError(ids, first);
        if (id == NULL) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_LookupError, "unknown resource %R", first);
            return false;
        }
        self->kind = node_is(head, "own") ? T_OWN : T_BORROW;
        self->resource = (uint32_t)PyLong_AsUnsignedLong(id);
        return !PyErr_Occurred();
    }
    bool record = node_is(head, "record"), variant = node_is(head, "variant");
    self->kind = record ? K_RECORD : variant ? K_VARIANT : node_is(head, "enum") ? K_ENUM : K_FLAGS;
    if (self->kind == K_FLAGS && !node_is(head, "flags"))
        return no_type(type);
    return node_named(self, first, record || variant, ids);
}

static Node *node_of(PyObject *type, PyObject *ids)
{
    Node *self = PyObject_New(Node, &NodeType);
    if (self == NULL)
        return NULL;
    memset((char *)self + sizeof(PyObject), 0, sizeof *self - sizeof(PyObject));
    if (!node_fill(self, type, ids))
        Py_CLEAR(self);
    return self;
}

static void node_dealloc(Node *self)
{
    for (Py_ssize_t i = 0; self->nodes != NULL && i < self->n; i++)
        Py_XDECREF(self->nodes[i]);
    PyMem_Free(self->nodes);
    Py_XDECREF(self->names);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject NodeType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "faas.wasm._values.Node",
    .tp_basicsize = sizeof(Node),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "A WIT type, prepared for converting; made by node().",
    .tp_dealloc = (destructor)node_dealloc,
};

static PyObject *node(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    if (!n_arguments("node", n, 2))
        return NULL;
    return (PyObject *)node_of(args[0], args[1]);
}

/* --- from wasm to Python ------------------------------------------------------------------------------------------ */

static PyObject *mismatch(void)
{
    if (!PyErr_Occurred())
        PyErr_SetString(trap_error,
                        "the component imports a function of this host with other types than the interface has; "
                        "build it against the published WIT");
    return NULL;
}

static PyObject *resource_of(Handles *handles, void *context, const Node *node, void *any)
{
    bool owned = node->kind == T_OWN;
    void *host = NULL;
    void *error = wasmtime.any_to_host(context, any, &host);
    if (error != NULL) {
        wasmtime.error_delete(error);
        return mismatch();
    }
    uint32_t rep = wasmtime.host_rep(host);
    bool fits = wasmtime.host_type(host) == node->resource && wasmtime.host_owned(host) == owned;
    wasmtime.host_delete(host);
    if (!fits)
        return mismatch();
    if (!owned) {
        PyObject *object = handles_at(handles, rep);
        Py_XINCREF(object);
        return object;
    }
    return handles_take(handles, rep);
}

static PyObject *lift(Handles *handles, void *context, const Node *node, const value_t *value);

static PyObject *pair(PyObject *name, Handles *handles, void *context, const Node *payload, const value_t *value)
{
    PyObject *made = PyTuple_New(2), *second;
    if (made == NULL)
        return NULL;
    PyTuple_SET_ITEM(made, 0, Py_NewRef(name));
    if ((payload == NULL) != (value == NULL)) {
        second = mismatch();
    } else if (payload == NULL) {
        second = Py_NewRef(Py_None);
    } else {
        second = lift(handles, context, payload, value);
    }
    PyTuple_SET_ITEM(made, 1, second);
    if (second == NULL)
        Py_CLEAR(made);
    return made;
}

static bool is_name(const Node *node, Py_ssize_t i, const name_t *name)
{
    Py_ssize_t n;
    const char *text = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(node->names, i), &n);
    return text != NULL && (size_t)n == name->size && memcmp(text, name->data, name->size) == 0;
}

static Py_ssize_t index_of(const Node *node, const name_t *name)
{
    for (Py_ssize_t i = 0; i < node->n; i++)
        if (is_name(node, i, name))
            return i;
    mismatch();
    return -1;
}

static PyObject *lift_all(Handles *handles, void *context, const Node *node, const value_t *value)
{
    const values_t *from = &value->of.values;
    if (node->kind == K_LIST) {
        PyObject *list = PyList_New((Py_ssize_t)from->size);
        for (size_t i = 0; list != NULL && i < from->size; i++) {
            PyObject *item = lift(handles, context, node->nodes[0], &from->data[i]);
            PyList_SET_ITEM(list, (Py_ssize_t)i, item);
            if (item == NULL)
                Py_CLEAR(list);
        }
        return list;
    }
    if ((size_t)node->n != from->size)
        return mismatch();
    PyObject *tuple = PyTuple_New(node->n);
    for (Py_ssize_t i = 0; tuple != NULL && i < node->n; i++) {
        const field_t *field = &((const field_t *)value->of.vec.data)[i];
        PyObject *made;
        if (node->kind == K_TUPLE)
            made = lift(handles, context, node->nodes[i], &from->data[i]);
        else
            made = is_name(node, i, &field->name) ? lift(handles, context, node->nodes[i], &field->value) : mismatch();
        PyTuple_SET_ITEM(tuple, i, made);
        if (made == NULL)
            Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *lift_flags(const Node *node, const value_t *value)
{
    PyObject *set = PyFrozenSet_New(NULL);
    const name_t *names = value->of.vec.data;
    for (size_t i = 0; set != NULL && i < value->of.vec.size; i++) {
        Py_ssize_t at = index_of(node, &names[i]);
        if (at < 0 || PySet_Add(set, PyTuple_GET_ITEM(node->names, at)) < 0)
            Py_CLEAR(set);
    }
    return set;
}

static PyObject *lift_bytes(const value_t *value)
{
    if (value->kind != K_LIST)
        return mismatch();
    size_t n = value->of.values.size;
    const value_t *from = value->of.values.data;
    PyObject *made = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n);
    if (made != NULL && n > 0 && from[0].kind != K_U8) {
        Py_DECREF(made);
        return mismatch();
    }
    for (size_t i = 0; made != NULL && i < n; i++)
        PyBytes_AS_STRING(made)[i] = (char)from[i].of.u8;
    return made;
}

/* What the component declares is its own to say: each value is checked against the type that the host expects. */
static PyObject *lift(Handles *handles, void *context, const Node *node, const value_t *value)
{
    if (node->kind == T_BYTES)
        return lift_bytes(value);
    if (node->kind == T_OWN || node->kind == T_BORROW) {
        if (value->kind != K_RESOURCE)
            return mismatch();
        return resource_of(handles, context, node, value->of.resource);
    }
    if (value->kind != node->kind)
        return mismatch();
    switch (node->kind) {
    case K_BOOL: return PyBool_FromLong(value->of.boolean);
    case K_S8: return PyLong_FromLong(value->of.s8);
    case K_U8: return PyLong_FromLong(value->of.u8);
    case K_S16: return PyLong_FromLong(value->of.s16);
    case K_U16: return PyLong_FromLong(value->of.u16);
    case K_S32: return PyLong_FromLong(value->of.s32);
    case K_U32: return PyLong_FromUnsignedLong(value->of.u32);
    case K_S64: return PyLong_FromLongLong(value->of.s64);
    case K_U64: return PyLong_FromUnsignedLongLong(value->of.u64);
    case K_F32: return PyFloat_FromDouble((double)value->of.f32);
    case K_F64: return PyFloat_FromDouble(value->of.f64);
    case K_CHAR: return PyUnicode_FromOrdinal((int)value->of.u32);
    case K_STRING: return PyUnicode_DecodeUTF8(value->of.name.data, (Py_ssize_t)value->of.name.size, "strict");
    case K_LIST:
    case K_TUPLE:
    case K_RECORD: return lift_all(handles, context, node, value);
    case K_FLAGS: return lift_flags(node, value);
    case K_ENUM: {
        Py_ssize_t at = index_of(node, &value->of.name);
        return at < 0 ? NULL : Py_NewRef(PyTuple_GET_ITEM(node->names, at));
    }
    case K_VARIANT: {
        Py_ssize_t at = index_of(node, &value->of.variant.name);
        if (at < 0)
            return NULL;
        return pair(PyTuple_GET_ITEM(node->names, at), handles, context, node->nodes[at], value->of.variant.payload);
    }
    case K_OPTION:
        if (value->of.option == NULL)
            Py_RETURN_NONE;
        return lift(handles, context, node->nodes[0], value->of.option);
    case K_RESULT:
        return pair(value->of.result.is_ok ? str_ok : str_err, handles, context,
                    node->nodes[value->of.result.is_ok ? 0 : 1], value->of.result.payload);
    default: return mismatch();
    }
}

/* --- from Python to wasm ------------------------------------------------------------------------------------------ */

static bool lower(Handles *handles, void *context, const Node *node, PyObject *object, value_t *out);

static bool lower_text(name_t *out, PyObject *text)
{
    Py_ssize_t n;
    const char *utf8 = PyUnicode_AsUTF8AndSize(text, &n);
    if (utf8 == NULL)
        return false;
    wasmtime.bytes_new(out, (size_t)n);
    memcpy(out->data, utf8, (size_t)n);
    return true;
}

static bool lower_bytes(PyObject *object, value_t *out)
{
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE) < 0)
        return false;
    const uint8_t *from = view.buf;
    size_t n = (size_t)view.len;
    out->kind = K_LIST;
    wasmtime.list_new(&out->of.values, n);
    for (size_t i = 0; i < n; i++) {
        out->of.values.data[i].kind = K_U8;
        out->of.values.data[i].of.u8 = from[i];
    }
    PyBuffer_Release(&view);
    return true;
}

/* Boxes what *object* becomes; NULL payload for a case without one. */
static bool lower_payload(Handles *handles, void *context, const Node *node, PyObject *object, value_t **out)
{
    value_t value = {0};
    *out = NULL;
    if (node == NULL)
        return true;
    if (!lower(handles, context, node, object, &value)) {
        wasmtime.value_delete(&value);
        return false;
    }
    *out = wasmtime.value_new(&value);
    return true;
}

static bool lower_items(Handles *handles, void *context, const Node *node, PyObject *object, value_t *out)
{
    PyObject *items = PySequence_Fast(object, "a host function must answer a list or a tuple here");
    if (items == NULL)
        return false;
    Py_ssize_t n = PySequence_Fast_GET_SIZE(items);
    bool ok = node->kind == K_LIST || n == node->n;
    if (!ok)
        PyErr_Format(PyExc_TypeError, "a host function must answer %zd fields here, not %zd", node->n, n);
    if (ok) {
        out->kind = (uint8_t)node->kind;
        if (node->kind == K_RECORD)
            wasmtime.record_new(&out->of.vec, (size_t)n);
        else if (node->kind == K_TUPLE)
            wasmtime.tuple_new(&out->of.values, (size_t)n);
        else
            wasmtime.list_new(&out->of.values, (size_t)n);
        memset(out->of.vec.data, 0, (size_t)n * (node->kind == K_RECORD ? sizeof(field_t) : sizeof(value_t)));
    }
    for (Py_ssize_t i = 0; ok && i < n; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(items, i);
        if (node->kind == K_RECORD) {
            field_t *field = &((field_t *)out->of.vec.data)[i];
            ok = lower_text(&field->name, PyTuple_GET_ITEM(node->names, i)) &&
                 lower(handles, context, node->nodes[i], item, &field->value);
        } else {
            ok = lower(handles, context, node->nodes[node->kind == K_LIST ? 0 : i], item, &out->of.values.data[i]);
        }
    }
    Py_DECREF(items);
    return ok;
}

static Py_ssize_t case_of(const Node *node, PyObject *name)
{
    for (Py_ssize_t i = 0; i < node->n; i++)
        if (PyTuple_GET_ITEM(node->names, i) == name)
            return i;
    for (Py_ssize_t i = 0; i < node->n; i++)
        if (PyUnicode_Check(name) && PyUnicode_Compare(PyTuple_GET_ITEM(node->names, i), name) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "no case %R here", name);
    return -1;
}

static bool lower_flags(const Node *node, PyObject *object, value_t *out)
{
    PyObject *names = PySequence_Tuple(object);
    if (names == NULL)
        return false;
    Py_ssize_t n = PyTuple_GET_SIZE(names);
    out->kind = K_FLAGS;
    wasmtime.flags_new(&out->of.vec, (size_t)n);
    memset(out->of.vec.data, 0, (size_t)n * sizeof(name_t));
    bool ok = true;
    for (Py_ssize_t i = 0; ok && i < n; i++)
        ok = case_of(node, PyTuple_GET_ITEM(names, i)) >= 0 &&
             lower_text(&((name_t *)out->of.vec.data)[i], PyTuple_GET_ITEM(names, i));
    Py_DECREF(names);
    return ok;
}

static bool is_pair(PyObject *object)
{
    if (PyTuple_Check(object) && PyTuple_GET_SIZE(object) == 2)
        return true;
    PyErr_Format(PyExc_TypeError, "a host function must answer (case, payload) here, not %R", object);
    return false;
}

static bool lower_resource(Handles *handles, void *context, const Node *node, PyObject *object, value_t *out)
{
    uint32_t rep = handles_put(handles, Py_NewRef(object));
    if (rep == 0)
        return false;
    void *host = wasmtime.host_new(true, rep, node->resource), *any = NULL;
    void *error = wasmtime.host_to_any(context, host, &any);
    wasmtime.host_delete(host);
    if (error != NULL) {
        wasmtime.error_delete(error);
        Py_XDECREF(handles_take(handles, rep));
        PyErr_SetString(PyExc_RuntimeError, "the engine refused a resource");
        return false;
    }
    out->kind = K_RESOURCE;
    out->of.resource = any;
    return true;
}

static bool lower_result(Handles *handles, void *context, const Node *node, bool is_ok, PyObject *object, value_t *out)
{
    value_t *payload;
    if (!lower_payload(handles, context, node->nodes[is_ok ? 0 : 1], object, &payload))
        return false;
    out->kind = K_RESULT;
    out->of.result.is_ok = is_ok;
    out->of.result.payload = payload;
    return true;
}

/* Store an integer of the node's kind; false and an exception if it doesn't fit: the engine would take what is left. */
static bool lower_integer(const Node *node, PyObject *object, value_t *out)
{
    static const struct {
        long long min;
        unsigned long long max;
    } RANGES[] = {
        [K_S8] = {INT8_MIN, INT8_MAX},    [K_U8] = {0, UINT8_MAX},   [K_S16] = {INT16_MIN, INT16_MAX},
        [K_U16] = {0, UINT16_MAX},        [K_S32] = {INT32_MIN, INT32_MAX}, [K_U32] = {0, UINT32_MAX},
        [K_S64] = {INT64_MIN, INT64_MAX}, [K_U64] = {0, UINT64_MAX},
    };
    const long long min = RANGES[node->kind].min;
    const unsigned long long max = RANGES[node->kind].max;
    if (!PyLong_Check(object)) {
        PyErr_Format(PyExc_TypeError, "a host function must answer an integer here, not %R", object);
        return false;
    }
    if (min < 0) {
        int overflow;
        out->of.s64 = PyLong_AsLongLongAndOverflow(object, &overflow);
        if (overflow == 0 && out->of.s64 >= min && out->of.s64 <= (long long)max)
            return true;
    } else {
        out->of.u64 = PyLong_AsUnsignedLongLong(object);
        if (out->of.u64 <= max && !(out->of.u64 == UINT64_MAX && PyErr_Occurred()))
            return true;
        PyErr_Clear();
    }
    PyErr_Format(PyExc_OverflowError, "a host function must answer an integer from %lld to %llu here, not %R", min, max,
                 object);
    return false;
}

/* Leaves *out* as something that may be deleted, also when it fails. */
static bool lower(Handles *handles, void *context, const Node *node, PyObject *object, value_t *out)
{
    memset(out, 0, sizeof *out);
    switch (node->kind) {
    case T_BYTES: return lower_bytes(object, out);
    case T_OWN:
    case T_BORROW: return lower_resource(handles, context, node, object, out);
    case K_BOOL: out->of.boolean = PyObject_IsTrue(object) == 1; break;
    case K_S8:
    case K_S16:
    case K_S32:
    case K_S64:
    case K_U8:
    case K_U16:
    case K_U32:
    case K_U64:
        if (!lower_integer(node, object, out)) {
            memset(out, 0, sizeof *out);
            return false;
        }
        break;
    case K_F32: out->of.f32 = (float)PyFloat_AsDouble(object); break;
    case K_F64: out->of.f64 = PyFloat_AsDouble(object); break;
    case K_CHAR: {
        Py_UCS4 character =
            PyUnicode_Check(object) && PyUnicode_GetLength(object) == 1 ? PyUnicode_ReadChar(object, 0) : 0xd800;
        if (character >= 0xd800 && character <= 0xdfff) { /* surrogates are none: the engine would abort */
            PyErr_Format(PyExc_ValueError, "a host function must answer one character here, not %R", object);
            return false;
        }
        out->of.u32 = character;
        break;
    }
    case K_STRING:
        if (!PyUnicode_Check(object)) {
            PyErr_Format(PyExc_TypeError, "a host function must answer text here, not %R", object);
            return false;
        }
        if (!lower_text(&out->of.name, object))
            return false;
        break;
    case K_LIST:
    case K_TUPLE:
    case K_RECORD: return lower_items(handles, context, node, object, out);
    case K_FLAGS: return lower_flags(node, object, out);
    case K_ENUM: {
        Py_ssize_t at = case_of(node, object);
        if (at < 0 || !lower_text(&out->of.name, PyTuple_GET_ITEM(node->names, at)))
            return false;
        break;
    }
    case K_VARIANT: {
        value_t *payload;
        Py_ssize_t at = is_pair(object) ? case_of(node, PyTuple_GET_ITEM(object, 0)) : -1;
        if (at < 0 || !lower_payload(handles, context, node->nodes[at], PyTuple_GET_ITEM(object, 1), &payload))
            return false;
        out->kind = K_VARIANT; /* from here on, deleting it deletes the payload */
        out->of.variant.payload = payload;
        return lower_text(&out->of.variant.name, PyTuple_GET_ITEM(node->names, at));
    }
    case K_OPTION: {
        value_t *payload = NULL;
        if (object != Py_None && !lower_payload(handles, context, node->nodes[0], object, &payload))
            return false;
        out->of.option = payload;
        break;
    }
    case K_RESULT: {
        if (!is_pair(object))
            return false;
        bool is_ok = node_is(PyTuple_GET_ITEM(object, 0), "ok");
        if (!is_ok && !node_is(PyTuple_GET_ITEM(object, 0), "err")) {
            PyErr_Format(PyExc_ValueError, "a host function must answer (\"ok\" or \"err\", payload) here, not %R",
                         object);
            return false;
        }
        return lower_result(handles, context, node, is_ok, PyTuple_GET_ITEM(object, 1), out);
    }
    default: PyErr_SetString(PyExc_SystemError, "unknown kind"); return false;
    }
    if (PyErr_Occurred()) {
        memset(out, 0, sizeof *out);
        return false;
    }
    out->kind = (uint8_t)node->kind;
    return true;
}

/* --- host functions ----------------------------------------------------------------------------------------------- */

typedef struct function {
    PyObject *call;
    Node *params[MAX_PARAMS];
    Node *result;
    int n_params;
    size_t room; /* which of the reallocs makes room for the bytes that it returns, from 1; 0: none */
} function_t;

static PyObject *take_exception(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *failure, *trace;
    PyErr_Fetch(&type, &failure, &trace);
    PyErr_NormalizeException(&type, &failure, &trace);
    if (trace != NULL)
        PyException_SetTraceback(failure, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return failure;
#endif
}

/* The exception that is set becomes the guest's failure. */
static void set_failure(Handles *handles)
{
    PyObject *failure = take_exception();
    if (PyObject_SetAttr(handles->guest, str_failure, failure) < 0)
        PyErr_WriteUnraisable(handles->guest);
    Py_XDECREF(failure);
}

/* The same, and the error that ends its call. */
static void *fail(Handles *handles)
{
    set_failure(handles);
    return wasmtime.error_new("host");
}

/* Store what a host function answered; false and an exception if it can't be. */
static bool answered(Handles *handles, void *context, const function_t *function, PyObject *answer, value_t *results)
{
    if (function->result == NULL)
        return true;
    bool ok;
    if (function->result->kind == K_RESULT)
        ok = lower_result(handles, context, function->result, true, answer, results);
    else
        ok = lower(handles, context, function->result, answer, results);
    if (!ok) {
        wasmtime.value_delete(results);
        memset(results, 0, sizeof *results);
    }
    return ok;
}

/* The exception that is set, as the function's declared error; false and an exception if it is none. */
static bool declared(Handles *handles, void *context, const function_t *function, value_t *results)
{
    if (function->result == NULL || function->result->kind != K_RESULT || !PyErr_ExceptionMatches(wit_error))
        return false;
    PyObject *error = take_exception();
    PyObject *value = PyObject_GetAttr(error, str_value);
    Py_DECREF(error);
    bool ok = value != NULL && lower_result(handles, context, function->result, false, value, results);
    Py_XDECREF(value);
    return ok;
}

/* false and an exception: it is not */
static bool store_is_known(Handles *handles)
{
    if (handles->memory[0] == 0) { /* its component is still being instantiated */
        PyObject *store = PyObject_CallMethodNoArgs(handles->guest, str_store_number);
        if (store == NULL)
            return false;
        handles->memory[0] = PyLong_AsUnsignedLongLong(store);
        Py_DECREF(store);
    }
    return !PyErr_Occurred();
}

/* Begin to make room in the guest for what a host function answered; false and an exception if that can't be. */
static bool begin_room(Handles *handles, void *context, const function_t *function, PyObject *answer)
{
    static const uint32_t ALIGNMENT = 1;
    uint64_t *instance = handles->reallocs[function->room - 1].instance;
    const char *name = handles->reallocs[function->room - 1].name;
    extern_t *realloc = &handles->room_realloc; /* the call keeps its address */
    if (!store_is_known(handles) || PyObject_GetBuffer(answer, &handles->room_view, PyBUF_SIMPLE) < 0)
        return false;
    instance[0] = handles->memory[0];
    if ((uint64_t)handles->room_view.len > UINT32_MAX ||
        !wasmtime.export_get(context, instance, name, strlen(name), realloc) || realloc->kind != EXTERN_FUNC) {
        PyBuffer_Release(&handles->room_view);
        return mismatch() != NULL;
    }
    const uint32_t args[4] = {0, 0, ALIGNMENT, (uint32_t)handles->room_view.len};
    for (int i = 0; i < 4; i++) {
        handles->room_args[i].kind = CORE_I32;
        handles->room_args[i].of.i32 = args[i];
    }
    handles->room_trap = handles->room_error = NULL;
    handles->room = wasmtime.core_call(context, realloc->of, handles->room_args, 4, handles->room_at, 1,
                                       &handles->room_trap, &handles->room_error);
    return true;
}

/* Give up the call that makes room, done or not; false: it failed, *message* (the caller's, if any) says how. */
static bool end_room(Handles *handles, name_t *message)
{
    wasmtime.future_delete(handles->room);
    handles->room = NULL;
    void *error = handles->room_error, *trap = handles->room_trap;
    handles->room_error = handles->room_trap = NULL;
    if (error != NULL) {
        wasmtime.error_message(error, message);
        wasmtime.error_delete(error);
    } else if (trap != NULL) {
        wasmtime.trap_message(trap, message);
        wasmtime.trap_delete(trap);
    }
    return error == NULL && trap == NULL;
}

/* Let go of what was to be put into the room; takes the GIL, which may be held. */
static void release_view(Handles *handles)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    PyBuffer_Release(&handles->room_view);
    PyGILState_Release(gil);
}

/* A host call that is over without a result makes its guest trap, since all these functions have one. */
static void room_failed(Handles *handles, const name_t *message)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    Py_ssize_t n = (Py_ssize_t)message->size;
    while (n > 0 && message->data[n - 1] == 0) /* a trap's */
        n--;
    PyObject *text = PyUnicode_DecodeUTF8(message->data, n, "replace");
    PyObject *none = text == NULL ? NULL : PyObject_CallMethodOneArg(handles->guest, str_room_failed, text);
    if (none == NULL)
        set_failure(handles);
    Py_XDECREF(none);
    Py_XDECREF(text);
    PyGILState_Release(gil);
}

/* Go on making room, without the GIL: whether it is done, and the host call has its result or failed. */
static bool make_room(Handles *handles, void *context, value_t *results)
{
    static char BEYOND[] = "the guest's cabi_realloc returned an address that is beyond the end of its memory";
    if (!wasmtime.future_poll(handles->room))
        return false;
    name_t message;
    if (!end_room(handles, &message)) {
        room_failed(handles, &message);
        wasmtime.bytes_delete(&message);
        release_view(handles);
        return true;
    }
    uint64_t at = handles->room_at[0].of.i32, size = (uint64_t)handles->room_view.len;
    if (at + size > wasmtime.memory_data_size(context, handles->memory)) { /* which may have grown */
        room_failed(handles, &(name_t){sizeof BEYOND - 1, BEYOND});
    } else {
        memcpy(wasmtime.memory_data(context, handles->memory) + at, handles->room_view.buf, size);
        value_t payload = {.kind = K_TUPLE};
        wasmtime.tuple_new(&payload.of.values, 2);
        memset(payload.of.values.data, 0, 2 * sizeof payload);
        payload.of.values.data[0].kind = payload.of.values.data[1].kind = K_U32;
        payload.of.values.data[0].of.u32 = (uint32_t)at;
        payload.of.values.data[1].of.u32 = (uint32_t)size;
        results->kind = K_RESULT;
        results->of.result.is_ok = true;
        results->of.result.payload = wasmtime.value_new(&payload);
    }
    release_view(handles);
    return true;
}

/* Bytes that a function takes by address and size, see precompile/bytelists.py. */
static PyObject *bytes_at(Handles *handles, void *context, const value_t *args)
{
    if (args[0].kind != K_U32 || args[1].kind != K_U32 || handles->memory[1] == 0)
        return mismatch();
    if (!store_is_known(handles))
        return NULL;
    uint64_t at = args[0].of.u32, size = args[1].of.u32;
    if (size == 0)
        return PyBytes_FromStringAndSize(NULL, 0);
    if (at + size > wasmtime.memory_data_size(context, handles->memory)) {
        PyErr_SetString(trap_error, "the guest passed bytes that are not in its memory");
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)wasmtime.memory_data(context, handles->memory) + at,
                                     (Py_ssize_t)size);
}

/* Call the Python function with the guest and the lifted arguments; a new reference. */
static PyObject *called(Handles *handles, void *context, const function_t *function, const value_t *args,
                        size_t n_args, size_t n_results)
{
    PyObject *argv[MAX_PARAMS + 2], **to = argv + 1, *answer = NULL; /* argv[0] is vectorcall's to use */
    int n = 1;

    if (handles->room != NULL) { /* as the engine has it where it asks for room by itself */
        PyErr_SetString(trap_error, "the guest calls the host from its cabi_realloc, which must only make room");
        return NULL;
    }
    int last = function->n_params;
    bool by_address = last > 0 && (int)n_args == last + 1 && function->params[last - 1]->kind == T_BYTES;
    if (((int)n_args != last && !by_address) || n_results != (function->result == NULL ? 0 : 1))
        return mismatch();
    to[0] = Py_NewRef(handles->guest);
    for (; n <= function->n_params; n++) {
        if (by_address && n == last)
            to[n] = bytes_at(handles, context, &args[n - 1]);
        else
            to[n] = lift(handles, context, function->params[n - 1], &args[n - 1]);
        if (to[n] == NULL)
            break;
    }
    if (n > function->n_params)
        answer = PyObject_Vectorcall(function->call, to, (size_t)n | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    while (n > 0)
        Py_DECREF(to[--n]);
    return answer;
}

static void *host_call(void *env, void *context, void *Py_UNUSED(type), value_t *args, size_t n_args,
                       value_t *results, size_t n_results)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    Handles *handles = wasmtime.context_get_data(context);
    void *error = NULL;

    PyObject *answer = called(handles, context, env, args, n_args, n_results);
    if (answer == NULL ? !declared(handles, context, env, results)
                       : !answered(handles, context, env, answer, results))
        error = fail(handles);
    Py_XDECREF(answer);
    PyGILState_Release(gil);
    return error;
}

/* A host call that was answered at once goes on. */
static bool ready(void *Py_UNUSED(env))
{
    return true;
}

/* Whether what the function answered goes to room in the guest that is to be made first. */
static bool needs_room(const Handles *handles, const function_t *function, PyObject *answer)
{
    return answer != NULL && function->room > 0 && handles->reallocs[function->room - 1].instance[1] != 0;
}

/* A host call that waited, or whose bytes need room in the guest, goes on: whether it is done. */
static bool resume(void *env)
{
    Handles *handles = env;
    const function_t *function = handles->waiting;
    if (function == NULL)
        return true; /* it was done before */
    void *context = handles->waiting_context;
    value_t *results = handles->waiting_results;
    if (handles->room == NULL) {
        PyGILState_STATE gil = PyGILState_Ensure();
        PyObject *answer = PyObject_CallMethodNoArgs(handles->guest, str_settled);
        bool goes_on = answer == Py_NotImplemented;
        if (!goes_on) {
            bool room = needs_room(handles, function, answer);
            bool ok;
            if (room)
                ok = goes_on = begin_room(handles, context, function, answer);
            else
                ok = answer == NULL ? declared(handles, context, function, results)
                                    : answered(handles, context, function, answer, results);
            if (!ok)
                set_failure(handles); /* without a result: the guest traps */
        }
        Py_XDECREF(answer);
        PyGILState_Release(gil);
        if (handles->room == NULL) {
            if (!goes_on)
                handles->waiting = NULL;
            return !goes_on;
        }
    }
    if (!make_room(handles, context, results))
        return false;
    handles->waiting = NULL;
    return true;
}

/* The engine gave up a host call that waited, or it is done: where its results were to go is gone. */
static void forget(void *env)
{
    Handles *handles = env;
    name_t message;
    if (handles->room != NULL) {
        if (!end_room(handles, &message))
            wasmtime.bytes_delete(&message);
        release_view(handles);
    }
    handles->waiting = NULL;
}

static void host_call_async(void *env, void *context, void *Py_UNUSED(type), value_t *args, size_t n_args,
                            value_t *results, size_t n_results, void **error, continuation_t *continuation)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    Handles *handles = wasmtime.context_get_data(context);
    function_t *function = env;

    continuation->callback = ready;
    continuation->env = NULL;
    continuation->finalizer = NULL;
    PyObject *answer = called(handles, context, function, args, n_args, n_results);
    bool waits =
        answer != NULL && Py_TYPE(answer)->tp_as_async != NULL && Py_TYPE(answer)->tp_as_async->am_await != NULL;
    bool ok;
    if (waits || needs_room(handles, function, answer)) {
        if (handles->waiting != NULL) {
            PyErr_SetString(trap_error, "the guest waits in two calls of the host at once; await one after the other");
            ok = false;
        } else if (waits) {
            PyObject *none = PyObject_CallMethodOneArg(handles->guest, str_suspend, answer);
            ok = none != NULL;
            Py_XDECREF(none);
        } else {
            ok = begin_room(handles, context, function, answer);
        }
        if (ok) {
            continuation->callback = resume;
            continuation->env = handles;
            continuation->finalizer = forget;
            handles->waiting = function;
            handles->waiting_results = results;
            handles->waiting_context = context;
        }
    } else {
        ok = answer == NULL ? declared(handles, context, function, results)
                            : answered(handles, context, function, answer, results);
    }
    if (!ok)
        *error = fail(handles);
    Py_XDECREF(answer);
    PyGILState_Release(gil);
}

/* A guest dropped a handle that it owned. */
static void *host_drop(void *Py_UNUSED(env), void *context, uint32_t rep)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    Handles *handles = wasmtime.context_get_data(context);
    void *error = NULL;

    PyObject *object = handles_take(handles, rep);
    PyObject *none = object == NULL ? NULL : PyObject_CallMethodNoArgs(object, str_drop);
    if (none == NULL)
        error = fail(handles);
    Py_XDECREF(none);
    Py_XDECREF(object);
    PyGILState_Release(gil);
    return error;
}

static void function_free(function_t *function)
{
    Py_XDECREF(function->call);
    Py_XDECREF(function->result);
    for (int i = 0; i < function->n_params; i++)
        Py_XDECREF(function->params[i]);
    PyMem_Free(function);
}

static void function_delete(PyObject *capsule)
{
    function_free(PyCapsule_GetPointer(capsule, NULL));
}

/* See values.host_function. */
static PyObject *host_function(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    if (!n_arguments("host_function", n, 5))
        return NULL;
    size_t room = PyLong_AsSize_t(args[4]);
    if (PyErr_Occurred())
        return NULL;
    bool ok = room <= MAX_ROOMS && PyTuple_Check(args[1]) && PyTuple_GET_SIZE(args[1]) <= MAX_PARAMS;
    for (Py_ssize_t i = 0; ok && i < PyTuple_GET_SIZE(args[1]); i++)
        ok = Py_IS_TYPE(PyTuple_GET_ITEM(args[1], i), &NodeType);
    if (!ok || (args[2] != Py_None && !Py_IS_TYPE(args[2], &NodeType))) {
        PyErr_SetString(PyExc_TypeError, "host_function() takes a tuple of at most 12 nodes, and a node or None");
        return NULL;
    }
    function_t *function = PyMem_Calloc(1, sizeof *function);
    if (function == NULL)
        return PyErr_NoMemory();
    function->call = Py_NewRef(args[0]);
    function->n_params = (int)PyTuple_GET_SIZE(args[1]);
    for (int i = 0; i < function->n_params; i++)
        function->params[i] = (Node *)Py_NewRef(PyTuple_GET_ITEM(args[1], i));
    function->result = args[2] == Py_None ? NULL : (Node *)Py_NewRef(args[2]);
    PyObject *keep = PyCapsule_New(function, NULL, function_delete);
    if (keep == NULL) {
        function_free(function);
        return NULL;
    }
    function->room = room;
    void *callback = args[3] == Py_True ? (void *)host_call_async : (void *)host_call;
    return Py_BuildValue("NNN", PyLong_FromVoidPtr(callback), PyLong_FromVoidPtr(function), keep);
}

static PyObject *destructor_(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("NOO", PyLong_FromVoidPtr((void *)host_drop), Py_None, Py_None);
}

/* --- calls into a component --------------------------------------------------------------------------------------- */

/* See values.begin_call. */
static PyObject *begin_call(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    void *context, *instance, *index, *error;
    if (!n_arguments("begin_call", n, 7) || !pointer_of(args[1], &context) || !pointer_of(args[2], &instance) ||
        !pointer_of(args[3], &error) || !pointer_of(args[4], &index))
        return NULL;
    PyObject *values = args[5];
    bool fits = Py_IS_TYPE(args[0], &HandlesType) && PyTuple_Check(values) && PyTuple_GET_SIZE(values) <= MAX_ARGS;
    for (Py_ssize_t i = 0; fits && i < PyTuple_GET_SIZE(values); i++) {
        PyObject *item = PyTuple_GET_ITEM(values, i);
        fits = PyTuple_Check(item) && PyTuple_GET_SIZE(item) == 2 && Py_IS_TYPE(PyTuple_GET_ITEM(item, 0), &NodeType);
    }
    if (!fits) {
        PyErr_SetString(PyExc_TypeError, "begin_call() takes Handles, and at most 4 (node, value)");
        return NULL;
    }
    Handles *handles = (Handles *)args[0];
    Py_ssize_t n_values = PyTuple_GET_SIZE(values);
    delete_args(handles);
    delete_result(handles);
    if (!wasmtime.get_func(instance, context, index, handles->func))
        Py_RETURN_NONE;
    for (Py_ssize_t i = 0; i < n_values; i++) {
        PyObject *item = PyTuple_GET_ITEM(values, i);
        bool ok = lower(handles, context, (Node *)PyTuple_GET_ITEM(item, 0), PyTuple_GET_ITEM(item, 1),
                        &handles->args[i]);
        handles->n_args++;
        if (!ok)
            return NULL;
    }
    return PyLong_FromVoidPtr(wasmtime.func_call(handles->func, context, handles->args, handles->n_args,
                                                 handles->results, args[6] == Py_True ? 1 : 0, error));
}

/* See values.take_result. */
static PyObject *take_result(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    void *context;
    if (!n_arguments("take_result", n, 3) || !pointer_of(args[1], &context))
        return NULL;
    if (!Py_IS_TYPE(args[0], &HandlesType) || !Py_IS_TYPE(args[2], &NodeType)) {
        PyErr_SetString(PyExc_TypeError, "take_result() takes Handles and a node");
        return NULL;
    }
    Handles *handles = (Handles *)args[0];
    PyObject *answer = lift(handles, context, (Node *)args[2], handles->results);
    delete_result(handles);
    return answer;
}

/* --- the module --------------------------------------------------------------------------------------------------- */

static PyObject *open_library(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *path;
    PyObject *wit, *trap;
    if (!PyArg_ParseTuple(args, "sOO", &path, &wit, &trap))
        return NULL;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        PyErr_SetString(PyExc_OSError, dlerror());
        return NULL;
    }
    for (size_t i = 0; i < sizeof SYMBOLS / sizeof *SYMBOLS; i++) {
        void *symbol = dlsym(library, SYMBOLS[i].name);
        if (symbol == NULL) {
            PyErr_Format(PyExc_OSError, "%s lacks %s", path, SYMBOLS[i].name);
            return NULL;
        }
        memcpy(SYMBOLS[i].at, &symbol, sizeof symbol);
    }
    Py_XSETREF(wit_error, Py_NewRef(wit));
    Py_XSETREF(trap_error, Py_NewRef(trap));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"open_library", open_library, METH_VARARGS, "Find wasmtime's functions; once, before anything else."},
    {"node", (PyCFunction)(void (*)(void))node, METH_FASTCALL, "See values.node."},
    {"host_function", (PyCFunction)(void (*)(void))host_function, METH_FASTCALL, "See values.host_function."},
    {"destructor", destructor_, METH_NOARGS, "See values.destructor."},
    {"begin_call", (PyCFunction)(void (*)(void))begin_call, METH_FASTCALL, "See values.begin_call."},
    {"take_result", (PyCFunction)(void (*)(void))take_result, METH_FASTCALL, "See values.take_result."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "faas.wasm._values", .m_doc = "values.py, in C.", .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__values(void)
{
    static const struct {
        PyObject **at;
        const char *text;
    } STRINGS[] = {
        {&str_failure, "failure"}, {&str_value, "value"},     {&str_drop, "drop"},
        {&str_suspend, "suspend"}, {&str_settled, "settled"}, {&str_store_number, "store_number"},
        {&str_ok, "ok"},           {&str_err, "err"},         {&str_room_failed, "room_failed"},
    };
    for (size_t i = 0; i < sizeof STRINGS / sizeof *STRINGS; i++)
        if ((*STRINGS[i].at = PyUnicode_InternFromString(STRINGS[i].text)) == NULL)
            return NULL;
    if (PyType_Ready(&HandlesType) < 0 || PyType_Ready(&NodeType) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL || PyModule_AddObjectRef(module, "Handles", (PyObject *)&HandlesType) < 0 ||
        PyModule_AddObjectRef(module, "Node", (PyObject *)&NodeType) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
