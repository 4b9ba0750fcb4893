/* SPDX-License-Identifier: Apache-2.0
 *
 * cat: no CGI; a plain program for one-shot runs. Copies the files named in
 * argv ("-" is stdin), or stdin when there are none, to stdout. A file that
 * cannot be read gives a message on stderr and exit code 1, after the others
 * have been copied, as cat(1) does.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char buffer[65536];

static int copy(int fd, const char *name) {
    for (;;) {
        ssize_t got = read(fd, buffer, sizeof buffer);
        if (got == 0) {
            return 0;
        }
        if (got < 0) {
            fprintf(stderr, "cat: %s: %s\n", name, strerror(errno));
            return 1;
        }
        for (ssize_t at = 0; at < got;) {
            ssize_t done = write(1, buffer + at, (size_t)(got - at));
            if (done < 0) {
                fprintf(stderr, "cat: stdout: %s\n", strerror(errno));
                return 1;
            }
            at += done;
        }
    }
}

int main(int argc, char **argv) {
    int failed = 0;
    if (argc < 2) {
        return copy(0, "stdin");
    }
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-") == 0) {
            failed |= copy(0, "stdin");
            continue;
        }
        int fd = open(argv[i], O_RDONLY);
        if (fd < 0) {
            fprintf(stderr, "cat: %s: %s\n", argv[i], strerror(errno));
            failed = 1;
            continue;
        }
        failed |= copy(fd, argv[i]);
        close(fd);
    }
    return failed;
}
