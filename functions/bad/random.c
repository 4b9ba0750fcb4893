/* SPDX-License-Identifier: Apache-2.0
 *
 * random: 16 random bytes in hex and the clocks. Two requests must differ; a
 * repeat means that the host (or a memory snapshot) froze the entropy.
 */
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    unsigned char bytes[16];
    struct timespec wall, steady;
    printf("Content-Type: text/plain\n\n");
    if (getentropy(bytes, sizeof bytes) != 0) {
        printf("random: error\n");
        return 1;
    }
    printf("random: ");
    for (unsigned i = 0; i < sizeof bytes; i++) {
        printf("%02x", bytes[i]);
    }
    clock_gettime(CLOCK_REALTIME, &wall);
    clock_gettime(CLOCK_MONOTONIC, &steady);
    printf("\nrealtime: %lld.%09ld\nmonotonic: %lld.%09ld\n", (long long)wall.tv_sec, wall.tv_nsec,
           (long long)steady.tv_sec, steady.tv_nsec);
    return 0;
}
