/* A disk that fails on demand: loaded into a process with LD_PRELOAD, told what to do through a file that both map.
 *
 * The process's calls of libc that reach files pass through here. Rules in the control file say which of them fail: what kind
 * of call, on which path, after how many, how often, with which error, after which delay. Each rule counts its strikes. Without
 * a rule that is on, a call costs a load; without KAHAWAI_FAULTS in the environment nothing is done at all.
 *
 * The layout is that of harness/faults.py: both change together.
 *
 *     cc -shared -fPIC -O2 -Wall -Wextra -o faults.so faults.c -ldl -lpthread
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The files are 64-bit whatever the name says. */
_Static_assert(sizeof(off_t) == 8, "a 64-bit off_t");

enum call { READ, WRITE, FDATASYNC, FSYNC, TRUNCATE, RENAME, UNLINK, OPEN, CREATE, MKDIR, ALLOCATE, CALLS = 16 };
enum flag {
    /* A flush that fails loses what was written since the last one that did not: the ranges get their old bytes back. */
    DROP = 1,
    /* The call is not carried out, and says that it was. */
    SILENT = 2,
    /* A write that fails has written the first half. */
    HALF = 4,
};
enum { RULES = 8, PATH_BYTES = 256, MAGIC = 0x6b66616c };

struct rule {
    uint64_t on, calls, skip, times, error, delay_ms, hang, flags;
    /* Written here: calls that fit, those that were struck, when the first was, threads that hang. */
    uint64_t matched, strikes, struck_ns, hanging;
    char pattern[PATH_BYTES], struck[PATH_BYTES];
};

struct control {
    uint64_t magic, counting, counted[CALLS];
    /* Paths that are counted. */
    char scope[PATH_BYTES];
    struct rule rules[RULES];
};

static struct control *control;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("KAHAWAI_FAULTS");
    if (!path) return;
    int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    int file = real_open(path, O_RDWR | O_CLOEXEC);
    struct control *mapped = MAP_FAILED;
    if (file >= 0) {
        mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
    }
    if (mapped == MAP_FAILED || mapped->magic != MAGIC) {
        fprintf(stderr, "faults: %s is no control file\n", path);
        _exit(99);
    }
    control = mapped;
}

/* The next one after ours. */
#define REAL(result, name, ...)                                                                                                \
    static result (*real)(__VA_ARGS__);                                                                                        \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static uint64_t load(const uint64_t *from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
static uint64_t add(uint64_t *to, uint64_t by) { return __atomic_fetch_add(to, by, __ATOMIC_ACQ_REL); }

static void wait_ms(uint64_t ms) {
    struct timespec left = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {}
}

/* Where a descriptor leads; false if to no file. */
static int path_of(int fd, char *path) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, path, PATH_BYTES - 1);
    path[bytes < 0 ? 0 : bytes] = 0;
    return path[0] == '/';
}

/* What was there before writes that are not flushed. */
struct saved {
    struct saved *older;
    dev_t device;
    ino_t inode;
    off_t at;
    size_t bytes;
    char old[];
};
static struct saved *newest;
static pthread_mutex_t saving = PTHREAD_MUTEX_INITIALIZER;

static ssize_t read_at(int fd, void *into, size_t bytes, off_t at) {
    REAL(ssize_t, pread64, int, void *, size_t, off_t);
    return real(fd, into, bytes, at);
}

static ssize_t write_at(int fd, const void *from, size_t bytes, off_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off_t);
    return real(fd, from, bytes, at);
}

/* Reads with a descriptor of its own. */
static int read_otherwise(int fd, void *into, size_t bytes, off_t at) {
    REAL(int, open64, const char *, int, ...);
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int other = real(link, O_RDONLY | O_CLOEXEC);
    if (other < 0) return 0;
    ssize_t got = read_at(other, into, bytes, at);
    close(other);
    return got >= 0;
}

static void save(int fd, size_t bytes, off_t at) {
    struct stat status;
    struct saved *one = calloc(1, sizeof *one + bytes);
    if (!one || fstat(fd, &status) != 0) return free(one);
    /* What lies beyond the end was zeros. A descriptor for writes past the cache cannot read. */
    if (read_at(fd, one->old, bytes, at) < 0 && !read_otherwise(fd, one->old, bytes, at)) return free(one);
    *one = (struct saved){.device = status.st_dev, .inode = status.st_ino, .at = at, .bytes = bytes};
    pthread_mutex_lock(&saving);
    one->older = newest;
    newest = one;
    pthread_mutex_unlock(&saving);
}

/* The writes of a file are on the disk, or lost. */
static void settle(int fd, int lost) {
    struct stat status;
    if (fstat(fd, &status) != 0) return;
    pthread_mutex_lock(&saving);
    for (struct saved **at = &newest; *at;) {
        struct saved *one = *at;
        if (one->device != status.st_dev || one->inode != status.st_ino) {
            at = &one->older;
            continue;
        }
        /* Newest first, so the oldest bytes win. */
        if (lost && write_at(fd, one->old, one->bytes, one->at) < 0) perror("faults: cannot undo a write");
        *at = one->older;
        free(one);
    }
    pthread_mutex_unlock(&saving);
}

