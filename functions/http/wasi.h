/* SPDX-License-Identifier: Apache-2.0
 *
 * wasi:http 0.2 for guests in C, as the canonical ABI has it: no bindings in between, so that a test says exactly
 * what the host is asked. Only what the guests in this folder call is here.
 *
 * WASI_VERSION is the version that is asked for: any 0.2.x does. Handles are plain numbers. What a call leaves in
 * memory is described beside it: offsets in bytes, `tag` being 0 for ok or none.
 */
#ifndef FAAS_WASI_H
#define FAAS_WASI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef WASI_VERSION
#define WASI_VERSION "0.2.12"
#endif

#define IMPORT(interface, function) \
    __attribute__((import_module("wasi:" interface "@" WASI_VERSION), import_name(function))) extern
#define EXPORT(function) __attribute__((export_name(function)))
#define HANDLE EXPORT("wasi:http/incoming-handler@" WASI_VERSION "#handle")

typedef uint32_t handle;

typedef struct {
    const char *data;
    uint32_t size;
} text;

typedef struct {
    text name, value;
} field;

typedef struct {
    const field *at;
    uint32_t count;
} field_list;

/* result<handle>, result<handle, header-error>: the handle at 4. */
typedef struct {
    uint8_t tag;
    handle value;
} handle_result;

/* result<_, stream-error>: `error` is 0 for last-operation-failed (with a handle), 1 for closed. */
typedef struct {
    uint8_t tag;
    uint8_t error;
    handle cause;
} stream_result;

/* result<list<u8>, stream-error> */
typedef struct {
    uint8_t tag;
    union {
        text bytes;
        struct {
            uint8_t error;
            handle cause;
        };
    };
} read_result;

/* result<u64, stream-error> */
typedef struct {
    uint8_t tag;
    union {
        uint64_t count;
        struct {
            uint8_t error;
            handle cause;
        };
    };
} count_result;

/* option<string> */
typedef struct {
    uint8_t some;
    text value;
} text_option;

/* An error-code with its payload, which none of the guests looks at. */
typedef struct {
    union {
        uint8_t code;
        uint64_t whole[4];
    };
} error_code;

/* result<handle, error-code>; also result<_, error-code> */
typedef struct {
    uint8_t tag;
    union {
        handle value;
        error_code error;
    };
} error_result;

/* option<result<result<T, error-code>>>, T being a handle or, of trailers, option<handle>. */
typedef struct {
    uint8_t some;
    struct {
        uint8_t taken; /* 1 when the value was taken by an earlier call */
        struct {
            uint8_t tag;
            union {
                handle value;
                struct {
                    uint8_t some_value;
                    handle optional;
                };
                error_code error;
            };
        };
    };
} future_result;

_Static_assert(sizeof(error_code) == 32 && sizeof(future_result) == 56, "as the canonical ABI lays them out");

/* wasi:io */
IMPORT("io/poll", "[method]pollable.block") void pollable_block(handle);
IMPORT("io/poll", "[method]pollable.ready") bool pollable_ready(handle);
IMPORT("io/poll", "[resource-drop]pollable") void pollable_drop(handle);
IMPORT("io/error", "[resource-drop]error") void error_drop(handle);
IMPORT("io/streams", "[method]input-stream.read") void stream_read(handle, uint64_t, read_result *);
IMPORT("io/streams", "[method]input-stream.blocking-read") void stream_blocking_read(handle, uint64_t, read_result *);
IMPORT("io/streams", "[method]input-stream.subscribe") handle input_subscribe(handle);
IMPORT("io/streams", "[resource-drop]input-stream") void input_drop(handle);
IMPORT("io/streams", "[method]output-stream.check-write") void stream_check_write(handle, count_result *);
IMPORT("io/streams", "[method]output-stream.write") void stream_write(handle, const char *, size_t, stream_result *);
IMPORT("io/streams", "[method]output-stream.flush") void stream_flush(handle, stream_result *);
IMPORT("io/streams", "[method]output-stream.blocking-flush") void stream_blocking_flush(handle, stream_result *);
IMPORT("io/streams", "[method]output-stream.blocking-write-and-flush")
void stream_blocking_write_and_flush(handle, const char *, size_t, stream_result *);
IMPORT("io/streams", "[method]output-stream.blocking-splice")
void stream_blocking_splice(handle, handle, uint64_t, count_result *);
IMPORT("io/streams", "[method]output-stream.subscribe") handle output_subscribe(handle);
IMPORT("io/streams", "[resource-drop]output-stream") void output_drop(handle);

