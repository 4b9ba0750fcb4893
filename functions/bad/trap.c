/* SPDX-License-Identifier: Apache-2.0
 *
 * trap: one line on stderr, then an `unreachable` instruction.
 */
#include <stdio.h>

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    fputs("trap: about to execute unreachable\n", stderr);
    __builtin_trap();
}
