// Preloaded into a program (LD_PRELOAD), this keeps an image of what the program made durable below POWERLOSS_DIR:
//
// - The bytes of a file, and its size, are durable as of the last fsync or fdatasync of that file.
// - A name (created, renamed, removed) is durable as of the last fsync of its directory.
// - Nothing else ever is: the strictest file system that POSIX allows.
//
// The image lies in POWERLOSS_SHADOW, as lib.rs reads it: `f<inode>` holds a file's bytes, `d<inode>` a directory's
// listing, `root` the name of the top one's. Inodes are named by number and time of birth, since numbers are used again.
// What exists when the program starts is durable. With POWERLOSS_IGNORE_SYNC=1 syncs do nothing.
//
// The disk itself is never synced, so a sync costs a copy. What cannot be modelled ends the program with a sentence.
// Not seen: system calls made without libc, and stdio. A write that is not seen is lost, so it shows as a failure and
// never hides one. A file's bytes after its last name was removed are of no interest.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define BUCKETS 4096
#define RANGES_MAX 1024

struct range { uint64_t from, to; };

// A file below the watched directory.
struct file {
    struct file *next;
    uint64_t inode, birth_ns;
    // Written and not synced.
    struct range *dirty;
    size_t dirty_count, dirty_room;
    // To read the file and to write its image; -1 while they are closed.
    int from, to;
    unsigned syncs;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct file *files[BUCKETS];
static char watched[PATH_MAX], shadow[PATH_MAX];
static bool active, ignore_sync;

static void die(const char *what) {
    dprintf(2, "powerloss: %s\n", what);
    abort();
}

static void start(void);

// Whether there is anything to do for calls on this thread.
static bool on(void) {
    pthread_once(&once, start);
    return active;
}

static int raw_open(const char *path, int flags, mode_t mode) {
    return syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, mode);
}

static bool describe(int at, const char *name, int flags, struct statx *out) {
    int kept = errno;
    bool found = syscall(SYS_statx, at, name, flags | AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, out) == 0;
    errno = kept;
    return found;
}

static uint64_t birth_of(const struct statx *about) {
    return (uint64_t)about->stx_btime.tv_sec * 1000000000u + about->stx_btime.tv_nsec;
}

static struct file *find(const struct statx *about) {
    uint64_t birth_ns = birth_of(about);
    for (struct file *file = files[about->stx_ino % BUCKETS]; file; file = file->next)
        if (file->inode == about->stx_ino && file->birth_ns == birth_ns) return file;
    return NULL;
}

static struct file *find_or_add(const struct statx *about) {
    struct file *file = find(about);
    if (file) return file;
    if (!(about->stx_mask & STATX_BTIME)) die("this file system keeps no time of birth; use ext4, xfs, btrfs or tmpfs");
    if (!(file = calloc(1, sizeof *file))) die("out of memory");
    *file = (struct file){ .next = files[about->stx_ino % BUCKETS], .inode = about->stx_ino, .birth_ns = birth_of(about), .from = -1, .to = -1 };
    return files[about->stx_ino % BUCKETS] = file;
}

// The watched file behind a descriptor, or NULL. Call it with the lock held.
static struct file *watched_file(int fd) {
    struct statx about;
    if (!describe(fd, "", AT_EMPTY_PATH, &about) || !S_ISREG(about.stx_mode)) return NULL;
    return find(&about);
}

static bool below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int kept = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (length < 0) return false;
    path[length] = 0;
    size_t prefix = strlen(watched);
    return strncmp(path, watched, prefix) == 0 && (path[prefix] == '/' || path[prefix] == 0);
}

static void mark(struct file *file, uint64_t from, uint64_t to) {
    if (from >= to) return;
    struct range *last = file->dirty_count ? &file->dirty[file->dirty_count - 1] : NULL;
    if (last && from <= last->to && to >= last->from) {
        if (from < last->from) last->from = from;
        if (to > last->to) last->to = to;
        return;
    }
    if (file->dirty_count == RANGES_MAX) {
        // What lies between is durable already, so copying it again changes nothing.
        for (size_t i = 0; i < file->dirty_count; i++) {
            if (file->dirty[i].from < from) from = file->dirty[i].from;
            if (file->dirty[i].to > to) to = file->dirty[i].to;
        }
        file->dirty_count = 0;
    }
    if (file->dirty_count == file->dirty_room) {
        file->dirty_room = file->dirty_room ? 2 * file->dirty_room : 8;
        if (!(file->dirty = realloc(file->dirty, file->dirty_room * sizeof *file->dirty))) die("out of memory");
    }
    file->dirty[file->dirty_count++] = (struct range){ from, to };
}

