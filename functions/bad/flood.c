/* SPDX-License-Identifier: Apache-2.0
 *
 * flood: correct headers, then output without end. Stops only when a write
 * fails (the host closed the pipe), with exit code 1.
 */
#include <string.h>
#include <unistd.h>

static char block[65536];

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    static const char head[] = "Content-Type: text/plain\n\n";
    memset(block, 'x', sizeof block);
    if (write(1, head, sizeof head - 1) < 0) {
        return 1;
    }
    while (write(1, block, sizeof block) >= 0) {
    }
    return 1;
}
