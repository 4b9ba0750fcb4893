/* SPDX-License-Identifier: Apache-2.0
 *
 * faas.h: C SDK for `reactor` functions, in one header.
 *
 * A reactor function receives a whole request and returns a whole response.
 * Write one function and include this header in exactly one C file:
 *
 *     #include "faas.h"
 *
 *     void handle(const faas_request *req, faas_response *res) {
 *         faas_set_status(res, 200);
 *         faas_add_header(res, "content-type", "text/plain");
 *         faas_print(res, "hello\n");
 *     }
 *
 *     cc -target wasm32-wasi -mexec-model=reactor -Os -s hello.c -o hello.wasm
 *
 * The header defines the exports `faas_alloc` and `faas_handle`; `memory` and
 * `_initialize` come from the linker and the C library. Other C files of the
 * same module define FAAS_NO_EXPORTS before they include it.
 *
 * Lifetime: the host makes a fresh instance for every request and discards its
 * memory afterwards. So nothing needs to be freed, everything the SDK hands out
 * stays valid until `handle` has returned, and C variables do not carry over to
 * the next request.
 *
 * Strings: a faas_str is a view (pointer and length in bytes) into the request.
 * It is NOT terminated by NUL and may contain NUL; faas_cstr makes a C string.
 * An absent value has data == NULL; an empty one has size == 0.
 *
 * Errors: the SDK traps (the host answers 5xx) when memory runs out, so no
 * return value has to be checked for that.
 */
#ifndef FAAS_H
#define FAAS_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- types -- */

/* A view of bytes: not NUL-terminated, valid until `handle` returns. */
typedef struct faas_str {
    const char *data; /* NULL when the value is absent */
    size_t size;      /* bytes */
} faas_str;

typedef struct faas_pair {
    faas_str name;
    faas_str value;
} faas_pair;

typedef struct faas_request {
    faas_str method; /* as sent: "GET", "POST", ... */
    faas_str path;   /* request path, percent-encoding as the host left it */
    faas_str query;  /* raw, without the '?'; empty when there is none */
    /* In order of arrival; names in lower case; values are UTF-8 or, when the
     * client sent something else, raw bytes. One name may occur many times. */
    const faas_pair *headers;
    size_t header_count;
    /* Route parameters: the route "/user/{id}" gives "id". */
    const faas_pair *params;
    size_t param_count;
    faas_str route;       /* the route pattern that matched */
    faas_str function;    /* this function's name ... */
    uint64_t version;     /* ... and deployed version */
    faas_str request_id;  /* as it appears in the host's log */
    faas_str remote_addr; /* client address, text */
    /* Milliseconds left for this request when it was handed over; the host
     * stops the function after that. 0 when the host gave none. */
    uint64_t deadline_ms;
    faas_str body;
} faas_request;

/* A response under construction. Starts as status 200 with no headers and an
 * empty body. Use the functions below; the fields are private. */
typedef struct faas_response {
    unsigned status;
    char *headers; /* encoded [name, value] pairs */
    size_t headers_size, headers_room;
    size_t header_count;
    char *body;
    size_t body_size, body_room;
    faas_str borrowed; /* set by faas_set_body */
} faas_response;

/* The function to write. Called once, with the decoded request and an empty
 * response; what is in *res on return is sent. */
void handle(const faas_request *req, faas_response *res);

/* --------------------------------------------------------------- memory -- */

/* Returns `size` bytes aligned to 16, not zeroed. Never NULL: traps when the
 * memory limit is reached. Cannot be freed. */
static inline void *faas_malloc(size_t size);

/* -------------------------------------------------------------- strings -- */

/* A view of a C string (without its NUL). */
static inline faas_str faas_view(const char *text) {
    faas_str view = {text, text != NULL ? strlen(text) : 0};
    return view;
}

/* Whether a view holds exactly the C string `text`. False when absent. */
static inline bool faas_equal(faas_str view, const char *text) {
    return view.data != NULL && view.size == strlen(text) &&
           memcmp(view.data, text, view.size) == 0;
}

/* A NUL-terminated copy, or NULL when the value is absent. */
static inline char *faas_cstr(faas_str view) {
    if (view.data == NULL) {
        return NULL;
    }
    char *copy = (char *)faas_malloc(view.size + 1);
    memcpy(copy, view.data, view.size);
    copy[view.size] = '\0';
    return copy;
}

