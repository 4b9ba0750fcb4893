/* SPDX-License-Identifier: Apache-2.0
 *
 * primes: counts the primes below QUERY_STRING (default 100000) with a sieve,
 * which costs CPU time and nothing else. For load tests of work that computes.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX 10000000L

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    const char *query = getenv("QUERY_STRING");
    char *end = NULL;
    long limit = query != NULL && query[0] != '\0' ? strtol(query, &end, 10) : 100000;
    if (limit < 0 || limit > MAX || (end != NULL && *end != '\0')) {
        printf("Status: 400 Bad Request\nContent-Type: text/plain\n\ngive a number from 0 to %ld\n", MAX);
        return 0;
    }
    uint8_t *composite = calloc((size_t)limit + 1, 1);
    if (composite == NULL) {
        fprintf(stderr, "no memory for a sieve of %ld bytes\n", limit);
        return 1;
    }
    long count = 0;
    for (long n = 2; n < limit; n++) {
        if (composite[n]) {
            continue;
        }
        count++;
        if (n > limit / n) {
            continue; /* nothing left to strike out, and n * n might not fit a long, which has 32 bits here */
        }
        for (long multiple = n * n; multiple < limit; multiple += n) {
            composite[multiple] = 1;
        }
    }
    printf("Content-Type: text/plain\n\n%ld primes below %ld\n", count, limit);
    return 0;
}
