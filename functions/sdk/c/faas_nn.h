/* SPDX-License-Identifier: Apache-2.0
 *
 * faas_nn.h: the host's language models for C, in one header, through WASI-NN
 * (wasi_ephemeral_nn). For commands and reactors alike; needs nothing but libc.
 *
 *     #include "faas_nn.h"
 *
 *     faas_nn model;
 *     int error = faas_nn_load(&model, "default");
 *     if (error == 0) {
 *         faas_nn_config(&model, "{\"temp\": 0, \"n-predict\": 64}");
 *         char *text;
 *         size_t size;
 *         error = faas_nn_generate(&model, prompt, strlen(prompt), &text, &size);
 *     }
 *
 * A model has to be granted: in function.toml, [capabilities] models = ["default"].
 * Waiting for a model costs the function no CPU time, but its time limit runs on.
 *
 * Errors: every function returns 0, or an errno of WASI-NN for which
 * faas_nn_error has a text; the function's log has a line with the reason.
 * FAAS_NN_BUSY is the one after which the same call may succeed a little later.
 *
 * Memory: what the functions hand out is from malloc, and never needs to be freed:
 * an instance serves one request.
 */
#ifndef FAAS_NN_H
#define FAAS_NN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    FAAS_NN_INVALID_ARGUMENT = 1,
    FAAS_NN_INVALID_ENCODING = 2,
    FAAS_NN_BUSY = 4, /* the model server is away, or a quota is used up: retry */
    FAAS_NN_RUNTIME_ERROR = 5,
    FAAS_NN_UNSUPPORTED = 6,
    FAAS_NN_TOO_LARGE = 7,
    FAAS_NN_NOT_FOUND = 8, /* not granted, or not there */
    FAAS_NN_END_OF_SEQUENCE = 100,
    FAAS_NN_CONTEXT_FULL = 101,
    FAAS_NN_PROMPT_TOO_LONG = 102,
    FAAS_NN_MODEL_NOT_FOUND = 103
};

/* ------------------------------------------------------- the raw imports -- */

typedef struct faas_nn_builder {
    const void *data;
    uint32_t size;
} faas_nn_builder;

typedef struct faas_nn_tensor {
    const uint32_t *dimensions;
    uint32_t dimension_count;
    uint8_t type;
    const void *data;
    uint32_t size;
} faas_nn_tensor;

