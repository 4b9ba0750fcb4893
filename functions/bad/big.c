/* SPDX-License-Identifier: Apache-2.0
 *
 * big: about 2 MB of code, for compile time and cache tests. The preprocessor
 * makes 5000 functions that differ in their constants, so that the linker can
 * fold none of them; a table of pointers indexed at run time keeps all alive.
 * QUERY_STRING picks the function that is called (default 0).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define ROUND(n, k)                                                                                \
    x = (x ^ (n##u * k##u + 0x9E3779B9u)) * (0x01000193u + 2u * n##u + k##u) + (x >> (1 + k % 7));
#define BODY(n)                                                                                    \
    static uint32_t f##n(uint32_t x) {                                                             \
        ROUND(n, 1001) ROUND(n, 2003) ROUND(n, 3007) ROUND(n, 4001) ROUND(n, 5003) ROUND(n, 6007)  \
        ROUND(n, 7001) ROUND(n, 8009) ROUND(n, 9001) ROUND(n, 1103) ROUND(n, 2111) ROUND(n, 3109)  \
        ROUND(n, 4111) ROUND(n, 5101) ROUND(n, 6113) ROUND(n, 7103) ROUND(n, 8111) ROUND(n, 9103)  \
        return x;                                                                                  \
    }
#define NAME(n) f##n,

/* Leading digits 1..5 keep every number decimal: 0123 would be octal. */
#define EACH10(M, p) M(p##0) M(p##1) M(p##2) M(p##3) M(p##4) M(p##5) M(p##6) M(p##7) M(p##8) M(p##9)
#define EACH100(M, p)                                                                              \
    EACH10(M, p##0) EACH10(M, p##1) EACH10(M, p##2) EACH10(M, p##3) EACH10(M, p##4)                \
    EACH10(M, p##5) EACH10(M, p##6) EACH10(M, p##7) EACH10(M, p##8) EACH10(M, p##9)
#define EACH1000(M, p)                                                                             \
    EACH100(M, p##0) EACH100(M, p##1) EACH100(M, p##2) EACH100(M, p##3) EACH100(M, p##4)           \
    EACH100(M, p##5) EACH100(M, p##6) EACH100(M, p##7) EACH100(M, p##8) EACH100(M, p##9)
#define EACH(M) EACH1000(M, 1) EACH1000(M, 2) EACH1000(M, 3) EACH1000(M, 4) EACH1000(M, 5)

EACH(BODY)

static uint32_t (*const functions[])(uint32_t) = {EACH(NAME)};

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    const char *query = getenv("QUERY_STRING");
    unsigned long index = query != NULL ? strtoul(query, NULL, 10) : 0;
    const unsigned count = sizeof functions / sizeof functions[0];
    printf("Content-Type: text/plain\n\nhello\n%u functions, value %08x\n", count,
           (unsigned)functions[index % count](1u));
    return 0;
}
