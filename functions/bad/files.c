/* SPDX-License-Identifier: Apache-2.0
 *
 * files: shows what the guest can see and do in the file system. Lists / and
 * /tmp recursively, reads the file named by QUERY_STRING (taken literally, no
 * percent decoding), writes and reads back /tmp/x, and tries things that a
 * sandbox must refuse. Errors are reported by errno name:
 *   dir PATH                  file PATH SIZE
 *   list PATH: ERRNO          read PATH: ERRNO | read PATH: N bytes, then them
 *   tmp: ok | tmp: STEP ERRNO
 *   write PATH: ERRNO | write PATH: ok
 *   escape PATH: ERRNO | escape PATH: opened
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *errno_name(int error) {
    static char other[24];
    switch (error) {
    case 0: return "OK";
    case EACCES: return "EACCES";
    case EBADF: return "EBADF";
    case EDQUOT: return "EDQUOT";
    case EEXIST: return "EEXIST";
    case EFBIG: return "EFBIG";
    case EINVAL: return "EINVAL";
    case EIO: return "EIO";
    case EISDIR: return "EISDIR";
    case ELOOP: return "ELOOP";
    case EMFILE: return "EMFILE";
    case ENAMETOOLONG: return "ENAMETOOLONG";
    case ENOENT: return "ENOENT";
    case ENOSPC: return "ENOSPC";
    case ENOSYS: return "ENOSYS";
    case ENOTDIR: return "ENOTDIR";
    case ENOTSUP: return "ENOTSUP";
    case EPERM: return "EPERM";
    case EROFS: return "EROFS";
    case ENOTCAPABLE: return "ENOTCAPABLE";
    default: snprintf(other, sizeof other, "errno %d", error); return other;
    }
}

/* Lists `path` depth first; `depth` bounds the walk should a host show a loop. */
static void list(const char *path, int depth) {
    DIR *dir = opendir(path);
    if (dir == NULL) {
        printf("list %s: %s\n", path, errno_name(errno));
        return;
    }
    struct dirent *entry;
    while ((entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
            continue;
        }
        size_t size = strlen(path) + strlen(entry->d_name) + 2;
        char *child = malloc(size);
        if (child == NULL) {
            abort();
        }
        snprintf(child, size, "%s%s%s", path, path[strlen(path) - 1] == '/' ? "" : "/",
                 entry->d_name);
        struct stat info;
        if (stat(child, &info) != 0) {
            printf("stat %s: %s\n", child, errno_name(errno));
        } else if (S_ISDIR(info.st_mode)) {
            printf("dir %s\n", child);
            if (depth < 16) {
                list(child, depth + 1);
            }
        } else {
            printf("file %s %lld\n", child, (long long)info.st_size);
        }
        free(child);
    }
    closedir(dir);
}

static void read_named(const char *path) {
    static char buffer[4096];
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        printf("read %s: %s\n", path, errno_name(errno));
        return;
    }
    ssize_t got = read(fd, buffer, sizeof buffer);
    if (got < 0) {
        printf("read %s: %s\n", path, errno_name(errno));
    } else {
        printf("read %s: %zd bytes\n", path, got);
        fwrite(buffer, 1, (size_t)got, stdout);
        putchar('\n');
    }
    close(fd);
}

static void try_tmp(void) {
    static const char text[] = "written by files";
    char back[sizeof text] = "";
    int fd = open("/tmp/x", O_CREAT | O_TRUNC | O_RDWR, 0600);
    if (fd < 0) {
        printf("tmp: open %s\n", errno_name(errno));
        return;
    }
    if (write(fd, text, sizeof text - 1) != (ssize_t)(sizeof text - 1)) {
        printf("tmp: write %s\n", errno_name(errno));
    } else if (lseek(fd, 0, SEEK_SET) != 0) {
        printf("tmp: seek %s\n", errno_name(errno));
    } else if (read(fd, back, sizeof back) != (ssize_t)(sizeof text - 1) ||
               memcmp(text, back, sizeof text - 1) != 0) {
        printf("tmp: read %s\n", errno_name(errno));
    } else {
        printf("tmp: ok\n");
    }
    close(fd);
}

static void try_write(const char *path) {
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    if (fd < 0) {
        printf("write %s: %s\n", path, errno_name(errno));
        return;
    }
    if (write(fd, "x", 1) != 1) {
        printf("write %s: %s\n", path, errno_name(errno));
    } else {
        printf("write %s: ok\n", path);
    }
    close(fd);
}

static void try_escape(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        printf("escape %s: %s\n", path, errno_name(errno));
        return;
    }
    printf("escape %s: opened\n", path);
    close(fd);
}

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    const char *query = getenv("QUERY_STRING");
    printf("Content-Type: text/plain\n\n");
    list("/", 0);
    /* /tmp may be a preopen of its own that no entry of / leads to. */
    list("/tmp", 0);
    if (query != NULL && query[0] != '\0') {
        read_named(query);
    }
    try_tmp();
    try_write("/nope");
    if (mkdir("/nope-dir", 0700) != 0) {
        printf("mkdir /nope-dir: %s\n", errno_name(errno));
    } else {
        printf("mkdir /nope-dir: ok\n");
    }
    try_escape("/tmp/../../../etc/passwd");
    try_escape("/../etc/passwd");
    if (symlink("/etc/passwd", "/tmp/link") != 0) {
        printf("symlink /tmp/link: %s\n", errno_name(errno));
    } else {
        printf("symlink /tmp/link: ok\n");
        try_escape("/tmp/link");
    }
    return 0;
}