/* wasi:http/types: fields */
IMPORT("http/types", "[constructor]fields") handle fields_new(void);
IMPORT("http/types", "[static]fields.from-list") void fields_from_list(const field *, size_t, handle_result *);
IMPORT("http/types", "[method]fields.append")
void fields_append(handle, const char *, size_t, const char *, size_t, uint8_t result[2]);
IMPORT("http/types", "[method]fields.entries") void fields_entries(handle, field_list *);
IMPORT("http/types", "[resource-drop]fields") void fields_drop(handle);

/* wasi:http/types: the request that came in */
IMPORT("http/types", "[method]incoming-request.path-with-query") void request_path(handle, text_option *);
IMPORT("http/types", "[method]incoming-request.headers") handle request_headers(handle);
IMPORT("http/types", "[method]incoming-request.consume") void request_consume(handle, handle_result *);
IMPORT("http/types", "[resource-drop]incoming-request") void request_drop(handle);
IMPORT("http/types", "[method]incoming-body.stream") void body_stream(handle, handle_result *);
IMPORT("http/types", "[static]incoming-body.finish") handle body_finish(handle);
IMPORT("http/types", "[resource-drop]incoming-body") void body_drop(handle);
IMPORT("http/types", "[method]future-trailers.subscribe") handle trailers_subscribe(handle);
IMPORT("http/types", "[method]future-trailers.get") void trailers_get(handle, future_result *);
IMPORT("http/types", "[resource-drop]future-trailers") void trailers_drop(handle);

/* wasi:http/types: the response that goes out */
IMPORT("http/types", "[constructor]outgoing-response") handle response_new(handle headers);
IMPORT("http/types", "[method]outgoing-response.set-status-code") bool response_set_status(handle, uint32_t);
IMPORT("http/types", "[method]outgoing-response.body") void response_body(handle, handle_result *);
IMPORT("http/types", "[resource-drop]outgoing-response") void response_drop(handle);
IMPORT("http/types", "[static]response-outparam.set")
void outparam_set(handle, uint32_t tag, uint32_t value, uint32_t, uint64_t, uint32_t, uint32_t, uint32_t, uint32_t);
IMPORT("http/types", "[resource-drop]response-outparam") void outparam_drop(handle);
IMPORT("http/types", "[method]outgoing-body.write") void outgoing_write(handle, handle_result *);
IMPORT("http/types", "[static]outgoing-body.finish")
void outgoing_finish(handle, uint32_t some, handle trailers, error_result *);
IMPORT("http/types", "[resource-drop]outgoing-body") void outgoing_drop(handle);

/* wasi:http/outgoing-handler, and what it needs */
IMPORT("http/types", "[constructor]outgoing-request") handle call_new(handle headers);
IMPORT("http/types", "[method]outgoing-request.set-scheme")
bool call_set_scheme(handle, uint32_t some, uint32_t scheme, const char *, size_t);
IMPORT("http/types", "[method]outgoing-request.set-authority")
bool call_set_authority(handle, uint32_t some, const char *, size_t);
IMPORT("http/types", "[method]outgoing-request.set-path-with-query")
bool call_set_path(handle, uint32_t some, const char *, size_t);
IMPORT("http/types", "[resource-drop]outgoing-request") void call_drop(handle);
IMPORT("http/outgoing-handler", "handle")
void outgoing_handle(handle, uint32_t some, handle options, error_result *);
IMPORT("http/types", "[method]future-incoming-response.subscribe") handle answer_subscribe(handle);
IMPORT("http/types", "[method]future-incoming-response.get") void answer_get(handle, future_result *);
IMPORT("http/types", "[resource-drop]future-incoming-response") void answer_drop(handle);
IMPORT("http/types", "[method]incoming-response.status") uint32_t incoming_status(handle);
IMPORT("http/types", "[method]incoming-response.headers") handle incoming_headers(handle);
IMPORT("http/types", "[method]incoming-response.consume") void incoming_consume(handle, handle_result *);
IMPORT("http/types", "[resource-drop]incoming-response") void incoming_drop(handle);

/* Room for what the host hands over: taken from the start of the arena, and never given back but by arena_used = 0.
 * A host may ask for more than it needs in the end, and have the rest cut off. */
#ifndef ARENA_SIZE
#define ARENA_SIZE (1 << 18)
#endif
static _Alignas(16) char arena[ARENA_SIZE];
static size_t arena_used;

