/* Makes one system call on a ledger's files fail, for tests/test_faults.py: put before a process with LD_PRELOAD.
 *
 * It sees every call that writes, syncs, makes, moves or removes: on the ledger's file, on what lies beside it under its name
 * (.wal, .d/…), on the folder that it lies in, and on nothing else, so pipes and sockets pass. Asked to, it sees those that
 * read instead. Which call fails, and how, stands in a file that the test and all processes of one run have mapped, so a fault
 * can be armed and taken away while they run.
 *
 *   FAULTS_LEDGER   the ledger's path, resolved
 *   FAULTS_CONTROL  the file with `struct control`; its twin in Python is `Control`
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef FICLONE
#define FICLONE _IOW(0x94, 9, int)
#endif

#define CALLS 4096

struct control {
    int32_t armed;  /* whether anything fails at all */
    int32_t at;     /* the number of the call that fails first: 1, 2, 3 ... */
    int32_t error;  /* with this errno */
    int32_t keeps;  /* and every later one too, until disarmed */
    int32_t torn;   /* only writes are numbered; the chosen one is done by half, and the next one fails */
    int32_t broken; /* the first failure is over, more follow */
    int32_t fired;  /* how many calls were made to fail, or torn */
    int32_t count;  /* how many were numbered */
    int32_t reads;  /* calls that read are numbered and fail, and no others */
    int32_t early;  /* set by the test: something was answered while the last sync had failed */
    int64_t ahead;  /* seconds that the wall clock of these processes is ahead */
    char unsynced[64]; /* the file of events, or its log, whose last sync failed; a sync or a cut that works ends that */
    char calls[CALLS][64];
};

enum verdict { PASS, FAIL, TEAR };

static struct control *control;
static const char *ledger;
static size_t ledger_length;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* Called again by a forked child of a process that has no ledger itself. */
__attribute__((constructor)) void faults_begin(void) {
    const char *path = getenv("FAULTS_CONTROL");
    ledger = getenv("FAULTS_LEDGER");
    if (!path || !ledger) return;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED) return;
    ledger_length = strlen(ledger);
    control = mapped;
}

static int belongs(const char *path) {
    if (!control || strncmp(path, ledger, ledger_length) != 0) return 0;
    char next = path[ledger_length];
    return next == '\0' || next == '.' || next == ' '; /* "… (deleted)" */
}

static int is_home(const char *path) {
    size_t length = strlen(path);
    return control && !strncmp(path, ledger, length) && ledger + length == strrchr(ledger, '/');
}

static const char *name_of(const char *path) {
    return is_home(path) ? "." : path + (strrchr(ledger, '/') - ledger) + 1;
}

static enum verdict judge_of(const char *kind, const char *path, int writes, int reads) {
    int number = 0;
    if (reads != control->reads) return PASS;
    if (writes || !control->torn) {
        number = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST);
        if (number <= CALLS) snprintf(control->calls[number - 1], 64, "%s %s", kind, name_of(path));
    }
    if (!control->armed) return PASS;
    if (control->broken) {
        if (!control->keeps && !writes) return PASS;
        if (!control->keeps) control->armed = 0;
        control->fired++;
        return FAIL;
    }
    if (number != control->at) return PASS;
    control->fired++;
    control->broken = control->torn || control->keeps;
    control->armed = control->broken;
    return control->torn ? TEAR : FAIL;
}

static enum verdict judge(const char *kind, const char *path, int writes) {
    return judge_of(kind, path, writes, 0);
}

static int path_of(int fd, char path[4096]) {
    char link[64];
    if (!control) return 0;
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, 4095);
    errno = before;
    path[length < 0 ? 0 : length] = '\0';
    return belongs(path);
}

/* A name in an open folder, in full; those in the working folder are none of ours. */
static int path_at(int folder, const char *name, char path[8192]) {
    char parent[4096];
    if (!control) return 0;
    if (*name == '/') snprintf(path, 8192, "%s", name);
    else if (folder == AT_FDCWD) return 0;
    else path_of(folder, parent), snprintf(path, 8192, "%s/%s", parent, name);
    return belongs(path);
}

static enum verdict judge_fd(const char *kind, int fd, int writes) {
    char path[4096];
    return path_of(fd, path) ? judge(kind, path, writes) : PASS;
}

