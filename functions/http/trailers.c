/* SPDX-License-Identifier: Apache-2.0
 *
 * trailers: reads the body, then its trailers, and answers with them, one "name: value" a line. The response has a
 * trailer of its own: x-body-bytes, the number of bytes that the request had.
 */
#include "wasi.h"

HANDLE void handle_request(handle request, handle outparam) {
    handle_result incoming, in;
    request_consume(request, &incoming);
    must(incoming.tag == 0);
    body_stream(incoming.value, &in);
    must(in.tag == 0);
    uint64_t total = 0;
    read_result got;
    for (;;) {
        arena_used = 0;
        stream_blocking_read(in.value, 65536, &got);
        if (got.tag != 0) {
            break;
        }
        total += got.bytes.size;
    }
    must(got.error == 1);
    input_drop(in.value);

    handle later = body_finish(incoming.value);
    handle pollable = trailers_subscribe(later);
    pollable_block(pollable);
    pollable_drop(pollable);
    future_result trailers, again;
    trailers_get(later, &trailers);
    must(trailers.some && !trailers.taken && trailers.tag == 0);
    trailers_get(later, &again);
    must(again.some && again.taken);
    trailers_drop(later);
    request_drop(request);

    static const field announced[] = {{{"content-type", 12}, {"text/plain; charset=utf-8", 25}},
                                      {{"trailer", 7}, {"x-body-bytes", 12}}};
    handle_result headers;
    fields_from_list(announced, 2, &headers);
    must(headers.tag == 0);
    handle body = respond(outparam, 200, headers.value), out = stream_of(body);
    if (trailers.some_value) {
        field_list list;
        fields_entries(trailers.optional, &list);
        for (uint32_t i = 0; i < list.count; i++) {
            write_all(out, list.at[i].name.data, list.at[i].name.size);
            write_text(out, ": ");
            write_all(out, list.at[i].value.data, list.at[i].value.size);
            write_text(out, "\n");
        }
        fields_drop(trailers.optional);
    } else {
        write_text(out, "no trailers\n");
    }
    stream_result flushed;
    stream_blocking_flush(out, &flushed); /* a host that has all of a short body may send it without trailers */
    output_drop(out);

    char digits[20], *at = digits + sizeof digits;
    do {
        *--at = (char)('0' + total % 10);
    } while ((total /= 10) > 0);
    uint8_t appended[2];
    handle own = fields_new();
    fields_append(own, "x-body-bytes", 12, at, (size_t)(digits + sizeof digits - at), appended);
    must(appended[0] == 0);
    finish(body, true, own);
}
