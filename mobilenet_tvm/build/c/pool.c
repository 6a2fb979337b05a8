/* The thread pool of one artifact: what its kernels' parallel loops run on. See docs/threads.md.
 *
 * A launch has up to 64 tasks, a bit of one word for each that nobody has begun. The caller and the
 * workers take them bit by bit, so that the caller ends up doing what no worker came for: a worker
 * that sleeps, is not scheduled or (in a forked child) does not exist costs time, never the result.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    SPIN_NS = 200000, /* that a worker looks for tasks before it sleeps */
    PAUSE_NS = 50000, /* and of them, those in which it keeps its core to itself */
    MAX_TASKS = 64,
    LINE = 128, /* bytes that cores pass on together: two cache lines, for x86 prefetches pairs */
    POLLS = 64, /* looks between two looks at the clock */
    JOIN_POLLS = 2000, /* looks for the last task's end before others may have this core */
    MESSAGE = 256,
    PATH = 1024,
};

/* TVMParallelGroupEnv and FTVMParallelLambda of tvm/runtime/c_backend_api.h. */
typedef struct {
    void *sync_handle;
    int32_t num_task;
} Group;
typedef int (*Lambda)(int task, Group *group, void *data);
typedef union {
    int64_t v_int64;
    void *v_handle;
} Value;

/* Filled by the TVM runtime when it loads the artifact, if a kernel reports errors at all. */
extern void (*__TVMAPISetLastError)(const char *) __attribute__((weak));
/* Of the TVM runtime, where that stands in the process's global scope. */
extern const char *TVMGetLastError(void) __attribute__((weak));

