/* SPDX-License-Identifier: Apache-2.0
 *
 * env: prints every argument ("arg 0=...") and every environment variable
 * ("NAME=value"), so that a test can see exactly what the host lets through.
 */
#include <stdio.h>

extern char **environ;

int main(int argc, char **argv) {
    printf("Content-Type: text/plain\n\n");
    for (int i = 0; i < argc; i++) {
        printf("arg %d=%s\n", i, argv[i]);
    }
    for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
        printf("%s\n", *entry);
    }
    return 0;
}
