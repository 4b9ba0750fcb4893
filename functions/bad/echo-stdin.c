/* SPDX-License-Identifier: Apache-2.0
 *
 * echo-stdin: copies stdin to stdout as application/octet-stream, 64 KiB at a
 * time and without stdio, so that a body of any size passes in constant memory.
 */
#include <unistd.h>

/* Static: the stack of these modules is 64 KiB in all. */
static char buffer[65536];

static int write_all(const char *data, size_t size) {
    while (size > 0) {
        ssize_t done = write(1, data, size);
        if (done < 0) {
            return -1;
        }
        data += done;
        size -= (size_t)done;
    }
    return 0;
}

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    static const char head[] = "Content-Type: application/octet-stream\n\n";
    if (write_all(head, sizeof head - 1) < 0) {
        return 1;
    }
    for (;;) {
        ssize_t got = read(0, buffer, sizeof buffer);
        if (got == 0) {
            return 0;
        }
        if (got < 0 || write_all(buffer, (size_t)got) < 0) {
            return 1;
        }
    }
}
