/* SPDX-License-Identifier: Apache-2.0
 *
 * loop: never returns and never calls the host, so only fuel, epochs or a
 * signal can stop it. The volatile keeps the compiler from reasoning the loop
 * away.
 */
int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    for (volatile unsigned spin = 0;; spin++) {
    }
}