static struct {
    /* Written by the caller before `todo` is, and read by whoever has taken a task. */
    _Alignas(LINE) _Atomic uint64_t todo;
    Lambda lambda;
    void *data;
    Group group;
    /* Written by workers while tasks run. */
    _Alignas(LINE) atomic_int finished;
    atomic_int failed;
    char message[MESSAGE];
    /* Hardly ever written. */
    _Alignas(LINE) _Atomic uint32_t bell; /* what workers sleep on; odd while one sleeps */
    atomic_int busy;                      /* somebody launches, or changes the number of workers */
    atomic_int keep;                      /* workers of a larger index are to end */
    int workers;
    atomic_int width; /* for which `workers` was chosen */
    pid_t owner;
    pthread_t threads[MAX_TASKS];
} pool;
static atomic_int wanted; /* threads, the caller included; 0: to be chosen at the first launch */

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` is no pause at all on most cores */
#endif
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Wake all workers, and keep those awake that were about to sleep. */
static void ring(void) {
    uint32_t bell = atomic_load(&pool.bell);
    while (!atomic_compare_exchange_weak(&pool.bell, &bell, (bell | 1) + 1)) {
    }
    syscall(SYS_futex, &pool.bell, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* Read the beginning of a file as text; its length, 0 where there is none. */
static long read_text(const char *path, char *text, long size) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    long length = file < 0 ? 0 : read(file, text, size - 1);
    if (file >= 0) {
        close(file);
    }
    text[length > 0 ? length : 0] = 0;
    return length > 0 ? length : 0;
}

/* Whether the CPU has a sibling before it in the mask: both are one core. */
static int is_sibling(int cpu, const unsigned char *mask) {
    char text[96];
    snprintf(text, sizeof text, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    int first = read_text(text, text, sizeof text) > 0 ? atoi(text) : cpu;
    return first < cpu && mask[first / 8] >> first % 8 & 1;
}

/* Logical CPUs, or cores, that this thread may run on. */
static int allowed(int cores) {
    static const int bytes = 1024; /* for 8192 CPUs */
    unsigned char mask[1024];
    long length = syscall(SYS_sched_getaffinity, 0, bytes, mask);
    int count = 0;
    for (int cpu = 0; cpu < length * 8; cpu++) {
        /* Bytes of longs, of a little-endian machine. */
        count += mask[cpu / 8] >> cpu % 8 & 1 && !(cores && is_sibling(cpu, mask));
    }
    return count > 0 ? count : 1;
}

/* CPUs that a control group's quota is worth, rounded down; MAX_TASKS where it has none. */
static int64_t quota_of(const char *group) {
    char path[PATH], text[64];
    char *rest = text;
    long long quota = 0, period = 0;
    snprintf(path, sizeof path, "%s/cpu.max", group); /* version 2: "max 100000", "150000 100000" */
    if (read_text(path, text, sizeof text) > 0) {
        quota = strtoll(text, &rest, 10);
        period = strtoll(rest, NULL, 10);
    } else {
        snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", group);
        read_text(path, text, sizeof text);
        quota = strtoll(text, NULL, 10); /* -1 where there is none */
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", group);
        read_text(path, text, sizeof text);
        period = strtoll(text, NULL, 10);
    }
    if (quota <= 0 || period <= 0) {
        return MAX_TASKS;
    }
    return quota < period ? 1 : quota / period;
}

/* Whether a list of version 1's controllers has the one of CPU time; "cpuset" is another. */
static int is_cpu(const char *list) {
    return strcmp(list, "cpu") == 0 || strncmp(list, "cpu,", 4) == 0 || strstr(list, ",cpu,");
}

/* CPUs that the quotas of this process's control groups are worth: threads beyond them would have
 * all of them stopped for the rest of each period. */
static int64_t quota_in(const char *list, const char *mount) {
    char text[2 * PATH], group[PATH];
    int64_t least = MAX_TASKS;
    read_text(list, text, sizeof text);
    char *next = text;
    for (char *line = strsep(&next, "\n"); line != NULL; line = strsep(&next, "\n")) {
        strsep(&line, ":"); /* its number */
        const char *controllers = strsep(&line, ":");
        if (line == NULL || !(*controllers == 0 || is_cpu(controllers))) {
            continue;
        }
        /* In a container the path may be the host's: its end, the mount itself, is there. */
        snprintf(group, sizeof group, "%s%s%s", mount, *controllers ? "/cpu" : "", line);
        for (char *end = group + strlen(group); end != NULL && end - group >= (long)strlen(mount);
             end = strrchr(group, '/')) {
            *end = 0;
            int64_t worth = quota_of(group);
            least = worth < least ? worth : least;
        }
    }
    return least;
}

static int clamp(int64_t width) {
    return width < 1 ? 1 : width > MAX_TASKS ? MAX_TASKS : (int)width;
}

/* Of an environment variable; below 1 where it is not set, or to nothing of use. */
static int64_t number_in(const char *variable) {
    const char *text = getenv(variable);
    return text != NULL ? strtol(text, NULL, 10) : 0;
}

__attribute__((noinline)) static int choose_width(void) {
    int64_t asked = number_in("TVM_NUM_THREADS");
    if (asked < 1) {
        asked = number_in("OMP_NUM_THREADS");
    }
    if (asked < 1) {
        int64_t quota = quota_in("/proc/self/cgroup", "/sys/fs/cgroup");
        int cores = allowed(1);
        asked = cores < quota ? cores : quota;
    }
    int unset = 0, width = clamp(asked);
    atomic_compare_exchange_strong(&wanted, &unset, width);
    return unset != 0 ? unset : width; /* somebody else may have set it meanwhile */
}

__attribute__((noinline)) static void tell(int task) {
    if (atomic_exchange(&pool.failed, 1) == 0) {
        const char *text = TVMGetLastError != NULL ? TVMGetLastError() : "";
        snprintf(pool.message, MESSAGE, "task %d of a parallel loop failed: %s", task, text);
    }
}

/* Run tasks until none is left. Returns how many. */
static int run_tasks(int index) {
    const uint64_t own = UINT64_C(1) << index;
    uint64_t todo;
    int count = 0;
    while ((todo = atomic_load_explicit(&pool.todo, memory_order_relaxed)) != 0) {
        /* Its own first: the same rows of every layer are then in the same core's cache. */
        const int task = todo & own ? index : __builtin_ctzll(todo);
        const uint64_t bit = UINT64_C(1) << task;
        if (!(atomic_fetch_and_explicit(&pool.todo, ~bit, memory_order_acquire) & bit)) {
            continue;
        }
        if (pool.lambda(task, &pool.group, pool.data) != 0) {
            tell(task);
        }
        count++;
        if (index != 0) {
            atomic_fetch_add_explicit(&pool.finished, 1, memory_order_release);
        }
    }
    return count;
}

/* Return when there may be something to do, tasks or to end. */
static void await_tasks(int index) {
    const int64_t begin = now_ns();
    for (int64_t waited = 0; waited < SPIN_NS; waited = now_ns() - begin) {
        for (int poll = 0; poll < POLLS; poll++) {
            if (atomic_load_explicit(&pool.todo, memory_order_relaxed) != 0) {
                return;
            }
            relax();
        }
        if (atomic_load_explicit(&pool.keep, memory_order_relaxed) < index) {
            return;
        }
        if (waited > PAUSE_NS) {
            sched_yield();
        }
    }
    /* The caller publishes tasks and looks at the bell with no fence between: it may miss that
     * this worker goes to sleep just then. It does the work itself that once. */
    const uint32_t bell = atomic_fetch_or(&pool.bell, 1) | 1;
    if (atomic_load(&pool.todo) == 0 && atomic_load(&pool.keep) >= index) {
        syscall(SYS_futex, &pool.bell, FUTEX_WAIT_PRIVATE, bell, NULL, NULL, 0);
    }
}

static void *work(void *argument) {
    const int index = (int)(intptr_t)argument;
    while (atomic_load_explicit(&pool.keep, memory_order_relaxed) >= index) {
        await_tasks(index);
        run_tasks(index);
    }
    return NULL;
}

/* Have the workers that `width` threads take; the caller holds `busy`. */
__attribute__((noinline)) static void resize(int width) {
    const pid_t self = getpid();
    if (pool.owner != self) { /* a forked child has its parent's memory, and none of its threads */
        pool.owner = self;
        pool.workers = 0;
    }
    /* More threads than CPUs would only take them from each other; tasks there are as many. */
    const int cpus = width > 1 ? allowed(0) : 1;
    const int workers = (width < cpus ? width : cpus) - 1;
    atomic_store(&pool.keep, workers);
    if (workers < pool.workers) {
        ring();
        while (pool.workers > workers) {
            pthread_join(pool.threads[pool.workers--], NULL);
        }
    }
    sigset_t all, before; /* signals are for the threads that the program knows */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.workers < workers) {
        void *index = (void *)(intptr_t)(pool.workers + 1);
        if (pthread_create(&pool.threads[pool.workers + 1], NULL, work, index) != 0) {
            break; /* the caller does their share */
        }
        pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    atomic_store_explicit(&pool.width, width, memory_order_relaxed);
}

/* End the workers that a change to one thread left, for it came while they were needed. */
__attribute__((noinline)) static void end_workers(void) {
    if (atomic_exchange(&pool.busy, 1) == 0) { /* else this may be one of them */
        if (atomic_load(&wanted) == 1) {
            resize(1);
        }
        atomic_store(&pool.busy, 0);
    }
}

/* Alone in the caller: one thread, a launch inside another one, or two at once. */
static int run_here(Lambda lambda, void *data, int tasks) {
    Group group = {NULL, tasks};
    int status = 0;
    for (int task = 0; task < tasks; task++) {
        status |= lambda(task, &group, data);
    }
    return status == 0 ? 0 : -1;
}

static int launch(Lambda lambda, void *data, int tasks) {
    int width = atomic_load_explicit(&wanted, memory_order_relaxed);
    if (width == 0) {
        width = choose_width();
    }
    if (width == 1 && atomic_load_explicit(&pool.width, memory_order_relaxed) > 1) {
        end_workers();
    }
    if (width == 1 || tasks == 1 || tasks > MAX_TASKS ||
        atomic_exchange_explicit(&pool.busy, 1, memory_order_acquire) != 0) {
        return run_here(lambda, data, tasks > 0 ? tasks : 1);
    }
    if (atomic_load_explicit(&pool.width, memory_order_relaxed) != width) {
        resize(width);
    }
    if (tasks <= 0) {
        tasks = width; /* twice and four times as many gained nothing on V1 and V3 */
    }
    pool.lambda = lambda;
    pool.data = data;
    pool.group.sync_handle = NULL; /* kernels with barriers are not linked with this pool */
    pool.group.num_task = tasks;
    atomic_store_explicit(&pool.finished, 0, memory_order_relaxed);
    atomic_store_explicit(&pool.failed, 0, memory_order_relaxed);
    /* The first is the caller's. */
    const uint64_t all = UINT64_MAX >> (MAX_TASKS - tasks);
    atomic_store_explicit(&pool.todo, all - 1, memory_order_release);
    if (atomic_load_explicit(&pool.bell, memory_order_relaxed) & 1) {
        ring();
    }
    if (lambda(0, &pool.group, data) != 0) {
        tell(0);
    }
    const int others = tasks - 1 - run_tasks(0);
    for (int poll = 0; atomic_load_explicit(&pool.finished, memory_order_acquire) != others;) {
        if (++poll < JOIN_POLLS) {
            relax();
        } else {
            sched_yield();
        }
    }
    if (others == 0 && pool.workers > 0 && pool.owner != getpid()) {
        resize(width); /* nobody came, for this is a forked child */
    }
    int status = 0;
    if (atomic_load_explicit(&pool.failed, memory_order_relaxed) != 0) {
        status = -1;
        if (&__TVMAPISetLastError != NULL && __TVMAPISetLastError != NULL) {
            __TVMAPISetLastError(pool.message);
        }
    }
    atomic_store_explicit(&pool.busy, 0, memory_order_release);
    return status;
}

/* What the kernels call through; TVM's runtime, which knows the pointer by another name, leaves it
 * as it is. */
__attribute__((visibility("hidden"))) int (*mobilenet_tvm_parallel_launch)(Lambda, void *, int) =
    launch;

/* A launch as the kernels make it, for whoever times one (runtime/walk.py). */
int mobilenet_tvm_launch(Lambda lambda, void *data, int tasks) {
    return mobilenet_tvm_parallel_launch(lambda, data, tasks);
}

/* A packed function of TVM's, of one number; of an artifact, whose root is the graph executor's
 * factory: library.get_function("mobilenet_tvm_set_threads", query_imports=True)(2). */
int mobilenet_tvm_set_threads(
    Value *arguments, int *types, int count, Value *result, int *result_type, void *resource) {
    (void)resource;
    if (count != 1 || types[0] != 0 /* kTVMArgInt */ || arguments[0].v_int64 < 1) {
        if (&__TVMAPISetLastError != NULL && __TVMAPISetLastError != NULL) {
            __TVMAPISetLastError("mobilenet_tvm_set_threads takes one number, 1 or more");
        }
        return -1;
    }
    const int width = clamp(arguments[0].v_int64);
    atomic_store(&wanted, width);
    if (atomic_exchange(&pool.busy, 1) == 0) { /* else the next launch does it */
        if (width < atomic_load_explicit(&pool.width, memory_order_relaxed)) {
            resize(width);
        }
        atomic_store(&pool.busy, 0);
    }
    result->v_handle = NULL;
    *result_type = 4; /* kTVMNullptr */
    return 0;
}

/* Before the code is unmapped, or the process ends. Never again free: a launch that still comes
 * runs in its caller. */
__attribute__((destructor)) static void stop(void) {
    if (pool.owner == getpid() && atomic_exchange(&pool.busy, 1) == 0) {
        resize(1);
    }
}
