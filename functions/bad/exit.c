/* SPDX-License-Identifier: Apache-2.0
 *
 * exit: one line on stderr, nothing on stdout, then exits with the code in
 * QUERY_STRING (default 3). With 0 it is a function that answers nothing at all.
 * Runtimes disagree about codes of 126 and more; wasmtime makes them a trap.
 */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    const char *query = getenv("QUERY_STRING");
    int code = query != NULL && query[0] != '\0' ? atoi(query) : 3;
    fprintf(stderr, "exit: leaving with code %d\n", code);
    exit(code);
}