/* What a sync or a cut returned, noted where events are concerned: they must not be acknowledged while it has failed. */
static int noted(int fd, int told, int syncs) {
    char path[4096];
    int before = errno;
    if (path_of(fd, path) && strncmp(path + ledger_length, ".d", 2) != 0) {
        if (told && syncs) snprintf(control->unsynced, 64, "%s", name_of(path));
        if (!told && strncmp(control->unsynced, name_of(path), 63) == 0) control->unsynced[0] = '\0';
    }
    errno = before;
    return told;
}

static int fail(void) {
    errno = control->error;
    return -1;
}

/* --- what writes -------------------------------------------------------------------------------------------------------- */

#define TEARING(kind, fd, size, whole, half) \
    switch (judge_fd(kind, fd, 1)) { \
    case FAIL: return fail(); \
    case TEAR: return (size) < 2 ? fail() : (half); \
    default: return (whole); \
    }

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    TEARING("write", fd, size, real(fd, data, size), real(fd, data, size / 2))
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    TEARING("pwrite", fd, size, real(fd, data, size, at), real(fd, data, size / 2, at))
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    TEARING("pwrite", fd, size, real(fd, data, size, at), real(fd, data, size / 2, at))
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    size_t first = count > 0 ? parts[0].iov_len : 0;
    struct iovec half = {.iov_base = first ? parts[0].iov_base : NULL, .iov_len = first / 2};
    TEARING("writev", fd, first, real(fd, parts, count), real(fd, &half, 1))
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    REAL(pwritev);
    size_t first = count > 0 ? parts[0].iov_len : 0;
    struct iovec half = {.iov_base = first ? parts[0].iov_base : NULL, .iov_len = first / 2};
    TEARING("pwritev", fd, first, real(fd, parts, count, at), real(fd, &half, 1, at))
}

ssize_t copy_file_range(int from, off64_t *start, int fd, off64_t *at, size_t size, unsigned flags) {
    REAL(copy_file_range);
    TEARING("copy_file_range", fd, size, real(from, start, fd, at, size, flags), real(from, start, fd, at, 1000, flags))
}

ssize_t sendfile(int fd, int from, off_t *start, size_t size) {
    REAL(sendfile);
    TEARING("sendfile", fd, size, real(fd, from, start, size), real(fd, from, start, 1000))
}

/* --- what syncs, cuts, moves and removes -------------------------------------------------------------------------------- */

int fsync(int fd) {
    REAL(fsync);
    char path[4096];
    if (!path_of(fd, path) && is_home(path)) return judge("fsync", path, 0) ? fail() : real(fd);
    return noted(fd, judge_fd("fsync", fd, 0) ? fail() : real(fd), 1);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return noted(fd, judge_fd("fdatasync", fd, 0) ? fail() : real(fd), 1);
}

int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    return noted(fd, judge_fd("ftruncate", fd, 0) ? fail() : real(fd, size), 0);
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    return noted(fd, judge_fd("ftruncate", fd, 0) ? fail() : real(fd, size), 0);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    if (belongs(to) && judge("rename", to, 0)) return fail();
    int told = real(from, to);
    /* A file that was synced elsewhere stands there now. */
    if (!told && belongs(to) && strncmp(control->unsynced, name_of(to), 63) == 0) control->unsynced[0] = '\0';
    return told;
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(renameat);
    char path[8192];
    return path_at(to_folder, to, path) && judge("rename", path, 0) ? fail() : real(from_folder, from, to_folder, to);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    REAL(renameat2);
    char path[8192];
    return path_at(to_folder, to, path) && judge("rename", path, 0) ? fail() : real(from_folder, from, to_folder, to, flags);
}

int link(const char *from, const char *to) {
    REAL(link);
    return belongs(to) && judge("link", to, 0) ? fail() : real(from, to);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    REAL(linkat);
    char path[8192];
    return path_at(to_folder, to, path) && judge("link", path, 0) ? fail() : real(from_folder, from, to_folder, to, flags);
}

/* What is not there cannot fail to go. */
static int removes(const char *kind, const char *path) {
    struct stat status;
    return belongs(path) && lstat(path, &status) == 0 && judge(kind, path, 0);
}

/* What was not synced is gone, and nobody needs it to be. */
static int removed(const char *path, int told) {
    if (!told && belongs(path) && strncmp(control->unsynced, name_of(path), 63) == 0) control->unsynced[0] = '\0';
    return told;
}

int unlink(const char *path) {
    REAL(unlink);
    return removes("unlink", path) ? fail() : removed(path, real(path));
}

