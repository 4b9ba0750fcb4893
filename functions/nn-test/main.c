/* SPDX-License-Identifier: Apache-2.0
 *
 * nn-test: calls of WASI-NN as the query lists them, for the host's own tests.
 *
 * The query is calls separated by ';', each with its arguments separated by ':'.
 * The last argument of a call is the rest of it, colons included; %XX is decoded
 * after the calls were taken apart. A call answers a line: its name, its errno,
 * and what it wrote, at once:
 *
 *     load:ENCODING:TARGET:BUILDER[|CONFIG]    load 0 graph=0
 *     load_by_name:NAME                        load_by_name 0 graph=0
 *     load_by_name_with_config:NAME:CONFIG
 *     init_execution_context:GRAPH             init_execution_context 0 context=0
 *     set_input:CONTEXT:INDEX:DATA
 *     compute:CONTEXT
 *     get_output:CONTEXT:INDEX:ROOM            get_output 0 size=5 "hello"
 *     compute_single:CONTEXT
 *     get_output_single:CONTEXT:INDEX:ROOM
 *     fini_single:CONTEXT
 *     unload:GRAPH
 *     finalize_execution_context:CONTEXT
 *     stream:CONTEXT    compute_single and get_output_single until an errno
 *
 * '!' before a call makes its pointers point outside of the memory. '#' before
 * set_input lies about dimensions and type. Values that no call wrote to are -1.
 */
#include "faas_nn.h"

#include <stdio.h>

enum { MOST_ROOM = 1 << 19 };

static char buffer[MOST_ROOM];
static const void *const outside = (const void *)0xFFFFFFF0u;

static int hex(char c) {
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decodes %XX in place; '+' stays. Returns the length, as NUL may be decoded. */
static size_t decode(char *text) {
    char *out = text;
    for (const char *in = text; *in != '\0'; in++) {
        if (*in == '%' && hex(in[1]) >= 0 && hex(in[2]) >= 0) {
            *out++ = (char)(hex(in[1]) << 4 | hex(in[2]));
            in += 2;
        } else {
            *out++ = *in;
        }
    }
    *out = '\0';
    return (size_t)(out - text);
}

/* The next argument, up to the colon; the rest when it is the last. */
static char *argument(char **rest, char separator) {
    char *start = *rest != NULL ? *rest : (char *)"";
    char *end = separator != '\0' ? strchr(start, separator) : NULL;
    if (end != NULL) {
        *end = '\0';
        *rest = end + 1;
    } else {
        *rest = NULL;
    }
    return start;
}

static uint32_t number(char **rest) { return (uint32_t)strtoul(argument(rest, ':'), NULL, 0); }

static void print_quoted(const char *text, size_t size) {
    putchar('"');
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') {
            printf("\\%c", c);
        } else if (c < 0x20 || c >= 0x7F) {
            printf("\\x%02x", c);
        } else {
            putchar(c);
        }
    }
    putchar('"');
}

static void answer(const char *name, uint32_t error) { printf("%s %u", name, error); }

static void get(const char *name, bool single, uint32_t context, uint32_t index, uint32_t room,
                bool bad) {
    uint32_t size = UINT32_MAX;
    void *to = bad ? (void *)outside : buffer;
    memset(buffer, '~', 64);
    uint32_t error = single ? wasi_nn_get_output_single(context, index, to, room, &size)
                            : wasi_nn_get_output(context, index, to, room, &size);
    answer(name, error);
    printf(" size=%d", (int)size);
    if (error == 0) {
        putchar(' ');
        print_quoted(buffer, size <= MOST_ROOM ? size : MOST_ROOM);
    } else if (memcmp(buffer, "~~~~~~~~", 8) != 0) {
        printf(" touched");
    }
    putchar('\n');
}

static void call(char *text) {
    bool bad = *text == '!', lies = *text == '#';
    char *rest = text + (bad || lies);
    const char *name = argument(&rest, ':');
    uint32_t handle = UINT32_MAX;
    uint32_t *to = bad ? (uint32_t *)outside : &handle;
    if (strcmp(name, "load") == 0) {
        uint32_t encoding = number(&rest), target = number(&rest);
        char *model = argument(&rest, '|');
        bool has_config = rest != NULL;
        char *config = argument(&rest, '\0');
        faas_nn_builder builders[2] = {{model, (uint32_t)decode(model)},
                                       {config, (uint32_t)decode(config)}};
        uint32_t error = wasi_nn_load(bad ? outside : builders, has_config ? 2 : 1, encoding, target,
                                      &handle);
        answer(name, error);
        printf(" graph=%d\n", (int)handle);
    } else if (strcmp(name, "load_by_name") == 0) {
        char *model = argument(&rest, '\0');
        uint32_t size = (uint32_t)decode(model);
        answer(name, wasi_nn_load_by_name(model, size, to));
        printf(" graph=%d\n", (int)handle);
    } else if (strcmp(name, "load_by_name_with_config") == 0) {
        char *model = argument(&rest, ':'), *config = argument(&rest, '\0');
        uint32_t size = (uint32_t)decode(model), config_size = (uint32_t)decode(config);
        answer(name, wasi_nn_load_by_name_with_config(model, size, bad ? outside : config,
                                                      config_size, &handle));
        printf(" graph=%d\n", (int)handle);
    } else if (strcmp(name, "init_execution_context") == 0) {
        answer(name, wasi_nn_init_execution_context(number(&rest), to));
        printf(" context=%d\n", (int)handle);
    } else if (strcmp(name, "set_input") == 0) {
        uint32_t context = number(&rest), index = number(&rest);
        char *data = argument(&rest, '\0');
        uint32_t size = (uint32_t)decode(data), dimensions[1] = {lies ? 7 : size};
        faas_nn_tensor tensor = {dimensions, 1, lies ? 2 : 3, bad ? outside : data, size};
        ((uint8_t *)&tensor)[9] = 0x33; /* what guests leave in the padding */
        answer(name, wasi_nn_set_input(context, index, &tensor));
        putchar('\n');
    } else if (strcmp(name, "get_output") == 0 || strcmp(name, "get_output_single") == 0) {
        uint32_t context = number(&rest), index = number(&rest), room = number(&rest);
        get(name, strcmp(name, "get_output") != 0, context, index, room, bad);
    } else if (strcmp(name, "stream") == 0) {
        uint32_t context = number(&rest), error;
        while ((error = wasi_nn_compute_single(context)) == 0) {
            get("token", true, context, 0, MOST_ROOM, false);
            fflush(stdout);
        }
        answer(name, error);
        putchar('\n');
    } else {
        static const struct {
            const char *name;
            uint32_t (*call)(uint32_t);
        } calls[] = {{"compute", wasi_nn_compute},
                     {"compute_single", wasi_nn_compute_single},
                     {"fini_single", wasi_nn_fini_single},
                     {"unload", wasi_nn_unload},
                     {"finalize_execution_context", wasi_nn_finalize_execution_context}};
        for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
            if (strcmp(name, calls[i].name) == 0) {
                answer(name, calls[i].call(number(&rest)));
                putchar('\n');
                return;
            }
        }
        printf("%s is no call\n", name);
    }
}

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    const char *query = getenv("QUERY_STRING");
    char *rest = strdup(query != NULL ? query : "");
    printf("Content-Type: text/plain; charset=utf-8\n\n");
    while (rest != NULL && *rest != '\0') {
        call(argument(&rest, ';'));
        fflush(stdout);
    }
    return 0;
}
