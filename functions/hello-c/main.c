/* SPDX-License-Identifier: Apache-2.0
 *
 * hello-c: the smallest useful `command` function.
 *
 * The host starts a fresh process image for every request, passes the CGI/1.1
 * meta-variables (RFC 3875) in the environment and the body on stdin, and reads
 * header lines, a blank line and the body from stdout.
 */
#include <stdio.h>
#include <stdlib.h>

/* A meta-variable that does not apply to the request is unset, not empty. */
static const char *meta(const char *name, const char *fallback) {
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : fallback;
}

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    printf("Content-Type: text/plain; charset=utf-8\n\n");
    printf("Hello from C!\n%s %s%s\n", meta("REQUEST_METHOD", "GET"), meta("SCRIPT_NAME", ""),
           meta("PATH_INFO", ""));
    return 0;
}
