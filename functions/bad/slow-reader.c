/* SPDX-License-Identifier: Apache-2.0
 *
 * slow-reader: reads stdin one byte at a time and sleeps QUERY_STRING
 * milliseconds (default 1) after each, then reports the count. Shows whether
 * the host buffers without bound for, or blocks on, a reader that lags.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    const char *query = getenv("QUERY_STRING");
    long ms = query != NULL && query[0] != '\0' ? strtol(query, NULL, 10) : 1;
    struct timespec delay = {.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000L};
    unsigned long count = 0;
    char byte;
    while (read(0, &byte, 1) == 1) {
        count++;
        nanosleep(&delay, NULL);
    }
    printf("Content-Type: text/plain\n\nread %lu bytes\n", count);
    return 0;
}