/* What a call has to do. */
struct verdict {
    /* Not carried out: fails with this, or pretends. */
    int error, pretend;
    uint64_t flags;
};

static struct verdict judge(enum call call, const char *path) {
    struct verdict verdict = {0};
    for (struct rule *rule = control->rules; rule < control->rules + RULES; rule++) {
        if (!load(&rule->on) || !(rule->calls >> call & 1) || fnmatch(rule->pattern, path, 0) != 0) continue;
        uint64_t number = add(&rule->matched, 1);
        if (number < rule->skip || number - rule->skip >= rule->times) continue;
        if (add(&rule->strikes, 1) == 0) {
            struct timespec now;
            clock_gettime(CLOCK_MONOTONIC, &now);
            strcpy(rule->struck, path);
            __atomic_store_n(&rule->struck_ns, (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec, __ATOMIC_RELEASE);
        }
        if (rule->delay_ms) wait_ms(rule->delay_ms);
        if (load(&rule->hang)) {
            add(&rule->hanging, 1);
            while (load(&rule->hang)) wait_ms(2);
            add(&rule->hanging, -1);
        }
        verdict.error = (int)rule->error;
        verdict.flags = rule->flags;
        verdict.pretend = (rule->flags & SILENT) != 0;
        break;
    }
    return verdict;
}

static struct verdict on_path(enum call call, const char *path) {
    struct verdict nothing = {0};
    if (!control) return nothing;
    int before = errno;
    if (load(&control->counting) && fnmatch(control->scope, path, 0) == 0) add(&control->counted[call], 1);
    struct verdict verdict = judge(call, path);
    errno = verdict.error ? verdict.error : before;
    return verdict;
}

static int idle(void) {
    if (!control) return 1;
    if (load(&control->counting)) return 0;
    for (int rule = 0; rule < RULES; rule++)
        if (load(&control->rules[rule].on)) return 0;
    return 1;
}

static struct verdict on_file(enum call call, int fd) {
    struct verdict nothing = {0};
    char path[PATH_BYTES];
    int before = errno;
    if (idle() || !path_of(fd, path)) {
        errno = before;
        return nothing;
    }
    errno = before;
    return on_path(call, path);
}

/* A write that will have to be undone if its flush fails. */
static void may_be_lost(int fd, size_t bytes, off_t at) {
    char path[PATH_BYTES];
    if (idle() || !path_of(fd, path)) return;
    for (struct rule *rule = control->rules; rule < control->rules + RULES; rule++)
        if (load(&rule->on) && rule->flags & DROP && fnmatch(rule->pattern, path, 0) == 0) return save(fd, bytes, at);
}

/* Outcome of a call that a verdict speaks of: `done` if it pretends, otherwise an error; goes on if there is none. */
#define OBEY(verdict, done)                                                                                                    \
    do {                                                                                                                       \
        if ((verdict).error) {                                                                                                 \
            errno = (verdict).error;                                                                                           \
            return -1;                                                                                                         \
        }                                                                                                                      \
        if ((verdict).pretend) return done;                                                                                    \
    } while (0)

#define OBEY_WRITE(verdict, fd, from, bytes, at)                                                                               \
    do {                                                                                                                       \
        if ((verdict).error && (verdict).flags & HALF) (void)!write_at(fd, from, (bytes) / 2, at);                             \
        OBEY(verdict, (ssize_t)(bytes));                                                                                       \
    } while (0)

#define PREAD(name)                                                                                                            \
    ssize_t name(int fd, void *into, size_t bytes, off_t at) {                                                                 \
        struct verdict verdict = on_file(READ, fd);                                                                            \
        OBEY(verdict, 0);                                                                                                      \
        return read_at(fd, into, bytes, at);                                                                                   \
    }
PREAD(pread)
PREAD(pread64)

#define PWRITE(name)                                                                                                           \
    ssize_t name(int fd, const void *from, size_t bytes, off_t at) {                                                           \
        struct verdict verdict = on_file(WRITE, fd);                                                                           \
        OBEY_WRITE(verdict, fd, from, bytes, at);                                                                              \
        may_be_lost(fd, bytes, at);                                                                                            \
        return write_at(fd, from, bytes, at);                                                                                  \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t read(int fd, void *into, size_t bytes) {
    REAL(ssize_t, read, int, void *, size_t);
    struct verdict verdict = on_file(READ, fd);
    OBEY(verdict, 0);
    return real(fd, into, bytes);
}

ssize_t readv(int fd, const struct iovec *into, int count) {
    REAL(ssize_t, readv, int, const struct iovec *, int);
    struct verdict verdict = on_file(READ, fd);
    OBEY(verdict, 0);
    return real(fd, into, count);
}

/* Those without a position are not undone: nothing that is to survive is written with them. */
ssize_t write(int fd, const void *from, size_t bytes) {
    REAL(ssize_t, write, int, const void *, size_t);
    struct verdict verdict = on_file(WRITE, fd);
    OBEY(verdict, (ssize_t)bytes);
    return real(fd, from, bytes);
}

ssize_t writev(int fd, const struct iovec *from, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    struct verdict verdict = on_file(WRITE, fd);
    OBEY(verdict, 0);
    return real(fd, from, count);
}

#define VECTORED(name, call)                                                                                                   \
    ssize_t name(int fd, const struct iovec *vectors, int count, off_t at) {                                                   \
        REAL(ssize_t, name, int, const struct iovec *, int, off_t);                                                            \
        struct verdict verdict = on_file(call, fd);                                                                            \
        OBEY(verdict, 0);                                                                                                      \
        return real(fd, vectors, count, at);                                                                                   \
    }
VECTORED(preadv, READ)
VECTORED(preadv64, READ)
VECTORED(pwritev, WRITE)
VECTORED(pwritev64, WRITE)

#define FLUSH(name, call)                                                                                                      \
    int name(int fd) {                                                                                                         \
        REAL(int, name, int);                                                                                                  \
        struct verdict verdict = on_file(call, fd);                                                                            \
        if ((verdict.error || verdict.pretend) && verdict.flags & DROP) settle(fd, 1);                                         \
        OBEY(verdict, 0);                                                                                                      \
        int result = real(fd);                                                                                                 \
        if (result == 0 && newest) settle(fd, 0);                                                                              \
        return result;                                                                                                         \
    }
FLUSH(fsync, FSYNC)
FLUSH(fdatasync, FDATASYNC)

#define RESIZE(name)                                                                                                           \
    int name(int fd, off_t bytes) {                                                                                            \
        REAL(int, name, int, off_t);                                                                                           \
        struct verdict verdict = on_file(TRUNCATE, fd);                                                                        \
        OBEY(verdict, 0);                                                                                                      \
        return real(fd, bytes);                                                                                                \
    }
RESIZE(ftruncate)
RESIZE(ftruncate64)

#define GROW(name)                                                                                                             \
    int name(int fd, int mode, off_t at, off_t bytes) {                                                                        \
        REAL(int, name, int, int, off_t, off_t);                                                                               \
        struct verdict verdict = on_file(ALLOCATE, fd);                                                                        \
        OBEY(verdict, 0);                                                                                                      \
        return real(fd, mode, at, bytes);                                                                                      \
    }
GROW(fallocate)
GROW(fallocate64)

#define OPENED(name)                                                                                                           \
    int name(const char *path, int flags, ...) {                                                                               \
        REAL(int, name, const char *, int, ...);                                                                               \
        va_list more;                                                                                                          \
        va_start(more, flags);                                                                                                 \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;                                              \
        va_end(more);                                                                                                          \
        struct verdict verdict = on_path(flags & O_CREAT && access(path, F_OK) != 0 ? CREATE : OPEN, path);                    \
        OBEY(verdict, -1);                                                                                                     \
        return real(path, flags, mode);                                                                                        \
    }
OPENED(open)
OPENED(open64)

#define OPENED_AT(name)                                                                                                        \
    int name(int directory, const char *path, int flags, ...) {                                                                \
        REAL(int, name, int, const char *, int, ...);                                                                          \
        va_list more;                                                                                                          \
        va_start(more, flags);                                                                                                 \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;                                              \
        va_end(more);                                                                                                          \
        struct verdict verdict = on_path(flags & O_CREAT && faccessat(directory, path, F_OK, 0) != 0 ? CREATE : OPEN, path);   \
        OBEY(verdict, -1);                                                                                                     \
        return real(directory, path, flags, mode);                                                                             \
    }
OPENED_AT(openat)
OPENED_AT(openat64)

/* A rename is known by its new name. */
int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    struct verdict verdict = on_path(RENAME, to);
    OBEY(verdict, 0);
    return real(from, to);
}

int renameat(int from_directory, const char *from, int to_directory, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    struct verdict verdict = on_path(RENAME, to);
    OBEY(verdict, 0);
    return real(from_directory, from, to_directory, to);
}

int renameat2(int from_directory, const char *from, int to_directory, const char *to, unsigned int flags) {
    REAL(int, renameat2, int, const char *, int, const char *, unsigned int);
    struct verdict verdict = on_path(RENAME, to);
    OBEY(verdict, 0);
    return real(from_directory, from, to_directory, to, flags);
}

int unlink(const char *path) {
    REAL(int, unlink, const char *);
    struct verdict verdict = on_path(UNLINK, path);
    OBEY(verdict, 0);
    return real(path);
}

int unlinkat(int directory, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    struct verdict verdict = on_path(UNLINK, path);
    OBEY(verdict, 0);
    return real(directory, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    struct verdict verdict = on_path(MKDIR, path);
    OBEY(verdict, 0);
    return real(path, mode);
}
