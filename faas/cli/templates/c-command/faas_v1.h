/* SPDX-License-Identifier: Apache-2.0
 *
 * faas_v1.h: what the host offers beyond WASI, in one header: keys and values,
 * config and secrets, HTTP requests, calls of other functions, jobs. For commands
 * and reactors alike; needs nothing but libc.
 *
 *     #include "faas_v1.h"
 *
 *     faas_store store;
 *     int64_t visits;
 *     int error = faas_kv_open("default", &store);
 *     if (error == 0)
 *         error = faas_kv_increment(store, "visits", 1, &visits);
 *
 * Only what is called is imported, and each of it has to be granted in
 * function.toml under [capabilities]: kv, secrets, outbound (HTTP), calls (calls
 * and jobs). Config values need no grant.
 *
 * Errors: every function returns 0 or one of the errnos below, for which
 * faas_v1_error has a text; the function's log has a line with the reason. After
 * FAAS_UNAVAILABLE the same call may succeed a little later.
 *
 * Waiting costs the function no CPU time, but its time limit runs on.
 *
 * Memory: what the functions hand out is from malloc and has a NUL behind it. It
 * need not be freed by a function whose instances serve one request each.
 */
#ifndef FAAS_V1_H
#define FAAS_V1_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    FAAS_FAULT = 1,   /* a range is not inside the memory */
    FAAS_INVALID = 2, /* an argument has not the documented form */
    FAAS_BAD_HANDLE = 3,
    FAAS_DENIED = 4, /* not granted */
    FAAS_NOT_FOUND = 5,
    FAAS_CONFLICT = 6, /* another value is there than was expected */
    FAAS_TOO_LARGE = 7,
    FAAS_LIMIT = 8,       /* too many handles, a store is full, calls too deep */
    FAAS_UNAVAILABLE = 9, /* not right now: retry */
    FAAS_TIMEOUT = 10,
    FAAS_FAILED = 11 /* the other side failed */
};

/* ------------------------------------------------------- the raw imports -- */

