/* SPDX-License-Identifier: Apache-2.0
 *
 * models: the body is a prompt, and what the model `default` makes of it the answer; built for both snapshots of
 * wasi:nn. 502 with the error's number and text when a call fails.
 *
 *   ?stream    token by token, each sent when it is there
 *   ?other     asks for the model `other`
 */
#include "wasi.h"

#ifndef NN_VERSION
#define NN_VERSION "0.2.0-rc-2024-10-28"
#endif
#define NN(interface, function) \
    __attribute__((import_module("wasi:nn/" interface "@" NN_VERSION), import_name(function))) extern

enum { U8 = 4 }; /* tensor-type */

/* result<_, error>, and result<T, error>: a handle or a list at 4. */
typedef struct {
    uint8_t tag;
    union {
        handle value;
        text list;
    };
} nn_result;

typedef struct {
    text name;
    handle tensor;
} named_tensor;

NN("tensor", "[constructor]tensor")
handle tensor_new(const uint32_t *dimensions, size_t, uint32_t type, const char *data, size_t);
NN("tensor", "[method]tensor.data") void tensor_data(handle, text *);
NN("tensor", "[resource-drop]tensor") void tensor_drop(handle);
NN("graph", "load-by-name") void load_by_name(const char *, size_t, nn_result *);
NN("graph", "[method]graph.init-execution-context") void new_context(handle, nn_result *);
NN("graph", "[resource-drop]graph") void graph_drop(handle);
NN("inference", "[resource-drop]graph-execution-context") void context_drop(handle);
NN("errors", "[method]error.code") uint32_t nn_code(handle);
NN("errors", "[method]error.data") void nn_data(handle, text *);
NN("errors", "[resource-drop]error") void nn_drop(handle);

static handle tensor_of(const char *data, uint32_t size) { return tensor_new(&size, 1, U8, data, size); }

#ifdef NN_AUGUST
NN("inference", "[method]graph-execution-context.set-input")
void set_input(handle, const char *, size_t, handle tensor, nn_result *);
NN("inference", "[method]graph-execution-context.compute") void compute(handle, nn_result *);
NN("inference", "[method]graph-execution-context.get-output") void get_output(handle, const char *, size_t, nn_result *);

/* The next output: a tensor, or 0 for an error that is left in `failed`. `prompt` is NULL but for the first. */
static handle next(handle context, const text *prompt, bool streaming, nn_result *failed) {
    if (prompt != NULL) {
        set_input(context, "prompt", 6, tensor_of(prompt->data, prompt->size), failed);
        if (failed->tag == 0 && streaming) {
            set_input(context, "stream", 6, tensor_of("", 0), failed);
        }
        if (failed->tag != 0) {
            return 0;
        }
    }
    compute(context, failed);
    if (failed->tag != 0) {
        return 0;
    }
    get_output(context, "output", 6, failed);
    return failed->tag == 0 ? failed->value : 0;
}
#else
NN("inference", "[method]graph-execution-context.compute")
void compute(handle, const named_tensor *, size_t, nn_result *);

static handle next(handle context, const text *prompt, bool streaming, nn_result *failed) {
    named_tensor inputs[2];
    size_t count = 0;
    if (prompt != NULL) {
        inputs[count++] = (named_tensor){{"prompt", 6}, tensor_of(prompt->data, prompt->size)};
    }
    if (streaming) {
        inputs[count++] = (named_tensor){{"stream", 6}, tensor_of("", 0)};
    }
    compute(context, inputs, count, failed);
    handle output = 0;
    if (failed->tag == 0) {
        const named_tensor *outputs = (const named_tensor *)failed->list.data;
        for (uint32_t i = 0; i < failed->list.size; i++) {
            if (is(outputs[i].name, "output")) {
                output = outputs[i].tensor;
            } else {
                tensor_drop(outputs[i].tensor);
            }
        }
    }
    return output;
}
#endif

static void refuse(handle outparam, handle error) {
    text why;
    nn_data(error, &why);
    handle body = respond_text(outparam, 502), out = stream_of(body);
    write_number(out, nn_code(error));
    write_text(out, " ");
    write_all(out, why.data, why.size);
    write_text(out, "\n");
    output_drop(out);
    finish(body, false, 0);
    nn_drop(error);
}

static text read_body(handle request) {
    static char prompt[4096];
    uint32_t size = 0;
    handle_result incoming, in;
    request_consume(request, &incoming);
    body_stream(incoming.value, &in);
    for (read_result got;;) {
        stream_blocking_read(in.value, sizeof prompt - size, &got);
        if (got.tag != 0) {
            break;
        }
        for (uint32_t i = 0; i < got.bytes.size; i++) {
            prompt[size++] = got.bytes.data[i];
        }
        if (size == sizeof prompt) {
            break;
        }
    }
    input_drop(in.value);
    body_drop(incoming.value);
    return (text){prompt, size};
}

HANDLE void handle_request(handle request, handle outparam) {
    const text query = query_of(request);
    const bool streaming = is(query, "stream"), other = is(query, "other");
    const text prompt = read_body(request);
    request_drop(request);
    nn_result graph, context, failed;
    load_by_name(other ? "other" : "default", other ? 5 : 7, &graph);
    if (graph.tag != 0) {
        refuse(outparam, graph.value);
        return;
    }
    new_context(graph.value, &context);
    if (context.tag != 0) {
        refuse(outparam, context.value);
        return;
    }
    handle output = next(context.value, &prompt, streaming, &failed);
    if (output == 0 && failed.tag != 0) {
        refuse(outparam, failed.value);
        return;
    }
    handle body = respond_text(outparam, 200), out = stream_of(body);
    while (output != 0) {
        text piece;
        arena_used = 0;
        tensor_data(output, &piece);
        tensor_drop(output);
        if (!write_all(out, piece.data, piece.size)) {
            break;
        }
        if (!streaming) {
            break;
        }
        stream_result flushed;
        stream_blocking_flush(out, &flushed);
        output = next(context.value, NULL, true, &failed);
    }
    if (failed.tag != 0) {
        nn_drop(failed.value); /* of August: how a stream ends */
    }
    context_drop(context.value);
    graph_drop(graph.value);
    output_drop(out);
    finish(body, false, 0);
}
