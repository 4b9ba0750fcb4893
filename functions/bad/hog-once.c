/* SPDX-License-Identifier: Apache-2.0
 *
 * hog-once: one allocation of 1 GiB, that is one large memory.grow. Aborts when
 * it is refused; otherwise touches every page and answers. The size is a little
 * less than 1 GiB because an allocator that rounds size plus header up to a
 * power of two would ask for 2 GiB.
 */
#include <stdio.h>
#include <stdlib.h>

#define SIZE ((1u << 30) - 65536u)

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    volatile unsigned char *block = malloc(SIZE);
    if (block == NULL) {
        fprintf(stderr, "hog-once: malloc of 1 GiB failed\n");
        abort();
    }
    for (unsigned offset = 0; offset < SIZE; offset += 4096) {
        block[offset] = 1;
    }
    printf("Content-Type: text/plain\n\nallocated 1 GiB\n");
    return 0;
}
