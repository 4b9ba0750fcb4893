/* A `command` function: one fresh process image per request, CGI/1.1 (RFC 3875).
 *
 * The request is in the environment (REQUEST_METHOD, PATH_INFO, QUERY_STRING, HTTP_*)
 * and on stdin; the response is header lines, a blank line and the body on stdout.
 * What goes to stderr is the function's log: faas logs @NAME@
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
    printf("Hello from @NAME@!\n%s %s%s\n", meta("REQUEST_METHOD", "GET"), meta("SCRIPT_NAME", ""),
           meta("PATH_INFO", ""));
    return 0;
}
