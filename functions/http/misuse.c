/* SPDX-License-Identifier: Apache-2.0
 *
 * misuse: wrong uses of wasi:http, picked by the query. What should come of each is beside it.
 *
 *   ?unset        the response-outparam is dropped: there is no response
 *   ?kept         the handler returns with everything still open, nothing set
 *   ?error        the outparam is set to an error-code, internal-error
 *   ?twice        the outparam is set again: trap
 *   ?trap         trap before there is a response
 *   ?late-trap    trap when half of the body has gone out
 *   ?unfinished   the body is dropped, not finished: the response must not look whole
 *   ?open         the handler returns while the body is still open: the same
 *   ?short        5 bytes are announced, 3 sent: finish fails
 *   ?long         5 bytes are announced, 10 sent
 *   ?overrun      a write of more than check-write permitted: trap
 *   ?order        the body is dropped before its stream: trap
 *   ?taken        the body is asked for twice: the second time is an error; answers "1"
 *   ?handle       a handle that nobody gave: trap
 *   ?fields       names and values that fields refuse; answers with the error of each: 0 invalid, 1 forbidden, - none
 *   ?hoard        header blocks without end: trap
 *   ?loop         never answers
 *   ?after        answers, finishes, and never returns
 *   ?flood        a body without end
 *   ?large        fields without end in one header block
 */
#include "wasi.h"

static void spin(void) {
    for (volatile uint32_t i = 0;; i++) {
    }
}

static handle headers_with_length(const char *length) {
    const field announced = {{"content-length", 14}, text_of(length)};
    handle_result headers;
    fields_from_list(&announced, 1, &headers);
    must(headers.tag == 0);
    return headers.value;
}

static void answer(handle outparam, const char *message) {
    handle body = respond_text(outparam, 200), out = stream_of(body);
    write_text(out, message);
    output_drop(out);
    finish(body, false, 0);
}

static void announced(handle outparam, const char *length, const char *sent) {
    handle body = respond(outparam, 200, headers_with_length(length)), out = stream_of(body);
    error_result finished;
    stream_result written;
    stream_blocking_write_and_flush(out, sent, text_of(sent).size, &written);
    output_drop(out);
    outgoing_finish(body, 0, 0, &finished);
}

static void fields(handle outparam) {
    static const field tried[] = {
        {{"x-fine", 6}, {"yes", 3}},         {{"connection", 10}, {"close", 5}},
        {{"Transfer-Encoding", 17}, {"x", 1}}, {{"host", 4}, {"elsewhere", 9}},
        {{"keep-alive", 10}, {"1", 1}},      {{"upgrade", 7}, {"h2c", 3}},
        {{"x bad", 5}, {"name", 4}},         {{"", 0}, {"no name", 7}},
        {{"x-bad", 5}, {"a\r\nb: c", 7}},    {{"x-bad", 5}, {"a\0b", 3}},
        {{"x-bytes", 7}, {"\xff\x80", 2}},
    };
    char line[2 * sizeof tried / sizeof tried[0] + 1], *at = line;
    handle headers = fields_new();
    for (size_t i = 0; i < sizeof tried / sizeof tried[0]; i++) {
        uint8_t result[2];
        fields_append(headers, tried[i].name.data, tried[i].name.size, tried[i].value.data, tried[i].value.size,
                      result);
        *at++ = result[0] == 0 ? '-' : (char)('0' + result[1]);
    }
    fields_drop(headers);
    *at++ = '\n';
    *at = '\0';
    answer(outparam, line);
}

HANDLE void handle_request(handle request, handle outparam) {
    const text query = query_of(request);
    static const char chunk[4096];
    stream_result written;
    if (is(query, "unset")) {
        outparam_drop(outparam);
    } else if (is(query, "kept")) {
        return;
    } else if (is(query, "error")) {
        static const char why[] = "as asked";
        outparam_set(outparam, 1, 38, 1, (uint32_t)(uintptr_t)why, sizeof why - 1, 0, 0, 0);
    } else if (is(query, "twice")) {
        answer(outparam, "once\n");
        respond(outparam, 200, fields_new());
    } else if (is(query, "trap")) {
        __builtin_trap();
    } else if (is(query, "fields")) {
        fields(outparam);
    } else if (is(query, "short")) {
        announced(outparam, "5", "abc");
    } else if (is(query, "long")) {
        announced(outparam, "5", "abcdefghij");
    } else if (is(query, "handle")) {
        output_drop(12345);
    } else if (is(query, "hoard")) {
        for (;;) {
            fields_new();
        }
    } else if (is(query, "large")) {
        handle headers = fields_new();
        for (;;) {
            uint8_t result[2];
            fields_append(headers, "x-large", 7, "value", 5, result);
        }
    } else if (is(query, "204") || is(query, "304")) {
        handle body = respond_text(outparam, query.data[0] == '2' ? 204 : 304), out = stream_of(body);
        write_text(out, "a body where none may be\n");
        output_drop(out);
        finish(body, false, 0);
    } else if (is(query, "loop")) {
        spin();
    } else if (is(query, "after")) {
        answer(outparam, "answered\n");
        spin();
    } else if (is(query, "taken")) {
        handle_result body, again;
        handle response = response_new(fields_new());
        response_body(response, &body);
        response_body(response, &again);
        must(body.tag == 0 && again.tag == 1);
        outgoing_drop(body.value);
        response_drop(response);
        answer(outparam, "1\n");
    } else {
        handle body = respond_text(outparam, 200), out = stream_of(body);
        stream_blocking_write_and_flush(out, "half\n", 5, &written);
        if (is(query, "late-trap")) {
            __builtin_trap();
        } else if (is(query, "order")) {
            outgoing_drop(body);
        } else if (is(query, "unfinished")) {
            output_drop(out);
            outgoing_drop(body);
        } else if (is(query, "overrun")) {
            count_result room;
            stream_check_write(out, &room);
            must(room.tag == 0);
            for (uint64_t sent = 0; sent <= room.count; sent += sizeof chunk) {
                stream_write(out, chunk, sizeof chunk, &written);
            }
        } else if (is(query, "flood")) {
            while (write_all(out, chunk, sizeof chunk)) {
            }
        } else if (!is(query, "open")) {
            write_text(out, "ask with one of the words in misuse.c\n");
            output_drop(out);
            finish(body, false, 0);
        }
    }
}
