/* SPDX-License-Identifier: Apache-2.0
 *
 * echo: the request's body is the response's, passed on as it comes, in constant memory. The content type is kept.
 *
 *   ?splice   lets the host copy: output-stream.blocking-splice
 *   ?poll     reads without blocking, and waits for a pollable in between
 *   ?bytes    writes byte by byte
 */
#include "wasi.h"

/* What came next, empty at the end. */
static text next(handle stream, bool polling) {
    read_result got;
    for (;;) {
        arena_used = 0; /* the chunk before has gone out */
        if (polling) {
            stream_read(stream, 65536, &got);
        } else {
            stream_blocking_read(stream, 65536, &got);
        }
        if (got.tag != 0) {
            must(got.error == 1);
            return (text){NULL, 0};
        }
        if (got.bytes.size > 0) {
            return got.bytes;
        }
        handle pollable = input_subscribe(stream);
        pollable_block(pollable);
        pollable_drop(pollable);
    }
}

HANDLE void handle_request(handle request, handle outparam) {
    const text query = query_of(request);
    const bool splicing = is(query, "splice"), polling = is(query, "poll");
    const size_t most = is(query, "bytes") ? 1 : SIZE_MAX;
    const handle headers = fields_new(), sent = request_headers(request);
    field_list list;
    fields_entries(sent, &list);
    for (uint32_t i = 0; i < list.count; i++) {
        uint8_t appended[2];
        if (named(&list.at[i], "content-type")) {
            fields_append(headers, list.at[i].name.data, list.at[i].name.size, list.at[i].value.data,
                          list.at[i].value.size, appended);
            must(appended[0] == 0);
        }
    }
    fields_drop(sent);

    handle_result incoming, in;
    request_consume(request, &incoming);
    must(incoming.tag == 0);
    body_stream(incoming.value, &in);
    must(in.tag == 0);
    const handle body = respond(outparam, 200, headers), out = stream_of(body);
    if (splicing) {
        count_result moved;
        do {
            stream_blocking_splice(out, in.value, 65536, &moved);
        } while (moved.tag == 0);
        must(moved.error == 1);
    } else {
        text chunk;
        while ((chunk = next(in.value, polling)).size > 0 && write_in_pieces(out, chunk.data, chunk.size, most)) {
        }
    }
    input_drop(in.value);
    body_drop(incoming.value);
    request_drop(request);
    output_drop(out);
    finish(body, false, 0);
}
