/* A `reactor` function: one call per request, the fastest kind. faas.h is the SDK, all of it. */
#include "faas.h"

void handle(const faas_request *req, faas_response *res) {
    faas_add_header(res, "content-type", "application/json");
    faas_print(res, "{\"hello\":\"@NAME@\",\"method\":");
    faas_write_json(res, req->method);
    faas_print(res, ",\"path\":");
    faas_write_json(res, req->path);
    faas_print(res, "}\n");
}