#define FAAS_V1_IMPORT(name)                                                                       \
    __attribute__((import_module("faas_v1"), import_name(#name))) extern uint32_t faas_v1_##name

FAAS_V1_IMPORT(result_read)(void *buffer, uint32_t size, uint32_t offset);
FAAS_V1_IMPORT(kv_open)(const char *name, uint32_t name_size, uint32_t *store);
FAAS_V1_IMPORT(kv_get)(uint32_t store, const char *key, uint32_t key_size, uint32_t *size);
FAAS_V1_IMPORT(kv_set)(uint32_t store, const char *key, uint32_t key_size, const void *value,
                       uint32_t size, uint64_t ttl_ms);
FAAS_V1_IMPORT(kv_delete)(uint32_t store, const char *key, uint32_t key_size);
FAAS_V1_IMPORT(kv_list)(uint32_t store, const char *prefix, uint32_t prefix_size,
                        const char *cursor, uint32_t cursor_size, uint32_t limit, uint32_t *size);
FAAS_V1_IMPORT(kv_increment)(uint32_t store, const char *key, uint32_t key_size, uint64_t delta,
                             int64_t *sum);
FAAS_V1_IMPORT(kv_compare_and_set)(uint32_t store, const char *key, uint32_t key_size,
                                   uint32_t flags, const void *expected, uint32_t expected_size,
                                   const void *value, uint32_t size, uint64_t ttl_ms);
FAAS_V1_IMPORT(config_get)(const char *name, uint32_t name_size, uint32_t *size);
FAAS_V1_IMPORT(secret_get)(const char *name, uint32_t name_size, uint32_t *size);
FAAS_V1_IMPORT(http_begin)(const void *request, uint32_t size, uint32_t *handle);
FAAS_V1_IMPORT(call_begin)(const void *request, uint32_t size, uint32_t *handle);
FAAS_V1_IMPORT(job_enqueue)(const void *request, uint32_t request_size, uint32_t *size);
FAAS_V1_IMPORT(response_head)(uint32_t handle, uint32_t *size);
FAAS_V1_IMPORT(response_read)(uint32_t handle, void *buffer, uint32_t room, uint32_t *size);
FAAS_V1_IMPORT(wait_any)(const uint32_t *handles, uint32_t count, uint64_t timeout_ms,
                         uint32_t *index);
FAAS_V1_IMPORT(close)(uint32_t handle);

/* What an errno means, for people. */
static inline const char *faas_v1_error(int error) {
    static const char *const texts[] = {
        "success",      "outside of the memory", "invalid argument", "no such handle",
        "not granted",  "not found",             "conflict",         "too large",
        "over a limit", "not available now",     "timed out",        "failed"};
    return (unsigned)error < sizeof texts / sizeof *texts ? texts[error] : "unknown error";
}

static inline void *faas_v1_alloc(void *block, size_t size) {
    block = realloc(block, size);
    if (block == NULL) {
        __builtin_trap();
    }
    return block;
}

/* Copies the last result, of `size` bytes, into a block from malloc. */
static inline int faas_v1_result(uint32_t error, uint32_t size, char **value) {
    *value = NULL;
    if (error == 0) {
        *value = (char *)faas_v1_alloc(NULL, (size_t)size + 1);
        (*value)[size] = '\0';
        error = faas_v1_result_read(*value, size, 0);
    }
    return (int)error;
}

/* ------------------------------------------------------- keys and values -- */

typedef uint32_t faas_store;

/* Opens a store: "default" is the function's own, any other name is that of the
 * function which shares its store. Good until the request is answered. */
static inline int faas_kv_open(const char *name, faas_store *store) {
    return (int)faas_v1_kv_open(name, (uint32_t)strlen(name), store);
}

/* Reads a value; FAAS_NOT_FOUND, and *value NULL, when there is none. */
static inline int faas_kv_get(faas_store store, const char *key, char **value, size_t *size) {
    uint32_t length = 0;
    uint32_t error = faas_v1_kv_get(store, key, (uint32_t)strlen(key), &length);
    *size = error == 0 ? length : 0;
    return faas_v1_result(error, length, value);
}

/* Stores a value; with ttl_ms it is gone after that many milliseconds, with 0 it stays. */
static inline int faas_kv_set(faas_store store, const char *key, const void *value, size_t size,
                              uint64_t ttl_ms) {
    return (int)faas_v1_kv_set(store, key, (uint32_t)strlen(key), value, (uint32_t)size, ttl_ms);
}

/* Removes a key; FAAS_NOT_FOUND when there is none. */
static inline int faas_kv_delete(faas_store store, const char *key) {
    return (int)faas_v1_kv_delete(store, key, (uint32_t)strlen(key));
}

/* Adds to an integer, atomically; a missing key counts as 0. `sum` may not be NULL. */
static inline int faas_kv_increment(faas_store store, const char *key, int64_t delta,
                                    int64_t *sum) {
    return (int)faas_v1_kv_increment(store, key, (uint32_t)strlen(key), (uint64_t)delta, sum);
}

/* Stores a value if what is there is `expected`, or nothing when that is NULL;
 * FAAS_CONFLICT otherwise. */
static inline int faas_kv_compare_and_set(faas_store store, const char *key, const void *expected,
                                          size_t expected_size, const void *value, size_t size,
                                          uint64_t ttl_ms) {
    return (int)faas_v1_kv_compare_and_set(
        store, key, (uint32_t)strlen(key), expected == NULL, expected,
        expected == NULL ? 0 : (uint32_t)expected_size, value, (uint32_t)size, ttl_ms);
}

/* Some keys, in the order of their bytes. */
typedef struct faas_keys {
    char **keys; /* C strings */
    size_t count;
    char *cursor; /* for the next page; "" when these were the last */
} faas_keys;

/* ---------------------------------------------------- config and secrets -- */

/* Reads a config value; FAAS_NOT_FOUND, and *value NULL, when it is not set. */
static inline int faas_config_get(const char *name, char **value) {
    uint32_t size = 0;
    uint32_t error = faas_v1_config_get(name, (uint32_t)strlen(name), &size);
    return faas_v1_result(error, size, value);
}

/* Reads a secret that function.toml grants. To send one to another host, leave it
 * to [[capabilities.credentials]] instead: then the function never holds it. */
static inline int faas_secret_get(const char *name, char **value) {
    uint32_t size = 0;
    uint32_t error = faas_v1_secret_get(name, (uint32_t)strlen(name), &size);
    return faas_v1_result(error, size, value);
}

/* -------------------------------------------------------------- requests -- */

/* A request to send. Fields that are NULL or 0 are left out:
 *
 *     faas_outgoing request = {.method = "POST", .url = "https://api.example.org/v1",
 *                              .headers = (const char *[]){"accept", "text/plain", NULL},
 *                              .body = text, .body_size = strlen(text)};
 */
typedef struct faas_outgoing {
    const char *method;         /* "GET" without one */
    const char *url;            /* HTTP: https://host/path?query */
    const char *function;       /* calls and jobs: whom ... */
    const char *qualifier;      /* ... an alias or a version, else what routes serve */
    const char *path;           /* ... and the path; the function's first route without */
    const char *const *headers; /* name, value, name, value, ..., NULL */
    const void *body;
    size_t body_size;
    uint32_t timeout_ms;         /* for the connection, the head, and each wait for the body */
    uint32_t delay_ms;           /* jobs: not before */
    const char *idempotency_key; /* jobs: one key is one job */
} faas_outgoing;

/* A request under way, or answered. Good until it is closed. */
typedef uint32_t faas_handle;

static inline char *faas_v1_put(char *at, unsigned char tag, const void *data, size_t size) {
    *at++ = (char)tag; /* always the 32-bit form: valid, and one case */
    for (int shift = 24; shift >= 0; shift -= 8) {
        *at++ = (char)(size >> shift);
    }
    if (data != NULL && size > 0) {
        memcpy(at, data, size);
        at += size;
    }
    return at;
}

static inline char *faas_v1_put_text(char *at, const char *key, const char *text, unsigned *count) {
    if (text == NULL) {
        return at;
    }
    *count += 1;
    at = faas_v1_put(at, 0xDB, key, strlen(key));
    return faas_v1_put(at, 0xDB, text, strlen(text));
}

static inline char *faas_v1_put_uint(char *at, const char *key, uint32_t number, unsigned *count) {
    if (number == 0) {
        return at;
    }
    *count += 1;
    at = faas_v1_put(at, 0xDB, key, strlen(key));
    return faas_v1_put(at, 0xCE, NULL, number);
}

/* The msgpack map of a request, in a block from malloc. */
static inline char *faas_v1_encode(const faas_outgoing *request, size_t *size) {
    const char *const texts[] = {request->method,    request->url,  request->function,
                                 request->qualifier, request->path, request->idempotency_key};
    size_t room = 256 + request->body_size;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        room += texts[i] != NULL ? strlen(texts[i]) : 0;
    }
    size_t header_count = 0;
    for (const char *const *at = request->headers; at != NULL && *at != NULL; at++) {
        room += strlen(*at) + 5;
        header_count++;
    }
    if (room < request->body_size) {
        __builtin_trap();
    }
    char *out = (char *)faas_v1_alloc(NULL, room), *at = out + 5;
    unsigned count = 0;
    at = faas_v1_put_text(at, "method", request->method, &count);
    at = faas_v1_put_text(at, "url", request->url, &count);
    at = faas_v1_put_text(at, "function", request->function, &count);
    at = faas_v1_put_text(at, "qualifier", request->qualifier, &count);
    at = faas_v1_put_text(at, "path", request->path, &count);
    at = faas_v1_put_text(at, "idempotency_key", request->idempotency_key, &count);
    at = faas_v1_put_uint(at, "timeout_ms", request->timeout_ms, &count);
    at = faas_v1_put_uint(at, "delay_ms", request->delay_ms, &count);
    if (header_count > 1) {
        count++;
        at = faas_v1_put(at, 0xDB, "headers", 7);
        /* An array of pairs, not a map: a name may occur more than once. */
        at = faas_v1_put(at, 0xDD, NULL, header_count / 2);
        for (size_t i = 0; i + 1 < header_count; i += 2) {
            *at++ = (char)0x92;
            at = faas_v1_put(at, 0xDB, request->headers[i], strlen(request->headers[i]));
            at = faas_v1_put(at, 0xC6, request->headers[i + 1], strlen(request->headers[i + 1]));
        }
    }
    if (request->body_size > 0) {
        count++;
        at = faas_v1_put(at, 0xDB, "body", 4);
        at = faas_v1_put(at, 0xC6, request->body, request->body_size);
    }
    faas_v1_put(out, 0xDF, NULL, count);
    *size = (size_t)(at - out);
    return out;
}

/* Begins an HTTP request. It goes on while the function does something else, or
 * begins another one. Redirects are answers like any other. */
static inline int faas_http_begin(const faas_outgoing *request, faas_handle *handle) {
    size_t size;
    char *encoded = faas_v1_encode(request, &size);
    uint32_t error = faas_v1_http_begin(encoded, (uint32_t)size, handle);
    free(encoded);
    return (int)error;
}

/* Begins a call of another function of this host, in memory: no connection, the
 * caller's deadline. */
static inline int faas_call_begin(const faas_outgoing *request, faas_handle *handle) {
    size_t size;
    char *encoded = faas_v1_encode(request, &size);
    uint32_t error = faas_v1_call_begin(encoded, (uint32_t)size, handle);
    free(encoded);
    return (int)error;
}

/* Hands a request to the job queue, where it outlives this one; *job is its id. */
static inline int faas_job_enqueue(const faas_outgoing *request, char **job) {
    size_t size;
    uint32_t length = 0;
    char *encoded = faas_v1_encode(request, &size);
    uint32_t error = faas_v1_job_enqueue(encoded, (uint32_t)size, &length);
    free(encoded);
    return faas_v1_result(error, length, job);
}

/* ------------------------------------------------------------- responses -- */

typedef struct faas_field {
    const char *name;  /* as the other side wrote it */
    const char *value; /* with a NUL behind it */
    size_t value_size;
} faas_field;

typedef struct faas_head {
    unsigned status;
    faas_field *headers;
    size_t header_count;
} faas_head;

/* A msgpack value's head: what kind ('t'ext, 'a'rray, 'm'ap, 'u'int), and how much of
 * it. Returns where it goes on, NULL when that is outside; the host writes no others. */
static inline char *faas_v1_token(char *at, const char *end, char *kind, size_t *count) {
    if (at == NULL || at >= end) {
        return NULL;
    }
    unsigned tag = (unsigned char)*at++;
    unsigned bytes = 0;
    *kind = tag <= 0x7F || tag == 0xCC || tag == 0xCD || tag == 0xCE ? 'u'
            : tag <= 0x8F || tag == 0xDE || tag == 0xDF              ? 'm'
            : tag <= 0x9F || tag == 0xDC || tag == 0xDD              ? 'a'
                                                                     : 't';
    if (tag <= 0x7F) {
        *count = tag;
    } else if (tag <= 0xBF) {
        *count = tag <= 0x9F ? tag & 0x0F : tag & 0x1F;
    } else if (tag >= 0xC4 && tag <= 0xC6) { /* bin */
        bytes = 1u << (tag - 0xC4);
    } else if (tag >= 0xCC && tag <= 0xCE) { /* uint */
        bytes = 1u << (tag - 0xCC);
    } else if (tag >= 0xD9 && tag <= 0xDB) { /* str */
        bytes = 1u << (tag - 0xD9);
    } else if (tag >= 0xDC && tag <= 0xDF) { /* array, map */
        bytes = tag & 1 ? 4 : 2;
    } else {
        return NULL;
    }
    if (bytes > (size_t)(end - at)) {
        return NULL;
    }
    if (bytes > 0) {
        *count = 0;
    }
    while (bytes-- > 0) {
        *count = *count << 8 | (unsigned char)*at++;
    }
    return *kind != 'u' && *count > (size_t)(end - at) ? NULL : at;
}

/* A str or bin: moves it one byte down, over its own head, and puts a NUL behind it. */
static inline char *faas_v1_text(char *at, const char *end, char **text, size_t *size) {
    char kind;
    at = faas_v1_token(at, end, &kind, size);
    if (at == NULL || kind != 't') {
        return NULL;
    }
    *text = (char *)memmove(at - 1, at, *size);
    (*text)[*size] = '\0';
    return at + *size;
}

static inline char *faas_v1_fields(char *at, const char *end, faas_head *head) {
    char kind;
    size_t count = 0, pair = 0, size;
    at = faas_v1_token(at, end, &kind, &count);
    if (at == NULL || kind != 'a') {
        return NULL;
    }
    head->headers = (faas_field *)faas_v1_alloc(NULL, (count + 1) * sizeof(faas_field));
    for (size_t i = 0; i < count && at != NULL; i++) {
        faas_field *field = &head->headers[i];
        at = faas_v1_token(at, end, &kind, &pair);
        at = faas_v1_text(at, end, (char **)&field->name, &size);
        at = faas_v1_text(at, end, (char **)&field->value, &field->value_size);
    }
    head->header_count = at != NULL ? count : 0;
    return at;
}

/* Waits for a response's head. */
static inline int faas_response_head(faas_handle handle, faas_head *head) {
    uint32_t length = 0;
    char *at, *key, kind;
    size_t count = 0, size, status = 0;
    memset(head, 0, sizeof *head);
    uint32_t error = faas_v1_response_head(handle, &length);
    error = (uint32_t)faas_v1_result(error, length, &at);
    if (error != 0) {
        return (int)error;
    }
    const char *end = at + length;
    at = faas_v1_token(at, end, &kind, &count);
    for (size_t i = 0; i < count && at != NULL; i++) {
        at = faas_v1_text(at, end, &key, &size);
        if (at != NULL && strcmp(key, "status") == 0) {
            at = faas_v1_token(at, end, &kind, &status);
        } else if (at != NULL && strcmp(key, "headers") == 0) {
            at = faas_v1_fields(at, end, head);
        } else {
            break; /* a key of a later host comes behind those of this one */
        }
    }
    head->status = (unsigned)status;
    return at != NULL ? 0 : FAAS_FAILED;
}

/* The first header of that name, in any case; NULL when there is none. */
static inline const char *faas_response_header(const faas_head *head, const char *name) {
    for (size_t i = 0; i < head->header_count; i++) {
        const char *at = head->headers[i].name, *wanted = name;
        while (*at != '\0' && (*at | (*at >= 'A' && *at <= 'Z' ? 0x20 : 0)) ==
                                  (*wanted | (*wanted >= 'A' && *wanted <= 'Z' ? 0x20 : 0))) {
            at++;
            wanted++;
        }
        if (*at == '\0' && *wanted == '\0') {
            return head->headers[i].value;
        }
    }
    return NULL;
}

/* Waits for some of a response's body: *size is how much was stored, 0 at the end. */
static inline int faas_response_read(faas_handle handle, void *buffer, size_t room, size_t *size) {
    uint32_t length = 0;
    uint32_t error = faas_v1_response_read(handle, buffer, (uint32_t)room, &length);
    *size = error == 0 ? length : 0;
    return (int)error;
}

/* Waits for all that is left of a response's body, and closes the handle. */
static inline int faas_response_read_all(faas_handle handle, char **body, size_t *size) {
    size_t room = 4096, used = 0, more = 0;
    char *block = (char *)faas_v1_alloc(NULL, room + 1);
    int error;
    while ((error = faas_response_read(handle, block + used, room - used, &more)) == 0 && more > 0) {
        used += more;
        if (used == room) {
            room *= 2;
            block = (char *)faas_v1_alloc(block, room + 1);
        }
    }
    (void)faas_v1_close(handle);
    block[used] = '\0';
    *body = block;
    *size = used;
    return error;
}

#define FAAS_FOREVER UINT64_MAX

/* Waits until one of some requests has something to say: its head, or, once that
 * was taken, more of its body or the end of it. *index says which; of several, the
 * first. FAAS_TIMEOUT when none has within timeout_ms; 0 only looks. */
static inline int faas_wait_any(const faas_handle *handles, size_t count, uint64_t timeout_ms,
                                size_t *index) {
    uint32_t first = 0;
    uint32_t error = faas_v1_wait_any(handles, (uint32_t)count, timeout_ms, &first);
    *index = first;
    return (int)error;
}

/* Ends a request, whatever of it is left, or forgets a store. */
static inline int faas_close(uint32_t handle) { return (int)faas_v1_close(handle); }

/* ----------------------------------------------------------- lists of keys -- */

/* Lists up to `limit` keys (1 to 1000) that begin with `prefix`; `cursor` is "" for
 * the first page, then that of the page before. */
static inline int faas_kv_list(faas_store store, const char *prefix, const char *cursor,
                               unsigned limit, faas_keys *page) {
    uint32_t length = 0;
    char *at, *key, kind;
    size_t count = 0, n_keys = 0, size;
    memset(page, 0, sizeof *page);
    uint32_t error = faas_v1_kv_list(store, prefix, (uint32_t)strlen(prefix), cursor,
                                     (uint32_t)strlen(cursor), limit, &length);
    error = (uint32_t)faas_v1_result(error, length, &at);
    if (error != 0) {
        return (int)error;
    }
    const char *end = at + length;
    at = faas_v1_token(at, end, &kind, &count);
    for (size_t i = 0; i < count && at != NULL; i++) {
        at = faas_v1_text(at, end, &key, &size);
        if (at != NULL && strcmp(key, "keys") == 0) {
            at = faas_v1_token(at, end, &kind, &n_keys);
            page->keys = (char **)faas_v1_alloc(NULL, (n_keys + 1) * sizeof(char *));
            for (; page->count < n_keys && at != NULL; page->count++) {
                at = faas_v1_text(at, end, &page->keys[page->count], &size);
            }
        } else if (at != NULL && strcmp(key, "cursor") == 0) {
            at = faas_v1_text(at, end, &page->cursor, &size);
        } else {
            break;
        }
    }
    return at != NULL ? 0 : FAAS_FAILED;
}

#endif /* FAAS_V1_H */