/* -------------------------------------------------------------- request -- */

static inline faas_str faas_find(const faas_pair *pairs, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++) {
        if (faas_equal(pairs[i].name, name)) {
            return pairs[i].value;
        }
    }
    return (faas_str){NULL, 0};
}

/* First header field of that name, which must be given in lower case. */
static inline faas_str faas_header(const faas_request *req, const char *name) {
    return faas_find(req->headers, req->header_count, name);
}

/* Route parameter by name. */
static inline faas_str faas_param(const faas_request *req, const char *name) {
    return faas_find(req->params, req->param_count, name);
}

static inline int faas_hex_digit(char c) {
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decodes application/x-www-form-urlencoded text: '+' is a space, %XX a byte; a
 * '%' without two hex digits stands for itself. The result is a copy. */
static inline faas_str faas_form_decode(faas_str text) {
    char *out = (char *)faas_malloc(text.size + 1);
    size_t size = 0;
    for (size_t i = 0; i < text.size; i++) {
        char c = text.data[i];
        if (c == '+') {
            c = ' ';
        } else if (c == '%' && text.size - i > 2) {
            int high = faas_hex_digit(text.data[i + 1]);
            int low = faas_hex_digit(text.data[i + 2]);
            if (high >= 0 && low >= 0) {
                c = (char)(high << 4 | low);
                i += 2;
            }
        }
        out[size++] = c;
    }
    out[size] = '\0';
    return (faas_str){out, size};
}

/* First value of `name` in form-urlencoded text (req->query, or a form body),
 * decoded. Absent when the name does not occur; empty for "name" and "name=". */
static inline faas_str faas_form_value(faas_str form, const char *name) {
    size_t start = 0;
    while (start < form.size) {
        size_t end = start;
        size_t equals = SIZE_MAX;
        while (end < form.size && form.data[end] != '&') {
            if (form.data[end] == '=' && equals == SIZE_MAX) {
                equals = end;
            }
            end++;
        }
        size_t name_end = equals != SIZE_MAX ? equals : end;
        faas_str key = {form.data + start, name_end - start};
        if (faas_equal(faas_form_decode(key), name)) {
            size_t value = equals != SIZE_MAX ? equals + 1 : end;
            return faas_form_decode((faas_str){form.data + value, end - value});
        }
        start = end + 1;
    }
    return (faas_str){NULL, 0};
}

/* ------------------------------------------------------------- response -- */

/* Appends to a growing block; see faas_malloc for the failure case. */
static inline void faas_append(char **block, size_t *size, size_t *room, const void *data,
                               size_t more);

/* Sets the status code; the host refuses codes outside 200..599. */
static inline void faas_set_status(faas_response *res, unsigned status) { res->status = status; }

/* Adds a header field (also when one of that name exists). Both are copied. The
 * host sets Content-Length, and refuses CR, LF and NUL in either. */
static inline void faas_add_header_view(faas_response *res, faas_str name, faas_str value);
static inline void faas_add_header(faas_response *res, const char *name, const char *value) {
    faas_add_header_view(res, faas_view(name), faas_view(value));
}

/* Makes `body` the whole body, dropping what was written before. Not copied at
 * this point: it must stay unchanged until `handle` returns. */
static inline void faas_set_body(faas_response *res, faas_str body) {
    res->borrowed = body;
    res->body_size = 0;
}

/* Appends bytes to the body. */
static inline void faas_write(faas_response *res, const void *data, size_t size) {
    if (res->borrowed.data != NULL) {
        faas_str before = res->borrowed;
        res->borrowed = (faas_str){NULL, 0};
        faas_append(&res->body, &res->body_size, &res->body_room, before.data, before.size);
    }
    faas_append(&res->body, &res->body_size, &res->body_room, data, size);
}

/* Appends a view, or a C string, to the body. */
static inline void faas_write_str(faas_response *res, faas_str text) {
    faas_write(res, text.data, text.size);
}
static inline void faas_print(faas_response *res, const char *text) {
    faas_write(res, text, strlen(text));
}

/* Appends formatted text to the body, as printf. Pulls the C library's
 * formatter into the module (some 15 KB) when it is used. */
__attribute__((format(printf, 2, 3))) static inline void faas_printf(faas_response *res,
                                                                     const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int size = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (size < 0) {
        __builtin_trap();
    }
    char *text = (char *)faas_malloc((size_t)size + 1);
    vsnprintf(text, (size_t)size + 1, format, again);
    va_end(again);
    faas_write(res, text, (size_t)size);
}

/* Appends an unsigned number in decimal, without the formatter's cost. */
static inline void faas_write_uint(faas_response *res, uint64_t number) {
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    faas_write(res, digits + at, sizeof digits - at);
}

/* Length of the UTF-8 sequence at `text` (1..4), or minus the length of the
 * longest prefix that could have begun one (-1..-3) when it is broken. */
static inline int faas_utf8_length(const unsigned char *text, size_t size) {
    unsigned char lead = text[0], low = 0x80, high = 0xBF;
    int length;
    if (lead < 0x80) {
        return 1;
    } else if (lead >= 0xC2 && lead <= 0xDF) {
        length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
        length = 3;
        low = lead == 0xE0 ? 0xA0 : 0x80;  /* no overlong forms */
        high = lead == 0xED ? 0x9F : 0xBF; /* no surrogates */
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        length = 4;
        low = lead == 0xF0 ? 0x90 : 0x80;
        high = lead == 0xF4 ? 0x8F : 0xBF; /* nothing above U+10FFFF */
    } else {
        return -1;
    }
    for (int i = 1; i < length; i++) {
        if ((size_t)i >= size || text[i] < low || text[i] > high) {
            return -i;
        }
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

/* Appends a view as a JSON string, quotes included. Bytes that are not UTF-8
 * become U+FFFD, since JSON has no other way to say them. */
static inline void faas_write_json(faas_response *res, faas_str text) {
    static const char hex[] = "0123456789abcdef";
    const unsigned char *data = (const unsigned char *)text.data;
    faas_write(res, "\"", 1);
    for (size_t i = 0; i < text.size;) {
        unsigned char c = data[i];
        if (c == '"' || c == '\\') {
            char escape[2] = {'\\', (char)c};
            faas_write(res, escape, 2);
            i++;
        } else if (c < 0x20 || c == 0x7F) {
            char escape[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
            faas_write(res, escape, 6);
            i++;
        } else {
            int length = faas_utf8_length(data + i, text.size - i);
            if (length > 0) {
                faas_write(res, data + i, (size_t)length);
                i += (size_t)length;
            } else {
                faas_write(res, "\xEF\xBF\xBD", 3);
                i += (size_t)-length;
            }
        }
    }
    faas_write(res, "\"", 1);
}

/* ------------------------------------------------------- implementation -- */

/* A bump allocator on pages of its own from memory.grow. It can live beside the
 * C library's malloc, which copes with pages it did not ask for. Used instead of
 * malloc because nothing is freed, blocks can be extended in place, and the
 * exact size is taken: some mallocs round a large body up to a power of two. */
#ifndef FAAS_NO_EXPORTS
uintptr_t faas_heap_next, faas_heap_end;
#else
extern uintptr_t faas_heap_next, faas_heap_end;
#endif

/* Makes room for `size` bytes at faas_heap_next; false when memory is refused. */
static inline bool faas_reserve(size_t size) {
    const size_t page = 65536;
    if (size <= faas_heap_end - faas_heap_next) {
        return true;
    }
    if (size > SIZE_MAX - page) {
        return false;
    }
    size_t lacking = size - (faas_heap_end - faas_heap_next);
    bool adjoins = __builtin_wasm_memory_size(0) * page == faas_heap_end;
    size_t pages = ((adjoins ? lacking : size) + page - 1) / page;
    size_t before = __builtin_wasm_memory_grow(0, pages);
    if (before == SIZE_MAX) {
        return false;
    }
    if (!adjoins) {
        /* Somebody else has grown the memory since: start anew behind that. */
        faas_heap_next = before * page;
    }
    faas_heap_end = (before + pages) * page;
    return true;
}

static inline void *faas_try_malloc(size_t size) {
    if (size > SIZE_MAX - 15) {
        return NULL;
    }
    size = (size + 15) & ~(size_t)15;
    /* Zero bytes need an address of their own: 0 would mean failure. */
    if (!faas_reserve(size != 0 ? size : 16)) {
        return NULL;
    }
    void *block = (void *)faas_heap_next;
    faas_heap_next += size;
    return block;
}

static inline void *faas_malloc(size_t size) {
    void *block = faas_try_malloc(size);
    if (block == NULL) {
        __builtin_trap();
    }
    return block;
}

static inline void faas_append(char **block, size_t *size, size_t *room, const void *data,
                               size_t more) {
    if (more == 0) {
        return; /* and `data` may be NULL */
    }
    if (more > *room - *size) {
        if (more > SIZE_MAX / 2 - *size) {
            __builtin_trap();
        }
        size_t wanted = *size + more;
        if (*block != NULL && (uintptr_t)*block + *room == faas_heap_next) {
            /* The last block handed out grows in place, without a copy. */
            size_t extra = (wanted - *room + 15) & ~(size_t)15;
            if (!faas_reserve(extra)) {
                __builtin_trap();
            }
            if ((uintptr_t)*block + *room == faas_heap_next) {
                faas_heap_next += extra;
                *room += extra;
            }
        }
        if (more > *room - *size) {
            size_t doubled = wanted < 256 ? 256 : (wanted * 2 + 15) & ~(size_t)15;
            char *bigger = (char *)faas_malloc(doubled);
            if (*size > 0) {
                memcpy(bigger, *block, *size);
            }
            *block = bigger;
            *room = doubled;
        }
    }
    memcpy(*block + *size, data, more);
    *size += more;
}

/* msgpack, the part that is needed: https://github.com/msgpack/msgpack/blob/master/spec.md */

static inline size_t faas_put_head(unsigned char *out, unsigned char tag32, size_t count) {
    out[0] = tag32; /* always the 32-bit form: valid, and one case */
    out[1] = (unsigned char)(count >> 24);
    out[2] = (unsigned char)(count >> 16);
    out[3] = (unsigned char)(count >> 8);
    out[4] = (unsigned char)count;
    return 5;
}

static inline void faas_add_header_view(faas_response *res, faas_str name, faas_str value) {
    unsigned char head[6] = {0x92}; /* array of 2 */
    faas_put_head(head + 1, 0xDB, name.size);
    faas_append(&res->headers, &res->headers_size, &res->headers_room, head, 6);
    faas_append(&res->headers, &res->headers_size, &res->headers_room, name.data, name.size);
    faas_put_head(head, 0xDB, value.size);
    faas_append(&res->headers, &res->headers_size, &res->headers_room, head, 5);
    faas_append(&res->headers, &res->headers_size, &res->headers_room, value.data, value.size);
    res->header_count++;
}

#ifndef FAAS_NO_EXPORTS

typedef struct faas_reader {
    const unsigned char *at, *end;
    bool failed; /* sticky; readers return zeros after it is set */
} faas_reader;

typedef enum faas_kind { FAAS_OTHER, FAAS_UINT, FAAS_TEXT, FAAS_ARRAY, FAAS_MAP } faas_kind;

/* A value's first bytes. For text (str, bin, ext) `count` bytes follow, for an
 * array or a map `count` elements or pairs; a uint is in `count` itself; of any
 * other kind nothing follows. */
typedef struct faas_token {
    faas_kind kind;
    bool is_ext;
    uint64_t count;
} faas_token;

static uint64_t faas_get_be(faas_reader *in, unsigned size) {
    if ((size_t)(in->end - in->at) < size) {
        in->failed = true;
        in->at = in->end;
        return 0;
    }
    uint64_t number = 0;
    while (size-- > 0) {
        number = number << 8 | *in->at++;
    }
    return number;
}

static faas_token faas_get_token(faas_reader *in) {
    faas_token token = {FAAS_OTHER, false, 0};
    unsigned tag = (unsigned)faas_get_be(in, 1);
    if (in->failed) {
        return token;
    }
    if (tag <= 0x7F) {
        token.kind = FAAS_UINT;
        token.count = tag;
    } else if (tag <= 0x8F) {
        token.kind = FAAS_MAP;
        token.count = tag & 0x0F;
    } else if (tag <= 0x9F) {
        token.kind = FAAS_ARRAY;
        token.count = tag & 0x0F;
    } else if (tag <= 0xBF) {
        token.kind = FAAS_TEXT;
        token.count = tag & 0x1F;
    } else if (tag >= 0xE0 || tag == 0xC0 || tag == 0xC2 || tag == 0xC3) {
        /* negative fixint, nil, false, true: complete */
    } else if (tag >= 0xC4 && tag <= 0xC6) { /* bin */
        token.kind = FAAS_TEXT;
        token.count = faas_get_be(in, 1u << (tag - 0xC4));
    } else if (tag >= 0xC7 && tag <= 0xC9) { /* ext: a type byte, then the data */
        token.kind = FAAS_TEXT;
        token.is_ext = true;
        token.count = faas_get_be(in, 1u << (tag - 0xC7)) + 1;
    } else if (tag == 0xCA || tag == 0xCB) { /* float */
        faas_get_be(in, tag == 0xCA ? 4 : 8);
    } else if (tag >= 0xCC && tag <= 0xCF) { /* uint */
        token.kind = FAAS_UINT;
        token.count = faas_get_be(in, 1u << (tag - 0xCC));
    } else if (tag >= 0xD0 && tag <= 0xD3) { /* int */
        unsigned size = 1u << (tag - 0xD0);
        token.count = faas_get_be(in, size);
        if (token.count >> (size * 8 - 1) == 0) {
            token.kind = FAAS_UINT; /* a signed form may hold a positive number */
        }
    } else if (tag >= 0xD4 && tag <= 0xD8) { /* fixext */
        token.kind = FAAS_TEXT;
        token.is_ext = true;
        token.count = (1u << (tag - 0xD4)) + 1;
    } else if (tag >= 0xD9 && tag <= 0xDB) { /* str */
        token.kind = FAAS_TEXT;
        token.count = faas_get_be(in, 1u << (tag - 0xD9));
    } else if (tag == 0xDC || tag == 0xDD) {
        token.kind = FAAS_ARRAY;
        token.count = faas_get_be(in, tag == 0xDC ? 2 : 4);
    } else if (tag == 0xDE || tag == 0xDF) {
        token.kind = FAAS_MAP;
        token.count = faas_get_be(in, tag == 0xDE ? 2 : 4);
    } else { /* 0xC1 */
        in->failed = true;
    }
    /* Every byte or element counted takes at least a byte. Checking it here
     * keeps a false count from costing memory or time later. */
    if (token.kind >= FAAS_TEXT && token.count > (uint64_t)(in->end - in->at)) {
        in->failed = true;
    }
    if (in->failed) {
        in->at = in->end;
        return (faas_token){FAAS_OTHER, false, 0};
    }
    return token;
}

/* Passes over one value of any type, without recursion: nesting costs a count. */
static void faas_skip(faas_reader *in) {
    for (uint64_t left = 1; left > 0 && !in->failed; left--) {
        faas_token token = faas_get_token(in);
        if (token.kind == FAAS_TEXT) {
            in->at += token.count;
        } else if (token.kind == FAAS_ARRAY) {
            left += token.count;
        } else if (token.kind == FAAS_MAP) {
            left += 2 * token.count;
        }
    }
}

/* str or bin. Anything else, nil included, fails. */
static faas_str faas_get_text(faas_reader *in) {
    faas_token token = faas_get_token(in);
    if (in->failed || token.kind != FAAS_TEXT || token.is_ext) {
        in->failed = true;
        return (faas_str){NULL, 0};
    }
    faas_str view = {(const char *)in->at, (size_t)token.count};
    in->at += token.count;
    return view;
}

static uint64_t faas_get_uint(faas_reader *in) {
    faas_token token = faas_get_token(in);
    if (token.kind != FAAS_UINT) {
        in->failed = true;
        return 0;
    }
    return token.count;
}

/* A map of text to text, or an array of [text, text]. */
static const faas_pair *faas_get_pairs(faas_reader *in, size_t *count) {
    faas_token token = faas_get_token(in);
    if (token.kind != FAAS_MAP && token.kind != FAAS_ARRAY) {
        in->failed = true;
        return NULL;
    }
    faas_pair *pairs = (faas_pair *)faas_malloc((size_t)token.count * sizeof(faas_pair));
    for (size_t i = 0; i < token.count && !in->failed; i++) {
        if (token.kind == FAAS_ARRAY) {
            faas_token pair = faas_get_token(in);
            if (pair.kind != FAAS_ARRAY || pair.count != 2) {
                in->failed = true;
            }
        }
        pairs[i].name = faas_get_text(in);
        pairs[i].value = faas_get_text(in);
    }
    *count = in->failed ? 0 : (size_t)token.count;
    return pairs;
}

static bool faas_decode(const unsigned char *data, size_t size, faas_request *req) {
    faas_reader in = {data, data + size, false};
    faas_token map = faas_get_token(&in);
    if (map.kind != FAAS_MAP) {
        return false;
    }
    for (uint64_t i = 0; i < map.count && !in.failed; i++) {
        faas_str key = faas_get_text(&in);
        if (faas_equal(key, "method")) {
            req->method = faas_get_text(&in);
        } else if (faas_equal(key, "path")) {
            req->path = faas_get_text(&in);
        } else if (faas_equal(key, "query")) {
            req->query = faas_get_text(&in);
        } else if (faas_equal(key, "headers")) {
            req->headers = faas_get_pairs(&in, &req->header_count);
        } else if (faas_equal(key, "params")) {
            req->params = faas_get_pairs(&in, &req->param_count);
        } else if (faas_equal(key, "route")) {
            req->route = faas_get_text(&in);
        } else if (faas_equal(key, "function")) {
            req->function = faas_get_text(&in);
        } else if (faas_equal(key, "version")) {
            req->version = faas_get_uint(&in);
        } else if (faas_equal(key, "request_id")) {
            req->request_id = faas_get_text(&in);
        } else if (faas_equal(key, "remote_addr")) {
            req->remote_addr = faas_get_text(&in);
        } else if (faas_equal(key, "deadline_ms")) {
            req->deadline_ms = faas_get_uint(&in);
        } else if (faas_equal(key, "body")) {
            req->body = faas_get_text(&in);
        } else {
            faas_skip(&in); /* a key of a later protocol */
        }
    }
    return !in.failed;
}

/* (pointer << 32) | length of {"status": .., "headers": [..], "body": ..}. */
static uint64_t faas_encode(const faas_response *res) {
    faas_str body = {res->body, res->body_size};
    if (res->borrowed.data != NULL) {
        body = res->borrowed;
    }
    const size_t fixed = 1 + 7 + 3 + 8 + 5 + 5 + 5;
    if (body.size > SIZE_MAX - fixed - res->headers_size) {
        __builtin_trap();
    }
    const size_t size = fixed + res->headers_size + body.size;
    unsigned char *out = (unsigned char *)faas_malloc(size), *at = out;
    memcpy(at, "\x83\xA6status\xCD", 9);
    at += 9;
    *at++ = (unsigned char)(res->status >> 8);
    *at++ = (unsigned char)res->status;
    memcpy(at, "\xA7headers", 8);
    at += 8;
    at += faas_put_head(at, 0xDD, res->header_count);
    if (res->headers_size > 0) {
        memcpy(at, res->headers, res->headers_size);
        at += res->headers_size;
    }
    memcpy(at, "\xA4" "body", 5);
    at += 5;
    at += faas_put_head(at, 0xC6, body.size);
    if (body.size > 0) {
        memcpy(at, body.data, body.size);
    }
    return (uint64_t)(uintptr_t)out << 32 | (uint64_t)size;
}

/* Export: `size` bytes for the host to write a request to, or 0 when the memory
 * is refused. */
__attribute__((export_name("faas_alloc"))) uint32_t faas_alloc(uint32_t size) {
    return (uint32_t)(uintptr_t)faas_try_malloc(size);
}

/* Export: handles the request at `data` and returns where the response is. */
__attribute__((export_name("faas_handle"))) uint64_t faas_handle(uint32_t data, uint32_t size) {
    static const char none[] = "";
    const faas_str empty = {none, 0};
    faas_request req = {.method = empty, .path = empty, .query = empty, .route = empty,
                        .function = empty, .request_id = empty, .remote_addr = empty,
                        .body = empty};
    faas_response res = {.status = 200};
    if (faas_decode((const unsigned char *)(uintptr_t)data, size, &req)) {
        handle(&req, &res);
    } else {
        /* The host's fault, not the client's: hence 500 and not 400. */
        res.status = 500;
        faas_add_header(&res, "content-type", "text/plain");
        faas_print(&res, "the function could not decode the request\n");
    }
    return faas_encode(&res);
}

#endif /* FAAS_NO_EXPORTS */
#endif /* FAAS_H */
