/* SPDX-License-Identifier: Apache-2.0
 *
 * program: a component of the world wasi:cli/command: its arguments, one a line, then its stdin; "fail" as the last
 * argument ends it with an error.
 */
#include "wasi.h"

typedef struct {
    const text *at;
    uint32_t count;
} text_list;

IMPORT("cli/environment", "get-arguments") void get_arguments(text_list *);
IMPORT("cli/stdin", "get-stdin") handle get_stdin(void);
IMPORT("cli/stdout", "get-stdout") handle get_stdout(void);

/* result<_, _>: 1 is the error */
EXPORT("wasi:cli/run@" WASI_VERSION "#run") uint32_t run(void) {
    text_list arguments;
    handle in = get_stdin(), out = get_stdout();
    bool failing = false;
    get_arguments(&arguments);
    for (uint32_t i = 0; i < arguments.count; i++) {
        failing = is(arguments.at[i], "fail");
        write_all(out, arguments.at[i].data, arguments.at[i].size);
        write_text(out, "\n");
    }
    read_result got;
    for (;;) {
        arena_used = 0;
        stream_blocking_read(in, 65536, &got);
        if (got.tag != 0 || !write_all(out, got.bytes.data, got.bytes.size)) {
            break;
        }
    }
    stream_result flushed;
    stream_blocking_flush(out, &flushed);
    input_drop(in);
    output_drop(out);
    return failing;
}
