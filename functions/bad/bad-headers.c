/* SPDX-License-Identifier: Apache-2.0
 *
 * bad-headers: output that is not a CGI response. QUERY_STRING picks how:
 *   (default)   first line is no header line
 *   no-blank    headers, but the output ends before the blank line
 *   none        no output at all
 *   no-headers  a blank line at once: a body without any header field
 *   status      Status is not a number
 *   range       Status is 999999
 *   space       white space between field name and colon
 *   nul         a NUL byte in a field value
 *   control     a bare CR in a field value, the classic response splitting
 *   fold        an obsolete folded (continuation) line
 *   framing     Content-Length that lies, Transfer-Encoding and Connection
 *   long        one header line of 1 MiB
 *   many        100000 header lines
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    const char *query = getenv("QUERY_STRING");
    if (query == NULL) {
        query = "";
    }
    if (strcmp(query, "no-blank") == 0) {
        fputs("Content-Type: text/plain\nX-Cut: off\n", stdout);
    } else if (strcmp(query, "none") == 0) {
        /* Nothing on purpose. */
    } else if (strcmp(query, "no-headers") == 0) {
        fputs("\nbody without header fields\n", stdout);
    } else if (strcmp(query, "status") == 0) {
        fputs("Status: banana\nContent-Type: text/plain\n\nbody\n", stdout);
    } else if (strcmp(query, "range") == 0) {
        fputs("Status: 999999 Too Much\nContent-Type: text/plain\n\nbody\n", stdout);
    } else if (strcmp(query, "space") == 0) {
        fputs("Content-Type : text/plain\n\nbody\n", stdout);
    } else if (strcmp(query, "nul") == 0) {
        static const char text[] = "Content-Type: text/plain\nX-Nul: a\0b\n\nbody\n";
        fwrite(text, 1, sizeof text - 1, stdout);
    } else if (strcmp(query, "control") == 0) {
        fputs("Content-Type: text/plain\nX-Split: a\rSet-Cookie: stolen=1\n\nbody\n", stdout);
    } else if (strcmp(query, "fold") == 0) {
        fputs("Content-Type: text/plain\nX-Fold: one\n two\n\nbody\n", stdout);
    } else if (strcmp(query, "framing") == 0) {
        fputs("Content-Type: text/plain\nContent-Length: 3\nTransfer-Encoding: chunked\n"
              "Connection: close\n\nlonger than three\n",
              stdout);
    } else if (strcmp(query, "long") == 0) {
        fputs("Content-Type: text/plain\nX-Long: ", stdout);
        for (int i = 0; i < 1 << 20; i++) {
            putchar('x');
        }
        fputs("\n\nbody\n", stdout);
    } else if (strcmp(query, "many") == 0) {
        fputs("Content-Type: text/plain\n", stdout);
        for (int i = 0; i < 100000; i++) {
            printf("X-Many-%d: %d\n", i, i);
        }
        fputs("\nbody\n", stdout);
    } else {
        fputs("this is not a header line\n\nbody\n", stdout);
    }
    return 0;
}