int unlinkat(int folder, const char *name, int flags) {
    REAL(unlinkat);
    char path[8192];
    if (!path_at(folder, name, path)) return real(folder, name, flags);
    return removes(flags & AT_REMOVEDIR ? "rmdir" : "unlink", path) ? fail() : removed(path, real(folder, name, flags));
}

int remove(const char *path) {
    REAL(remove);
    return removes("unlink", path) ? fail() : removed(path, real(path));
}

int rmdir(const char *path) {
    REAL(rmdir);
    return removes("rmdir", path) ? fail() : real(path);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    struct stat status;
    return belongs(path) && lstat(path, &status) && judge("mkdir", path, 0) ? fail() : real(path, mode);
}

int chmod(const char *path, mode_t mode) {
    REAL(chmod);
    struct stat status;
    return belongs(path) && !lstat(path, &status) && judge("chmod", path, 0) ? fail() : real(path, mode);
}

int fchmodat(int folder, const char *name, mode_t mode, int flags) {
    REAL(fchmodat);
    char path[8192];
    struct stat status;
    int ours = path_at(folder, name, path) && !lstat(path, &status);
    return ours && judge("chmod", path, 0) ? fail() : real(folder, name, mode, flags);
}

int truncate(const char *path, off_t size) {
    REAL(truncate);
    return belongs(path) && judge("truncate", path, 0) ? fail() : real(path, size);
}

int fallocate(int fd, int mode, off_t at, off_t size) {
    REAL(fallocate);
    return judge_fd("fallocate", fd, 0) ? fail() : real(fd, mode, at, size);
}

int fallocate64(int fd, int mode, off64_t at, off64_t size) {
    REAL(fallocate64);
    return judge_fd("fallocate", fd, 0) ? fail() : real(fd, mode, at, size);
}

int posix_fallocate(int fd, off_t at, off_t size) {
    REAL(posix_fallocate);
    return judge_fd("fallocate", fd, 0) ? control->error : real(fd, at, size);
}

int posix_fallocate64(int fd, off64_t at, off64_t size) {
    REAL(posix_fallocate64);
    return judge_fd("fallocate", fd, 0) ? control->error : real(fd, at, size);
}

/* How `cp` clones a file where the disk can. */
int ioctl(int fd, unsigned long request, ...) {
    REAL(ioctl);
    va_list more;
    va_start(more, request);
    void *argument = va_arg(more, void *);
    va_end(more);
    return request == FICLONE && judge_fd("clone", fd, 0) ? fail() : real(fd, request, argument);
}

/* --- what reads --------------------------------------------------------------------------------------------------------- */

static int unreadable(int fd) {
    char path[4096];
    return control && control->reads && path_of(fd, path) && judge_of("read", path, 0, 1);
}

ssize_t read(int fd, void *data, size_t size) {
    REAL(read);
    return unreadable(fd) ? fail() : real(fd, data, size);
}

ssize_t pread(int fd, void *data, size_t size, off_t at) {
    REAL(pread);
    return unreadable(fd) ? fail() : real(fd, data, size, at);
}

ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
    REAL(pread64);
    return unreadable(fd) ? fail() : real(fd, data, size, at);
}

/* --- what makes --------------------------------------------------------------------------------------------------------- */

/* Opening makes a file only where there is none; a full disk does not hinder the rest. */
static int makes(const char *path, int flags) {
    struct stat status;
    if (!belongs(path)) return 0;
    int there = lstat(path, &status) == 0;
    if (there && control->reads) return judge_of("open", path, 0, 1);
    return (flags & O_CREAT) && !there && judge("create", path, 0);
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE(flags)
    return makes(path, flags) ? fail() : real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE(flags)
    return makes(path, flags) ? fail() : real(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    REAL(openat);
    MODE(flags)
    return makes(path, flags) ? fail() : real(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    REAL(openat64);
    MODE(flags)
    return makes(path, flags) ? fail() : real(folder, path, flags, mode);
}

int bind(int fd, const struct sockaddr *address, socklen_t size) {
    REAL(bind);
    const char *path = address->sa_family == AF_UNIX ? ((const struct sockaddr_un *)address)->sun_path : "";
    return belongs(path) && judge("bind", path, 0) ? fail() : real(fd, address, size);
}

/* --- the wall clock, so that a test need not wait for what expires ------------------------------------------------------- */

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int told = real(clock, now);
    if (told == 0 && clock == CLOCK_REALTIME && control) now->tv_sec += control->ahead;
    return told;
}
