/* SPDX-License-Identifier: Apache-2.0
 *
 * stream: header, then "chunk 0\n", "chunk 1\n", ... each flushed and 50 ms
 * apart; QUERY_STRING gives their number (default 5). A host that streams lets
 * the client see each one at once.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    const char *query = getenv("QUERY_STRING");
    long count = query != NULL && query[0] != '\0' ? strtol(query, NULL, 10) : 5;
    const struct timespec delay = {.tv_sec = 0, .tv_nsec = 50 * 1000000L};
    printf("Content-Type: text/plain\n\n");
    for (long i = 0; i < count; i++) {
        if (i > 0) {
            nanosleep(&delay, NULL);
        }
        printf("chunk %ld\n", i);
        fflush(stdout);
    }
    return 0;
}
