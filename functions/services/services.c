/* SPDX-License-Identifier: Apache-2.0
 *
 * Every operation of faas_v1, for the host's tests; services.rs does the same in Rust,
 * with the same output. Without a query it writes down what each operation came to.
 *
 *   ?fetch=URL             GETs the URL and passes the answer on, piece by piece
 *   ?begin=URL&end=HOW     begins a request, and ends without a look at it: return,
 *                          exit, trap, loop, wait (for its head)
 */
#include "faas_v1.h"

#include <stdio.h>

static const char *text_of(int error) { return error == 0 ? "ok" : faas_v1_error(error); }

static void note(const char *what, int error) { printf("%s: %s\n", what, text_of(error)); }

static void note_value(const char *what, int error, const char *value) {
    if (error == 0) {
        printf("%s: %s\n", what, value);
    } else {
        note(what, error);
    }
}

static void keys_and_values(void) {
    faas_store store, other;
    char *value;
    size_t size;
    int64_t sum = 0;
    faas_keys page;
    note("open", faas_kv_open("default", &store));
    note("open another", faas_kv_open("another", &other));
    int error = faas_kv_get(store, "k", &value, &size);
    note_value("get", error, value);
    note("set", faas_kv_set(store, "k", "v1", 2, 0));
    error = faas_kv_get(store, "k", &value, &size);
    note_value("get", error, value);
    note("set for a while", faas_kv_set(store, "temp", "gone", 4, 1000));
    note("compare with nothing", faas_kv_compare_and_set(store, "k", NULL, 0, "v2", 2, 0));
    note("compare with v0", faas_kv_compare_and_set(store, "k", "v0", 2, "v2", 2, 0));
    note("compare with v1", faas_kv_compare_and_set(store, "k", "v1", 2, "v2", 2, 0));
    error = faas_kv_get(store, "k", &value, &size);
    note_value("get", error, value);
    note("increment a text", faas_kv_increment(store, "k", 1, &sum));
    note("increment", faas_kv_increment(store, "n", 5, &sum));
    error = faas_kv_increment(store, "n", -7, &sum);
    printf("increment: %lld %s\n", (long long)sum, text_of(error));
    const char *cursor = "";
    do {
        error = faas_kv_list(store, "", cursor, 2, &page);
        printf("list:");
        for (size_t i = 0; i < page.count; i++) {
            printf(" %s", page.keys[i]);
        }
        printf(" (%s)\n", text_of(error));
        cursor = page.cursor;
    } while (error == 0 && cursor[0] != '\0');
    note("delete", faas_kv_delete(store, "k"));
    note("delete", faas_kv_delete(store, "k"));
    note("set nothing", faas_kv_set(store, "", "", 0, 0));
    note("close", faas_close(store));
    note("close", faas_close(store));
}

static void settings(void) {
    char *value;
    int error = faas_config_get("MODE", &value);
    note_value("config", error, value);
    error = faas_config_get("NONE", &value);
    note_value("config", error, value);
    error = faas_secret_get("KEY", &value);
    note_value("secret", error, value);
    error = faas_secret_get("OTHER", &value);
    note_value("secret", error, value);
}

static void answer(const char *what, faas_handle handle) {
    faas_head head;
    char *body;
    size_t size;
    int error = faas_response_head(handle, &head);
    const char *method = error == 0 ? faas_response_header(&head, "X-Method") : NULL;
    if (error == 0) {
        error = faas_response_read_all(handle, &body, &size);
    }
    if (error == 0) {
        printf("%s: %u %s %s\n", what, head.status, method != NULL ? method : "-", body);
    } else {
        note(what, error);
    }
}

static void requests(void) {
    faas_handle handles[2] = {0, 0}, denied;
    size_t index = 9;
    char *job;
    faas_outgoing slow = {.url = "https://a.test/slow"};
    faas_outgoing quick = {.method = "POST",
                           .url = "https://a.test/quick",
                           .headers = (const char *const[]){"x-a", "b", NULL},
                           .body = "hello",
                           .body_size = 5};
    note("http", faas_http_begin(&slow, &handles[0]));
    note("http", faas_http_begin(&quick, &handles[1]));
    int error = faas_wait_any(handles, 2, FAAS_FOREVER, &index);
    printf("first: %s %s\n", text_of(error), index == 1 ? "quick" : "slow");
    answer("quick", handles[1]);
    note("wait", faas_wait_any(handles, 1, 0, &index));
    note("close", faas_close(handles[0]));
    note("close", faas_close(handles[0]));
    faas_outgoing called = {.function = "callee", .qualifier = "live", .path = "/x", .body = "in", .body_size = 2};
    note("call", faas_call_begin(&called, &handles[0]));
    answer("call", handles[0]);
    faas_outgoing unknown = {.function = "unknown"};
    note("call unknown", faas_call_begin(&unknown, &denied));
    called.idempotency_key = "once";
    called.delay_ms = 10;
    error = faas_job_enqueue(&called, &job);
    note_value("job", error, job);
    error = faas_job_enqueue(&called, &job);
    note_value("job", error, job);
}

static int fetch(const char *url) {
    faas_outgoing request = {.url = url, .headers = (const char *const[]){"authorization", "mine", NULL}};
    faas_handle handle;
    faas_head head;
    char piece[4096];
    size_t size = 0;
    int error = faas_http_begin(&request, &handle);
    if (error == 0) {
        error = faas_response_head(handle, &head);
    }
    printf("Status: %u\nContent-Type: text/plain\n\n", error == 0 ? head.status : 502);
    while (error == 0 && (error = faas_response_read(handle, piece, sizeof piece, &size)) == 0 && size > 0) {
        fwrite(piece, 1, size, stdout);
        fflush(stdout);
    }
    if (error != 0) {
        puts(faas_v1_error(error));
    }
    return 0;
}

static int begin(const char *url, const char *end) {
    faas_outgoing request = {.url = url};
    faas_handle handle;
    faas_head head;
    int error = faas_http_begin(&request, &handle);
    printf("Content-Type: text/plain\n\n%s\n", text_of(error));
    if (strcmp(end, "exit") == 0) {
        exit(3);
    } else if (strcmp(end, "trap") == 0) {
        __builtin_trap();
    } else if (strcmp(end, "loop") == 0) {
        for (volatile int i = 0;; i++) {
        }
    } else if (strcmp(end, "wait") == 0) {
        note("head", faas_response_head(handle, &head));
    }
    return 0;
}

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    char *query = getenv("QUERY_STRING");
    query = query != NULL ? strdup(query) : "";
    if (strncmp(query, "fetch=", 6) == 0) {
        return fetch(query + 6);
    }
    char *end = strstr(query, "&end=");
    if (strncmp(query, "begin=", 6) == 0 && end != NULL) {
        *end = '\0';
        return begin(query + 6, end + 5);
    }
    puts("Content-Type: text/plain\n");
    keys_and_values();
    settings();
    requests();
    return 0;
}