static void object_path(char out[PATH_MAX], char kind, uint64_t inode, uint64_t birth_ns) {
    if (snprintf(out, PATH_MAX, "%s/%c%lu-%lu", shadow, kind, inode, birth_ns) >= PATH_MAX) die("POWERLOSS_SHADOW is too long");
}

static void copy(struct file *file, uint64_t from, uint64_t to) {
    static char buffer[1 << 20];
    while (from < to) {
        size_t part = to - from < sizeof buffer ? to - from : sizeof buffer;
        ssize_t got = syscall(SYS_pread64, file->from, buffer, part, from);
        if (got < 0) die("reading what was written failed");
        if (got == 0) return;
        if (syscall(SYS_pwrite64, file->to, buffer, got, from) != got) die("POWERLOSS_SHADOW is full");
        from += got;
    }
}

// Makes durable what was written to a file.
static void sync_file(struct file *file, int fd) {
    if (file->from < 0) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        file->from = raw_open(path, O_RDONLY, 0);
        object_path(path, 'f', file->inode, file->birth_ns);
        file->to = raw_open(path, O_WRONLY | O_CREAT, 0600);
        if (file->from < 0 || file->to < 0) die("opening a file once more failed; too many open files?");
    }
    struct stat about;
    if (fstat(file->from, &about) != 0) die("fstat failed");
    for (size_t i = 0; i < file->dirty_count; i++) {
        uint64_t end = file->dirty[i].to < (uint64_t)about.st_size ? file->dirty[i].to : (uint64_t)about.st_size;
        copy(file, file->dirty[i].from, end);
    }
    if (syscall(SYS_ftruncate, file->to, about.st_size) != 0) die("POWERLOSS_SHADOW is full");
    file->dirty_count = 0;
    // Only what is synced again and again stays open.
    if (++file->syncs < 4) {
        syscall(SYS_close, file->from);
        syscall(SYS_close, file->to);
        file->from = file->to = -1;
    }
}

