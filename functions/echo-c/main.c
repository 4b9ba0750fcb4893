/* SPDX-License-Identifier: Apache-2.0
 *
 * echo-c: a `reactor` function. POST, PUT and PATCH get their body back with its
 * content type; anything else gets a JSON description of the request. The output
 * is byte for byte that of echo-rust.
 */
#include "faas.h"

static void write_field(faas_response *res, const char *name, faas_str value) {
    faas_write_json(res, faas_view(name));
    faas_print(res, ":");
    faas_write_json(res, value);
    faas_print(res, ",");
}

static void write_number(faas_response *res, const char *name, uint64_t value) {
    faas_write_json(res, faas_view(name));
    faas_print(res, ":");
    faas_write_uint(res, value);
    faas_print(res, ",");
}

void handle(const faas_request *req, faas_response *res) {
    if (faas_equal(req->method, "POST") || faas_equal(req->method, "PUT") ||
        faas_equal(req->method, "PATCH")) {
        faas_str type = faas_header(req, "content-type");
        if (type.data == NULL) {
            type = faas_view("application/octet-stream");
        }
        faas_add_header_view(res, faas_view("content-type"), type);
        faas_set_body(res, req->body);
        return;
    }
    faas_add_header(res, "content-type", "application/json");
    faas_print(res, "{");
    write_field(res, "method", req->method);
    write_field(res, "path", req->path);
    write_field(res, "query", req->query);
    /* Pairs and not an object: a header name may occur more than once. */
    faas_print(res, "\"headers\":[");
    for (size_t i = 0; i < req->header_count; i++) {
        faas_print(res, i > 0 ? ",[" : "[");
        faas_write_json(res, req->headers[i].name);
        faas_print(res, ",");
        faas_write_json(res, req->headers[i].value);
        faas_print(res, "]");
    }
    faas_print(res, "],\"params\":{");
    for (size_t i = 0; i < req->param_count; i++) {
        faas_print(res, i > 0 ? "," : "");
        faas_write_json(res, req->params[i].name);
        faas_print(res, ":");
        faas_write_json(res, req->params[i].value);
    }
    faas_print(res, "},");
    write_field(res, "route", req->route);
    write_field(res, "function", req->function);
    write_number(res, "version", req->version);
    write_field(res, "request_id", req->request_id);
    write_field(res, "remote_addr", req->remote_addr);
    write_number(res, "deadline_ms", req->deadline_ms);
    faas_print(res, "\"body_bytes\":");
    faas_write_uint(res, req->body.size);
    faas_print(res, "}\n");
}
