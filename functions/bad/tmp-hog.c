/* SPDX-License-Identifier: Apache-2.0
 *
 * tmp-hog: fills /tmp until an error and reports how many bytes fit and why it
 * stopped: "wrote N bytes: ERRNO". QUERY_STRING is an upper bound in MiB
 * (default 1024) so that a host without a quota loses no whole disk. With
 * "files" it makes empty files instead: "made N files: ERRNO" (bound 100000).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char block[65536];

static const char *errno_name(int error) {
    static char other[24];
    switch (error) {
    case 0: return "no error";
    case EACCES: return "EACCES";
    case EDQUOT: return "EDQUOT";
    case EFBIG: return "EFBIG";
    case EIO: return "EIO";
    case EMFILE: return "EMFILE";
    case ENOENT: return "ENOENT";
    case ENOSPC: return "ENOSPC";
    case EPERM: return "EPERM";
    case EROFS: return "EROFS";
    case ENOTCAPABLE: return "ENOTCAPABLE";
    default: snprintf(other, sizeof other, "errno %d", error); return other;
    }
}

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    const char *query = getenv("QUERY_STRING");
    printf("Content-Type: text/plain\n\n");
    if (query != NULL && strcmp(query, "files") == 0) {
        int made = 0;
        int error = 0;
        while (made < 100000) {
            char path[32];
            snprintf(path, sizeof path, "/tmp/f%d", made);
            int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
            if (fd < 0) {
                error = errno;
                break;
            }
            close(fd);
            made++;
        }
        printf("made %d files: %s\n", made, errno_name(error));
        return 0;
    }
    long long limit = (query != NULL && query[0] != '\0' ? atoll(query) : 1024) << 20;
    long long wrote = 0;
    int error = 0;
    int fd = open("/tmp/hog", O_CREAT | O_TRUNC | O_WRONLY, 0600);
    if (fd < 0) {
        error = errno;
    }
    memset(block, 'x', sizeof block);
    while (error == 0 && wrote < limit) {
        ssize_t done = write(fd, block, sizeof block);
        if (done <= 0) {
            error = done < 0 ? errno : ENOSPC;
        } else {
            wrote += done;
        }
    }
    printf("wrote %lld bytes: %s\n", wrote, errno_name(error));
    return 0;
}
