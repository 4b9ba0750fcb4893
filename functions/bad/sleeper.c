/* SPDX-License-Identifier: Apache-2.0
 *
 * sleeper: sleeps QUERY_STRING milliseconds (default 1000) in the host's
 * poll_oneoff, then answers "slept N ms". Costs wall time but no CPU time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    const char *query = getenv("QUERY_STRING");
    long ms = query != NULL && query[0] != '\0' ? strtol(query, NULL, 10) : 1000;
    struct timespec delay = {.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000L};
    nanosleep(&delay, NULL);
    printf("Content-Type: text/plain\n\nslept %ld ms\n", ms);
    return 0;
}
