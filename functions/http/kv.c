/* SPDX-License-Identifier: Apache-2.0
 *
 * kv: one operation of wasi:keyvalue or wasi:config on each request, built for both drafts of wasi:keyvalue.
 * The query has words with '&' between them:
 *
 *   ?get&STORE&KEY            the value, or 404
 *   ?set&STORE&KEY&VALUE      ?delete&STORE&KEY            ?exists&STORE&KEY: yes or no
 *   ?list&STORE               all keys, page by page, a line each, and how many pages
 *   ?increment&STORE&KEY&N    the sum
 *   ?many&STORE&A&B           sets a to 1 and b to 2 under the keys A and B at once, deletes A at once, gets both at once
 *   ?config&NAME              a config value or a granted secret, or 404; ?config: all names, a line each
 *   ?secret&NAME              how many bytes wasi:config has under that name: a guest that shows no secret
 *   draft2 only:
 *   ?swap&STORE&KEY&VALUE     compares and swaps; ?race&STORE&KEY&VALUE: the same, but somebody writes in between
 *
 * 502 with the error's name and text when a call fails.
 */
#include "wasi.h"

#ifndef KV_VERSION
#define KV_VERSION "0.2.0-draft2"
#endif
#define KV(interface, function) \
    __attribute__((import_module("wasi:keyvalue/" interface "@" KV_VERSION), import_name(function))) extern
#define CONFIG(function) \
    __attribute__((import_module("wasi:config/store@0.2.0-rc.1"), import_name(function))) extern

typedef struct {
    uint8_t code;
    text other;
} kv_error;

/* result<T, error>: a handle, a bool, an option<list<u8>> or a list at 4. */
typedef struct {
    uint8_t tag;
    union {
        handle value;
        bool yes;
        text_option bytes;
        text list;
        kv_error error;
    };
} kv_result;

/* result<s64, error> */
typedef struct {
    uint8_t tag;
    union {
        int64_t value;
        kv_error error;
    };
} kv_number;

#ifdef KV_DRAFT
typedef uint64_t kv_cursor;
#define CURSOR(c) (c)
#else
typedef text kv_cursor;
#define CURSOR(c) (c).data, (c).size
#endif

/* result<key-response, error> */
typedef struct {
    uint8_t tag;
    union {
        struct {
            const text *keys;
            uint32_t count;
            struct {
                uint8_t some;
                kv_cursor value;
            } cursor;
        };
        kv_error error;
    };
} kv_page;

typedef struct {
    text key, value;
} pair;

typedef struct {
    uint8_t some;
    pair value;
} pair_option;

KV("store", "open") void kv_open(const char *, size_t, kv_result *);
KV("store", "[resource-drop]bucket") void bucket_drop(handle);
KV("store", "[method]bucket.get") void kv_get(handle, const char *, size_t, kv_result *);
KV("store", "[method]bucket.set") void kv_set(handle, const char *, size_t, const char *, size_t, kv_result *);
KV("store", "[method]bucket.delete") void kv_delete(handle, const char *, size_t, kv_result *);
KV("store", "[method]bucket.exists") void kv_exists(handle, const char *, size_t, kv_result *);
#ifdef KV_DRAFT
KV("store", "[method]bucket.list-keys") void kv_list(handle, uint32_t some, uint64_t, kv_page *);
#else
KV("store", "[method]bucket.list-keys") void kv_list(handle, uint32_t some, const char *, size_t, kv_page *);
#endif
KV("atomics", "increment") void kv_increment(handle, const char *, size_t, int64_t, kv_number *);
KV("batch", "get-many") void kv_get_many(handle, const text *, size_t, kv_result *);
KV("batch", "set-many") void kv_set_many(handle, const pair *, size_t, kv_result *);
KV("batch", "delete-many") void kv_delete_many(handle, const text *, size_t, kv_result *);
CONFIG("get") void config_get(const char *, size_t, kv_result *);
CONFIG("get-all") void config_get_all(kv_result *);

#ifndef KV_DRAFT
/* result<_, cas-error>: 0 is a store-error, 1 has another handle. */
typedef struct {
    uint8_t tag;
    struct {
        uint8_t failed;
        union {
            handle value;
            kv_error error;
        };
    };
} swap_result;

KV("atomics", "[static]cas.new") void cas_new(handle, const char *, size_t, kv_result *);
KV("atomics", "[method]cas.current") void cas_current(handle, kv_result *);
KV("atomics", "swap") void kv_swap(handle, const char *, size_t, swap_result *);
KV("atomics", "[resource-drop]cas") void cas_drop(handle);
#endif

static handle outparam, body, out;

static void begin(uint32_t status) {
    body = respond_text(outparam, status);
    out = stream_of(body);
}

static void say(text words) { must(write_all(out, words.data, words.size)); }

static void end(void) {
    output_drop(out);
    finish(body, false, 0);
}

static void answer(uint32_t status, text words) {
    begin(status);
    say(words);
    end();
}

static void fail(const kv_error *error) {
    static const char *const names[] = {"no-such-store", "access-denied", "other: "};
    begin(502);
    say(text_of(names[error->code]));
    if (error->code == 2) {
        say(error->other);
    }
    end();
}

static text words[5];

static void split(text query) {
    uint32_t n = 0;
    words[0].data = query.data;
    for (uint32_t i = 0; i < query.size && n < 5; i++) {
        if (query.data[i] == '&') {
            if (++n < 5) {
                words[n].data = query.data + i + 1;
            }
        } else {
            words[n].size++;
        }
    }
}

