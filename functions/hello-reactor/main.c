/* SPDX-License-Identifier: Apache-2.0
 *
 * hello-reactor: the smallest `reactor` function, and what `make bench` measures.
 *
 * The answer is that of hello-command, byte for byte, so that the two kinds and
 * every peer of the benchmark can be compared.
 */
#include "faas.h"

void handle(const faas_request *req, faas_response *res) {
    (void)req;
    faas_add_header(res, "content-type", "text/plain");
    faas_print(res, "hello world\n");
}