// Makes durable which names a directory holds. Replaces its listing at once: renames are atomic.
static void sync_directory(int fd, const struct statx *about) {
    char path[PATH_MAX], new_path[PATH_MAX];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int from = raw_open(path, O_RDONLY | O_DIRECTORY, 0);
    DIR *names = from < 0 ? NULL : fdopendir(from);
    object_path(path, 'd', about->stx_ino, birth_of(about));
    if (snprintf(new_path, sizeof new_path, "%s/new", shadow) >= PATH_MAX) die("POWERLOSS_SHADOW is too long");
    int listing = raw_open(new_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (!names || listing < 0) die("reading a directory failed; too many open files?");
    for (struct dirent *entry; (entry = readdir(names));) {
        struct statx found;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (strchr(entry->d_name, '\n')) die("a name contains a line break");
        // It may be gone by now; then it is as if the sync had come a little later.
        if (!describe(dirfd(names), entry->d_name, 0, &found)) continue;
        bool is_directory = S_ISDIR(found.stx_mode);
        if (!is_directory && !S_ISREG(found.stx_mode)) die("only files and directories are modelled");
        if (!is_directory && !find(&found)) die("a file appeared that was not created here: moved in, or by a raw system call");
        dprintf(listing, "%c%llu-%lu %s\n", is_directory ? 'd' : 'f', found.stx_ino, birth_of(&found), entry->d_name);
    }
    closedir(names);
    syscall(SYS_close, listing);
    if (rename(new_path, path) != 0) die("writing to POWERLOSS_SHADOW failed");
}

// Takes what is there at the start for durable.
static void adopt(const char *path) {
    int fd = raw_open(path, O_RDONLY | O_NOFOLLOW, 0);
    struct statx about;
    if (fd < 0 || !describe(fd, "", AT_EMPTY_PATH, &about)) die("reading POWERLOSS_DIR failed");
    if (S_ISREG(about.stx_mode)) {
        struct file *file = find_or_add(&about);
        mark(file, 0, UINT64_MAX);
        sync_file(file, fd);
    } else {
        DIR *names = opendir(path);
        if (!names) die("reading POWERLOSS_DIR failed");
        for (struct dirent *entry; (entry = readdir(names));) {
            char child[PATH_MAX];
            if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
            if (snprintf(child, sizeof child, "%s/%s", path, entry->d_name) >= PATH_MAX) die("a path is too long");
            adopt(child);
        }
        closedir(names);
        sync_directory(fd, &about);
    }
    syscall(SYS_close, fd);
}

static void clear_shadow(void) {
    DIR *names = opendir(shadow);
    if (!names) die("POWERLOSS_SHADOW must name an existing directory");
    for (struct dirent *entry; (entry = readdir(names));)
        if (entry->d_name[0] != '.') unlinkat(dirfd(names), entry->d_name, 0);
    closedir(names);
}

static void start(void) {
    const char *dir = getenv("POWERLOSS_DIR"), *image = getenv("POWERLOSS_SHADOW"), *ignore = getenv("POWERLOSS_IGNORE_SYNC");
    // Its children would start the image anew.
    unsetenv("LD_PRELOAD");
    if (!dir || !image) die("POWERLOSS_DIR and POWERLOSS_SHADOW must both be set");
    if (!realpath(dir, watched) || !realpath(image, shadow)) die("POWERLOSS_DIR and POWERLOSS_SHADOW must exist");
    clear_shadow();
    adopt(watched);
    struct statx about;
    char path[PATH_MAX];
    if (!describe(AT_FDCWD, watched, 0, &about)) die("POWERLOSS_DIR is gone");
    if (snprintf(path, sizeof path, "%s/root", shadow) >= PATH_MAX) die("POWERLOSS_SHADOW is too long");
    int root = raw_open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (root < 0) die("writing to POWERLOSS_SHADOW failed");
    dprintf(root, "d%llu-%lu", about.stx_ino, birth_of(&about));
    syscall(SYS_close, root);
    ignore_sync = ignore && !strcmp(ignore, "1");
    active = true;
}

__attribute__((constructor)) static void load(void) { pthread_once(&once, start); }

static int open_watched(int at, const char *path, int flags, mode_t mode) {
    if (!on() || ((flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT))) return syscall(SYS_openat, at, path, flags, mode);
    // Held, so that nobody lists a directory between the creation of a file and our noting it.
    pthread_mutex_lock(&lock);
    int fd = syscall(SYS_openat, at, path, flags, mode);
    struct statx about;
    if (fd >= 0 && below(fd) && describe(fd, "", AT_EMPTY_PATH, &about) && S_ISREG(about.stx_mode)) {
        if (flags & (O_DSYNC | O_SYNC)) die("O_SYNC and O_DSYNC are not modelled");
        if ((flags & O_TMPFILE) == O_TMPFILE) die("O_TMPFILE is not modelled");
        struct file *file = find_or_add(&about);
        if (flags & O_TRUNC) mark(file, 0, UINT64_MAX);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

static mode_t mode_argument(int flags, va_list arguments) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

#define OPEN(name, parameters, at, extra)                                     \
    EXPORT int name parameters {                                              \
        va_list arguments;                                                    \
        va_start(arguments, flags);                                           \
        mode_t mode = mode_argument(flags, arguments);                        \
        va_end(arguments);                                                    \
        return open_watched(at, path, flags | (extra), mode);                 \
    }

OPEN(open, (const char *path, int flags, ...), AT_FDCWD, 0)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, 0)
OPEN(openat, (int at, const char *path, int flags, ...), at, 0)
OPEN(openat64, (int at, const char *path, int flags, ...), at, 0)

EXPORT int creat(const char *path, mode_t mode) { return open_watched(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
EXPORT int creat64(const char *path, mode_t mode) { return creat(path, mode); }

// Runs a write at the file's position and notes where it went.
#define AT_POSITION(fd, call)                                                  \
    do {                                                                       \
        if (!on()) return call;                                                \
        pthread_mutex_lock(&lock);                                             \
        struct file *file = watched_file(fd);                                  \
        if (!file) {                                                           \
            pthread_mutex_unlock(&lock);                                       \
            return call;                                                       \
        }                                                                      \
        ssize_t written = call;                                                \
        int kept = errno;                                                      \
        if (written > 0) {                                                     \
            uint64_t end = syscall(SYS_lseek, fd, 0, SEEK_CUR);                \
            mark(file, end - written, end);                                    \
        }                                                                      \
        pthread_mutex_unlock(&lock);                                           \
        errno = kept;                                                          \
        return written;                                                        \
    } while (0)

// The same for a write to a given place.
#define AT_OFFSET(fd, offset, call)                                            \
    do {                                                                       \
        if (!on()) return call;                                                \
        pthread_mutex_lock(&lock);                                             \
        struct file *file = watched_file(fd);                                  \
        ssize_t written = call;                                                \
        if (file && written > 0) mark(file, offset, (uint64_t)(offset) + written); \
        pthread_mutex_unlock(&lock);                                           \
        return written;                                                        \
    } while (0)

EXPORT ssize_t write(int fd, const void *from, size_t count) { AT_POSITION(fd, syscall(SYS_write, fd, from, count)); }
EXPORT ssize_t writev(int fd, const struct iovec *parts, int count) { AT_POSITION(fd, syscall(SYS_writev, fd, parts, count)); }
EXPORT ssize_t pwrite(int fd, const void *from, size_t count, off_t offset) {
    AT_OFFSET(fd, offset, syscall(SYS_pwrite64, fd, from, count, offset));
}
EXPORT ssize_t pwrite64(int fd, const void *from, size_t count, off64_t offset) { return pwrite(fd, from, count, offset); }
EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    AT_OFFSET(fd, offset, syscall(SYS_pwritev, fd, parts, count, offset, 0));
}
EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) { return pwritev(fd, parts, count, offset); }

EXPORT ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    if (offset == -1) AT_POSITION(fd, syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags));
    AT_OFFSET(fd, offset, syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags));
}
EXPORT ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
    return pwritev2(fd, parts, count, offset, flags);
}

