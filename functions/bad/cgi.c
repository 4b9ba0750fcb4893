/* SPDX-License-Identifier: Apache-2.0
 *
 * cgi: correct CGI responses of every shape, picked by QUERY_STRING:
 *   status=NNN[ Reason]  a Status field ('+' stands for a space)
 *   location=URL         a Location field and nothing else (RFC 3875, 6.2.2-6.2.3)
 *   redirect=URL         Status 303, Location and a body (6.2.4)
 *   cookies              two Set-Cookie fields, which must not be joined
 *   binary               the 256 bytes 0..255
 *   empty                headers only, empty body
 *   crlf                 header lines end in CRLF
 *   (default)            a plain text body
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Prints a query value, with '+' decoded to a space. */
static void put_value(const char *value) {
    for (; *value != '\0'; value++) {
        putchar(*value == '+' ? ' ' : *value);
    }
}

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    const char *query = getenv("QUERY_STRING");
    if (query == NULL) {
        query = "";
    }
    if (strncmp(query, "status=", 7) == 0) {
        fputs("Status: ", stdout);
        put_value(query + 7);
        fputs("\nContent-Type: text/plain\n\nstatus ", stdout);
        put_value(query + 7);
        putchar('\n');
    } else if (strncmp(query, "location=", 9) == 0) {
        printf("Location: %s\n\n", query + 9);
    } else if (strncmp(query, "redirect=", 9) == 0) {
        printf("Status: 303 See Other\nLocation: %s\nContent-Type: text/plain\n\nsee other\n",
               query + 9);
    } else if (strcmp(query, "cookies") == 0) {
        fputs("Content-Type: text/plain\nSet-Cookie: a=1; Path=/\nSet-Cookie: b=2; HttpOnly\n\n"
              "two cookies\n",
              stdout);
    } else if (strcmp(query, "binary") == 0) {
        fputs("Content-Type: application/octet-stream\n\n", stdout);
        for (int byte = 0; byte < 256; byte++) {
            putchar(byte);
        }
    } else if (strcmp(query, "empty") == 0) {
        fputs("Content-Type: text/plain\n\n", stdout);
    } else if (strcmp(query, "crlf") == 0) {
        fputs("Status: 201 Created\r\nContent-Type: text/plain\r\nX-Line-End: crlf\r\n\r\n"
              "crlf headers\n",
              stdout);
    } else {
        fputs("Content-Type: text/plain\n\nplain\n", stdout);
    }
    return 0;
}