EXPORT("cabi_realloc") void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    size_t at = (arena_used + align - 1) & ~(align - 1);
    if (old != NULL && (size <= old_size || (char *)old + old_size == arena + arena_used)) {
        at = (size_t)((char *)old - arena); /* it shrinks, or is the last one */
    }
    if (at > ARENA_SIZE || size > ARENA_SIZE - at) {
        __builtin_trap();
    }
    if (old == NULL || arena + at != (char *)old) {
        for (size_t i = 0; i < old_size; i++) {
            arena[at + i] = ((const char *)old)[i];
        }
        arena_used = at + size;
    } else if ((char *)old + old_size == arena + arena_used) {
        arena_used = at + size;
    }
    return arena + at;
}

static inline void must(bool fine) {
    if (!fine) {
        __builtin_trap();
    }
}

static inline text text_of(const char *s) {
    uint32_t size = 0;
    while (s[size] != '\0') {
        size++;
    }
    return (text){s, size};
}

static inline bool begins(text t, const char *s) {
    const text start = text_of(s);
    for (uint32_t i = 0; i < start.size; i++) {
        if (i >= t.size || t.data[i] != s[i]) {
            return false;
        }
    }
    return true;
}

static inline bool is(text t, const char *s) { return text_of(s).size == t.size && begins(t, s); }

/* Whether a field has that name, which is given in lower case: hosts may keep the spelling of the sender. */
static inline bool named(const field *f, const char *name) {
    const text wanted = text_of(name);
    bool same = f->name.size == wanted.size;
    for (uint32_t i = 0; same && i < wanted.size; i++) {
        const char c = f->name.data[i];
        same = (c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c) == wanted.data[i];
    }
    return same;
}

/* A response that has no body yet is sent; its body's handle is returned. The headers are taken. */
static inline handle respond(handle outparam, uint32_t status, handle headers) {
    handle_result body;
    handle response = response_new(headers);
    must(!response_set_status(response, status));
    response_body(response, &body);
    must(body.tag == 0);
    outparam_set(outparam, 0, response, 0, 0, 0, 0, 0, 0);
    return body.value;
}

static inline handle respond_text(handle outparam, uint32_t status) {
    static const field plain[] = {{{"content-type", 12}, {"text/plain; charset=utf-8", 25}}};
    handle_result headers;
    fields_from_list(plain, 1, &headers);
    must(headers.tag == 0);
    return respond(outparam, status, headers.value);
}

/* All of `data`, as fast as the stream takes it, in writes of at most `most`; false when the reader is gone. */
static inline bool write_in_pieces(handle stream, const char *data, size_t size, size_t most) {
    while (size > 0) {
        count_result room;
        stream_result written;
        stream_check_write(stream, &room);
        if (room.tag != 0) {
            return false;
        }
        if (room.count == 0) {
            handle pollable = output_subscribe(stream);
            pollable_block(pollable);
            pollable_drop(pollable);
            continue;
        }
        for (size_t left = room.count < size ? (size_t)room.count : size; left > 0;) {
            size_t piece = left < most ? left : most;
            stream_write(stream, data, piece, &written);
            if (written.tag != 0) {
                return false;
            }
            data += piece;
            size -= piece;
            left -= piece;
        }
    }
    return true;
}

static inline bool write_all(handle stream, const char *data, size_t size) {
    return write_in_pieces(stream, data, size, size);
}

static inline bool write_text(handle stream, const char *s) { return write_all(stream, s, text_of(s).size); }

static inline bool write_number(handle stream, uint64_t number) {
    char digits[20], *at = digits + sizeof digits;
    do {
        *--at = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    return write_all(stream, at, (size_t)(digits + sizeof digits - at));
}

static inline void finish(handle body, bool has_trailers, handle trailers) {
    error_result finished;
    outgoing_finish(body, has_trailers, trailers, &finished);
    must(finished.tag == 0);
}

static inline handle stream_of(handle outgoing_body) {
    handle_result stream;
    outgoing_write(outgoing_body, &stream);
    must(stream.tag == 0);
    return stream.value;
}

/* What follows '?', or nothing. */
static inline text query_of(handle request) {
    text_option path;
    request_path(request, &path);
    if (path.some) {
        for (uint32_t i = 0; i < path.value.size; i++) {
            if (path.value.data[i] == '?') {
                return (text){path.value.data + i + 1, path.value.size - i - 1};
            }
        }
    }
    return (text){"", 0};
}

#endif /* FAAS_WASI_H */