EXPORT ssize_t sendfile(int to, int from, off_t *offset, size_t count) { AT_POSITION(to, syscall(SYS_sendfile, to, from, offset, count)); }
EXPORT ssize_t sendfile64(int to, int from, off64_t *offset, size_t count) { return sendfile(to, from, offset, count); }

EXPORT ssize_t copy_file_range(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t count, unsigned flags) {
    if (!to_offset) AT_POSITION(to, syscall(SYS_copy_file_range, from, from_offset, to, to_offset, count, flags));
    off64_t at = *to_offset;
    AT_OFFSET(to, at, syscall(SYS_copy_file_range, from, from_offset, to, to_offset, count, flags));
}

EXPORT ssize_t splice(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t count, unsigned flags) {
    if (!to_offset) AT_POSITION(to, syscall(SYS_splice, from, from_offset, to, to_offset, count, flags));
    off64_t at = *to_offset;
    AT_OFFSET(to, at, syscall(SYS_splice, from, from_offset, to, to_offset, count, flags));
}

EXPORT int ftruncate(int fd, off_t bytes) {
    if (!on()) return syscall(SYS_ftruncate, fd, bytes);
    pthread_mutex_lock(&lock);
    struct file *file = watched_file(fd);
    int result = syscall(SYS_ftruncate, fd, bytes);
    if (file && result == 0) mark(file, bytes, UINT64_MAX);
    pthread_mutex_unlock(&lock);
    return result;
}
EXPORT int ftruncate64(int fd, off64_t bytes) { return ftruncate(fd, bytes); }

EXPORT int truncate(const char *path, off_t bytes) {
    int fd = open_watched(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    int result = ftruncate(fd, bytes);
    syscall(SYS_close, fd);
    return result;
}
EXPORT int truncate64(const char *path, off64_t bytes) { return truncate(path, bytes); }

EXPORT int fallocate(int fd, int mode, off_t offset, off_t bytes) {
    if (!on()) return syscall(SYS_fallocate, fd, mode, offset, bytes);
    pthread_mutex_lock(&lock);
    struct file *file = watched_file(fd);
    if (file && (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE))) die("fallocate that moves data is not modelled");
    int result = syscall(SYS_fallocate, fd, mode, offset, bytes);
    if (file && result == 0 && (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))) mark(file, offset, offset + bytes);
    pthread_mutex_unlock(&lock);
    return result;
}
EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t bytes) { return fallocate(fd, mode, offset, bytes); }
EXPORT int posix_fallocate(int fd, off_t offset, off_t bytes) { return fallocate(fd, 0, offset, bytes) == 0 ? 0 : errno; }
EXPORT int posix_fallocate64(int fd, off64_t offset, off64_t bytes) { return posix_fallocate(fd, offset, bytes); }

static int sync_any(int fd, long number) {
    if (!on()) return syscall(number, fd);
    struct statx about;
    if (!describe(fd, "", AT_EMPTY_PATH, &about)) return syscall(number, fd);
    pthread_mutex_lock(&lock);
    struct file *file = S_ISREG(about.stx_mode) ? find(&about) : NULL;
    bool directory = S_ISDIR(about.stx_mode) && below(fd);
    if (file && !ignore_sync) sync_file(file, fd);
    if (directory && !ignore_sync) sync_directory(fd, &about);
    pthread_mutex_unlock(&lock);
    return file || directory ? 0 : syscall(number, fd);
}

EXPORT int fsync(int fd) { return sync_any(fd, SYS_fsync); }
EXPORT int fdatasync(int fd) { return sync_any(fd, SYS_fdatasync); }

// Starts or awaits writing, and promises nothing.
EXPORT int sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned flags) {
    (void)fd, (void)offset, (void)bytes, (void)flags;
    return 0;
}

EXPORT void sync(void) { die("sync is not modelled"); }

EXPORT int syncfs(int fd) {
    if (on() && below(fd)) die("syncfs is not modelled");
    return syscall(SYS_syncfs, fd);
}

EXPORT void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    bool shared = (flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE;
    if (fd >= 0 && shared && (protection & PROT_WRITE) && on() && below(fd)) die("a writable shared mapping is not modelled");
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}
EXPORT void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset) {
    return mmap(address, length, protection, flags, fd, offset);
}