#define FAAS_NN_IMPORT(name)                                                                       \
    __attribute__((import_module("wasi_ephemeral_nn"), import_name(#name))) extern uint32_t        \
        wasi_nn_##name

FAAS_NN_IMPORT(load)(const faas_nn_builder *builders, uint32_t count, uint32_t encoding,
                     uint32_t target, uint32_t *graph);
FAAS_NN_IMPORT(load_by_name)(const char *name, uint32_t size, uint32_t *graph);
FAAS_NN_IMPORT(load_by_name_with_config)(const char *name, uint32_t size, const char *config,
                                         uint32_t config_size, uint32_t *graph);
FAAS_NN_IMPORT(init_execution_context)(uint32_t graph, uint32_t *context);
FAAS_NN_IMPORT(set_input)(uint32_t context, uint32_t index, const faas_nn_tensor *tensor);
FAAS_NN_IMPORT(compute)(uint32_t context);
FAAS_NN_IMPORT(get_output)(uint32_t context, uint32_t index, void *buffer, uint32_t room,
                           uint32_t *size);
FAAS_NN_IMPORT(compute_single)(uint32_t context);
FAAS_NN_IMPORT(get_output_single)(uint32_t context, uint32_t index, void *buffer, uint32_t room,
                                  uint32_t *size);
FAAS_NN_IMPORT(fini_single)(uint32_t context);
FAAS_NN_IMPORT(unload)(uint32_t graph);
FAAS_NN_IMPORT(finalize_execution_context)(uint32_t context);

/* --------------------------------------------------------------- the SDK -- */

/* A model that was granted to the function. The fields are private. */
typedef struct faas_nn {
    uint32_t graph, context;
} faas_nn;

/* Loads a model by the name that function.toml gives it. */
static inline int faas_nn_load(faas_nn *model, const char *name) {
    uint32_t error = wasi_nn_load_by_name(name, (uint32_t)strlen(name), &model->graph);
    return (int)(error != 0 ? error : wasi_nn_init_execution_context(model->graph, &model->context));
}

/* Frees a model; it is not needed at the end of a request. Models of one name
 * share a graph, which therefore stays. */
static inline void faas_nn_close(faas_nn *model) {
    (void)wasi_nn_finalize_execution_context(model->context);
}

static inline int faas_nn_set_input(faas_nn *model, uint32_t index, const char *data, size_t size) {
    uint32_t dimensions[1] = {(uint32_t)size};
    faas_nn_tensor tensor = {dimensions, 1, 3 /* u8 */, data, (uint32_t)size};
    return (int)wasi_nn_set_input(model->context, index, &tensor);
}

/* Sets options, a JSON object; those that were set before stay. */
static inline int faas_nn_config(faas_nn *model, const char *json) {
    return faas_nn_set_input(model, 1, json, strlen(json));
}

/* Reads an output of any length into a block from malloc, with a NUL behind it. */
static inline int faas_nn_output(faas_nn *model, uint32_t index, bool single, char **text,
                                 size_t *size) {
    uint32_t room = single ? 256 : 16384, written = 0, error;
    char *buffer = NULL;
    do {
        room = written > room ? written : room;
        char *more = (char *)realloc(buffer, (size_t)room + 1);
        if (more == NULL) {
            abort();
        }
        buffer = more;
        error = single ? wasi_nn_get_output_single(model->context, index, buffer, room, &written)
                       : wasi_nn_get_output(model->context, index, buffer, room, &written);
    } while (error == FAAS_NN_TOO_LARGE && written > room);
    *size = error == 0 ? written : 0;
    buffer[*size] = '\0';
    *text = buffer;
    return (int)error;
}

/* Answers a whole prompt. Special tokens are part of the text, the one that ended
 * it too: see faas_nn_trim. A context that gets full ends the answer. */
static inline int faas_nn_generate(faas_nn *model, const char *prompt, size_t prompt_size,
                                   char **text, size_t *size) {
    int error = faas_nn_set_input(model, 0, prompt, prompt_size);
    if (error == 0) {
        error = (int)wasi_nn_compute(model->context);
    }
    if (error != 0 && error != FAAS_NN_CONTEXT_FULL) {
        return error;
    }
    return faas_nn_output(model, 0, false, text, size);
}

/* Gets the bytes of one token, which may end inside a character; returns whether
 * to go on. */
typedef bool (*faas_nn_on_token)(void *arg, const char *bytes, size_t size);

/* Answers a prompt token by token. The token that ends the answer is not among
 * them. Writing and flushing stdout in between sends the answer while it grows. */
static inline int faas_nn_stream(faas_nn *model, const char *prompt, size_t prompt_size,
                                 faas_nn_on_token on_token, void *arg) {
    int error = faas_nn_set_input(model, 0, prompt, prompt_size);
    while (error == 0) {
        error = (int)wasi_nn_compute_single(model->context);
        if (error != 0) {
            break;
        }
        char *text;
        size_t size;
        error = faas_nn_output(model, 0, true, &text, &size);
        bool more = error == 0 && on_token(arg, text, size);
        free(text);
        if (error == 0 && !more) {
            (void)wasi_nn_fini_single(model->context);
            return 0;
        }
    }
    return error == FAAS_NN_END_OF_SEQUENCE || error == FAAS_NN_CONTEXT_FULL ? 0 : error;
}

/* The embedding of a text, of length 1. */
static inline int faas_nn_embed(faas_nn *model, const char *text, size_t text_size, float **vector,
                                size_t *count) {
    char *json = NULL, *at = NULL;
    size_t size;
    int error = faas_nn_config(model, "{\"embedding\": true}");
    if (error != 0) {
        return error;
    }
    error = faas_nn_set_input(model, 0, text, text_size);
    if (error == 0) {
        error = (int)wasi_nn_compute(model->context);
    }
    if (error == 0) {
        error = faas_nn_output(model, 0, false, &json, &size);
    }
    (void)faas_nn_config(model, "{\"embedding\": false}");
    if (error != 0) {
        return error;
    }
    /* {"n_embedding": D, "embedding": [v0,v1,...]} */
    if (strncmp(json, "{\"n_embedding\": ", 16) != 0 || (at = strchr(json, '[')) == NULL) {
        return FAAS_NN_RUNTIME_ERROR;
    }
    *count = strtoul(json + 16, NULL, 10);
    *vector = (float *)malloc((*count + 1) * sizeof(float));
    if (*vector == NULL) {
        abort();
    }
    for (size_t i = 0; i < *count; i++) {
        (*vector)[i] = strtof(at + 1, &at);
    }
    free(json);
    return 0;
}

/* How many tokens the last computation took: of the prompt, and generated. */
static inline int faas_nn_usage(faas_nn *model, uint32_t *input_tokens, uint32_t *output_tokens) {
    char *json;
    size_t size;
    int error = faas_nn_output(model, 1, false, &json, &size);
    const char *input = strstr(json, "\"input_tokens\": ");
    const char *output = strstr(json, "\"output_tokens\": ");
    *input_tokens = input != NULL ? (uint32_t)strtoul(input + 16, NULL, 10) : 0;
    *output_tokens = output != NULL ? (uint32_t)strtoul(output + 17, NULL, 10) : 0;
    free(json);
    return error;
}

/* Cuts off the token that ended a text, and white space behind the text; returns
 * the size that is left. */
static inline size_t faas_nn_trim(char *text, size_t size) {
    static const char *const ends[] = {"<|im_end|>", "<|endoftext|>", "<|eot_id|>",
                                       "<end_of_turn>", "</s>"};
    bool again = true;
    while (again) {
        again = false;
        while (size > 0 && strchr(" \t\r\n", text[size - 1]) != NULL && text[size - 1] != '\0') {
            size--;
        }
        for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
            size_t length = strlen(ends[i]);
            if (size >= length && memcmp(text + size - length, ends[i], length) == 0) {
                size -= length;
                again = true;
            }
        }
    }
    text[size] = '\0';
    return size;
}

/* The text of an errno. */
static inline const char *faas_nn_error(int error) {
    switch (error) {
    case 0:
        return "success";
    case FAAS_NN_INVALID_ARGUMENT:
        return "invalid argument";
    case FAAS_NN_INVALID_ENCODING:
        return "the configuration is not JSON";
    case FAAS_NN_BUSY:
        return "the model is busy or its server is away";
    case FAAS_NN_RUNTIME_ERROR:
        return "the model failed";
    case FAAS_NN_UNSUPPORTED:
        return "not offered by this host";
    case FAAS_NN_TOO_LARGE:
        return "too large";
    case FAAS_NN_NOT_FOUND:
        return "no such model is granted";
    case FAAS_NN_END_OF_SEQUENCE:
        return "end of sequence";
    case FAAS_NN_CONTEXT_FULL:
        return "the context is full";
    case FAAS_NN_PROMPT_TOO_LONG:
        return "the prompt is too long for the context";
    case FAAS_NN_MODEL_NOT_FOUND:
        return "the model's file is gone";
    default:
        return "unknown WASI-NN error";
    }
}

#endif
