/* SPDX-License-Identifier: Apache-2.0
 *
 * wizer: pre-initialisation under test. `wizer-initialize` fills a table in
 * linear memory and sets a mutable WebAssembly global (address space 1 is
 * clang's name for one, as opposed to a C variable, which lives in memory).
 * `_start` fills the table itself when that has not been done, so that the
 * checksum is the same either way and only the second line tells.
 */
#include <stdint.h>
#include <stdio.h>

#define ENTRIES (256u * 1024u)

static uint32_t table[ENTRIES];
static int table_ready;
static __attribute__((address_space(1))) int ready_global;

static void fill(void) {
    uint32_t state = 2463534242u;
    for (uint32_t i = 0; i < ENTRIES; i++) {
        /* Many rounds: work that is worth doing once, ahead of time. */
        for (int round = 0; round < 64; round++) {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
        }
        table[i] = state;
    }
}

__attribute__((export_name("wizer-initialize"))) void wizer_initialize(void) {
    fill();
    table_ready = 1;
    ready_global = 42;
}

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    int memory_was_ready = table_ready;
    int global_was = ready_global;
    if (!memory_was_ready) {
        fill();
    }
    uint32_t sum = 0;
    for (uint32_t i = 0; i < ENTRIES; i++) {
        sum = sum * 31u + table[i];
    }
    printf("Content-Type: text/plain\n\nchecksum %08x\npre-initialised: %s\nglobal: %d\n",
           (unsigned)sum, memory_was_ready ? "yes" : "no", global_was);
    return 0;
}
