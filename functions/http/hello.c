/* SPDX-License-Identifier: Apache-2.0
 *
 * hello: the shortest answer, "hello world"; built for the first 0.2 and for the last.
 */
/* Nothing is taken from the host, so there is little to keep room for. */
#define ARENA_SIZE 1024
#include "wasi.h"

HANDLE void handle_request(handle request, handle outparam) {
    stream_result written;
    request_drop(request);
    handle body = respond(outparam, 200, fields_new());
    handle stream = stream_of(body);
    stream_blocking_write_and_flush(stream, "hello world\n", 12, &written);
    output_drop(stream);
    finish(body, false, 0);
}
