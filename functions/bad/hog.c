/* SPDX-License-Identifier: Apache-2.0
 *
 * hog: allocates and touches memory until malloc fails, says on stderr how far
 * it got, then aborts (a trap). Touching every page matters: untouched pages of
 * a linear memory cost the host nothing.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for the allocator's header, lest it round the block up to 2 MiB. */
#define STEP ((1u << 20) - 64u)

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    unsigned mebibytes = 0;
    for (;;) {
        /* volatile: otherwise an unused malloc may be removed. */
        unsigned char *volatile block = malloc(STEP);
        if (block == NULL) {
            break;
        }
        memset(block, 0xA5, STEP);
        mebibytes++;
    }
    fprintf(stderr, "hog: malloc failed after %u MiB\n", mebibytes);
    abort();
}
