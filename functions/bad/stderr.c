/* SPDX-License-Identifier: Apache-2.0
 *
 * stderr: a hard case for a log collector: QUERY_STRING lines (default 100),
 * an empty line, a line of 10000 characters, invalid UTF-8, control characters
 * (NUL, ESC, CR), and a last line that does not end in a newline.
 */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    const char *query = getenv("QUERY_STRING");
    long count = query != NULL && query[0] != '\0' ? strtol(query, NULL, 10) : 100;
    for (long i = 0; i < count; i++) {
        fprintf(stderr, "line %ld\n", i);
    }
    fputs("\n", stderr);
    static char run[10001];
    for (size_t i = 0; i < sizeof run - 1; i++) {
        run[i] = 'y';
    }
    run[sizeof run - 1] = '\n';
    fwrite(run, 1, sizeof run, stderr);
    static const char odd[] = "bad utf-8: \xff\xfe\xc3( \xe2\x82\n"
                              "controls: nul \0 esc \x1b[31m cr \r end\n"
                              "valid utf-8: \xc3\xa4\xe2\x82\xac\n"
                              "no newline at the end";
    fwrite(odd, 1, sizeof odd - 1, stderr);
    printf("Content-Type: text/plain\n\nwrote %ld lines to stderr\n", count);
    return 0;
}