static int64_t number_of(text t) {
    int64_t number = 0;
    uint32_t i = t.size > 0 && t.data[0] == '-';
    for (; i < t.size; i++) {
        number = number * 10 + (t.data[i] - '0');
    }
    return t.size > 0 && t.data[0] == '-' ? -number : number;
}

static void list(handle bucket) {
    kv_page page;
    uint64_t pages = 0;
    kv_cursor cursor = {0};
    uint32_t some = 0;
    do {
        kv_list(bucket, some, CURSOR(cursor), &page);
        if (page.tag != 0) {
            fail(&page.error);
            return;
        }
        if (pages++ == 0) {
            begin(200);
        }
        for (uint32_t i = 0; i < page.count; i++) {
            say(page.keys[i]);
            say(text_of("\n"));
        }
        some = page.cursor.some;
        cursor = page.cursor.value;
    } while (some);
    write_number(out, pages);
    end();
}

static void many(handle bucket, text a, text b) {
    const pair set[] = {{a, {"1", 1}}, {b, {"2", 1}}};
    const text both[] = {a, b};
    kv_result result;
    kv_set_many(bucket, set, 2, &result);
    if (result.tag == 0) {
        kv_delete_many(bucket, both, 1, &result);
    }
    if (result.tag == 0) {
        kv_get_many(bucket, both, 2, &result);
    }
    if (result.tag != 0) {
        fail(&result.error);
        return;
    }
    const pair_option *found = (const pair_option *)result.list.data;
    begin(200);
    for (uint32_t i = 0; i < result.list.size; i++) {
        say(found[i].some ? found[i].value.key : text_of("none"));
        say(found[i].some ? text_of("=") : text_of(""));
        say(found[i].some ? found[i].value.value : text_of(""));
        say(text_of("\n"));
    }
    end();
}

#ifndef KV_DRAFT
static void swap(handle bucket, text key, text value, bool race) {
    kv_result result;
    swap_result swapped;
    cas_new(bucket, key.data, key.size, &result);
    if (result.tag != 0) {
        fail(&result.error);
        return;
    }
    handle cas = result.value;
    cas_current(cas, &result);
    if (result.tag != 0) {
        fail(&result.error);
        return;
    }
    text before = result.bytes.some ? result.bytes.value : text_of("none");
    if (race) {
        kv_set(bucket, key.data, key.size, "theirs", 6, &result);
    }
    kv_swap(cas, value.data, value.size, &swapped);
    if (swapped.tag != 0 && !swapped.failed) {
        fail(&swapped.error);
        return;
    }
    begin(200);
    say(before);
    if (swapped.tag != 0) {
        cas_current(swapped.value, &result);
        must(result.tag == 0);
        say(text_of(", then "));
        say(result.bytes.some ? result.bytes.value : text_of("none"));
        kv_swap(swapped.value, value.data, value.size, &swapped);
        must(swapped.tag == 0);
    }
    end();
}
#endif

static void config(text name, bool show) {
    kv_result result;
    if (name.size == 0) {
        config_get_all(&result);
        must(result.tag == 0);
        begin(200);
        for (uint32_t i = 0; i < result.list.size; i++) {
            say(((const pair *)result.list.data)[i].key);
            say(text_of("\n"));
        }
        end();
        return;
    }
    config_get(name.data, name.size, &result);
    must(result.tag == 0);
    if (!result.bytes.some) {
        answer(404, text_of("none"));
    } else if (show) {
        answer(200, result.bytes.value);
    } else {
        begin(200);
        write_number(out, result.bytes.value.size);
        end();
    }
}

HANDLE void handle_request(handle request, handle to) {
    outparam = to;
    split(query_of(request));
    request_drop(request);
    const text op = words[0], key = words[2], value = words[3];
    if (is(op, "config") || is(op, "secret")) {
        config(words[1], is(op, "config"));
        return;
    }
    kv_result result;
    kv_open(words[1].data, words[1].size, &result);
    if (result.tag != 0) {
        fail(&result.error);
        return;
    }
    handle bucket = result.value;
    if (is(op, "list")) {
        list(bucket);
    } else if (is(op, "many")) {
        many(bucket, key, value);
    } else if (is(op, "increment")) {
        kv_number sum;
        kv_increment(bucket, key.data, key.size, number_of(value), &sum);
        if (sum.tag != 0) {
            fail(&sum.error);
        } else {
            begin(200);
            if (sum.value < 0) {
                say(text_of("-"));
            }
            write_number(out, (uint64_t)(sum.value < 0 ? -sum.value : sum.value));
            end();
        }
#ifndef KV_DRAFT
    } else if (is(op, "swap") || is(op, "race")) {
        swap(bucket, key, value, is(op, "race"));
#endif
    } else {
        if (is(op, "get")) {
            kv_get(bucket, key.data, key.size, &result);
        } else if (is(op, "set")) {
            kv_set(bucket, key.data, key.size, value.data, value.size, &result);
        } else if (is(op, "delete")) {
            kv_delete(bucket, key.data, key.size, &result);
        } else {
            kv_exists(bucket, key.data, key.size, &result);
        }
        if (result.tag != 0) {
            fail(&result.error);
        } else if (is(op, "get")) {
            answer(result.bytes.some ? 200 : 404, result.bytes.some ? result.bytes.value : text_of("none"));
        } else if (is(op, "exists")) {
            answer(200, text_of(result.yes ? "yes" : "no"));
        } else {
            answer(200, text_of("done"));
        }
    }
    bucket_drop(bucket);
}
