/* SPDX-License-Identifier: Apache-2.0
 *
 * hello-command: a fixed answer over CGI/1.1, and what `make bench` measures.
 *
 * The benchmark also builds this very file as a native program, and runs that in
 * a process and in a container of its own for each request.
 */
#include <stdio.h>

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    fputs("Content-Type: text/plain\n\nhello world\n", stdout);
    return 0;
}
