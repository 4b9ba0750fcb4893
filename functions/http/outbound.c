/* SPDX-License-Identifier: Apache-2.0
 *
 * outbound: passes on what another server answers: status, headers that may be passed on, body.
 *
 *   ?http://127.0.0.1:8090/path   which one; https works where the host does
 *
 * 400 when there is no such URL, 502 with "error-code N" (its place in wasi:http/types) when the call fails.
 */
#include "wasi.h"

static void refuse(handle outparam, uint32_t status, const char *message, const error_code *error) {
    handle body = respond_text(outparam, status), stream = stream_of(body);
    write_text(stream, message);
    if (error != NULL) {
        write_number(stream, error->code);
    }
    write_text(stream, "\n");
    output_drop(stream);
    finish(body, false, 0);
}

HANDLE void handle_request(handle request, handle outparam) {
    text url = query_of(request);
    request_drop(request);
    uint32_t scheme = begins(url, "https://"), start = scheme ? 8 : 7;
    if (!scheme && !begins(url, "http://")) {
        refuse(outparam, 400, "ask with ?http://host/path", NULL);
        return;
    }
    uint32_t slash = start;
    while (slash < url.size && url.data[slash] != '/') {
        slash++;
    }
    handle call = call_new(fields_new());
    bool wrong = call_set_scheme(call, 1, scheme, NULL, 0) ||
                 call_set_authority(call, 1, url.data + start, slash - start) ||
                 call_set_path(call, 1, slash < url.size ? url.data + slash : "/", slash < url.size ? url.size - slash : 1);
    if (wrong) {
        call_drop(call);
        refuse(outparam, 400, "that is no URL", NULL);
        return;
    }
    error_result begun;
    outgoing_handle(call, 0, 0, &begun);
    if (begun.tag != 0) {
        refuse(outparam, 502, "error-code ", &begun.error);
        return;
    }
    handle pollable = answer_subscribe(begun.value);
    pollable_block(pollable);
    pollable_drop(pollable);
    future_result answer;
    answer_get(begun.value, &answer);
    must(answer.some && !answer.taken);
    answer_drop(begun.value);
    if (answer.tag != 0) {
        refuse(outparam, 502, "error-code ", &answer.error);
        return;
    }

    handle headers = fields_new(), theirs = incoming_headers(answer.value);
    field_list list;
    fields_entries(theirs, &list);
    for (uint32_t i = 0; i < list.count; i++) {
        uint8_t appended[2]; /* a name that is the host's own business is refused, and left out */
        fields_append(headers, list.at[i].name.data, list.at[i].name.size, list.at[i].value.data,
                      list.at[i].value.size, appended);
    }
    fields_drop(theirs);
    handle_result incoming, in;
    incoming_consume(answer.value, &incoming);
    must(incoming.tag == 0);
    body_stream(incoming.value, &in);
    must(in.tag == 0);
    handle body = respond(outparam, incoming_status(answer.value), headers), out = stream_of(body);
    read_result got;
    for (;;) {
        arena_used = 0;
        stream_blocking_read(in.value, 65536, &got);
        if (got.tag != 0 || !write_all(out, got.bytes.data, got.bytes.size)) {
            break;
        }
    }
    input_drop(in.value);
    body_drop(incoming.value);
    incoming_drop(answer.value);
    output_drop(out);
    if (got.tag != 0 && got.error == 1) {
        finish(body, false, 0);
    } else {
        outgoing_drop(body); /* what came is not all: the response must not look whole */
    }
}
