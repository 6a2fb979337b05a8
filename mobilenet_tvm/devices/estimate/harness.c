/* Runs one kernel of TVM's once, with nothing of Linux but read, write and exit.
 *
 * Linked statically with the kernel's object, so that it runs under any qemu-user, starts at once,
 * and is the same to the last address every time. All code of this file is in a section of its
 * own: what is in .text is the kernel's.
 *
 * Standard input, all numbers 64-bit: magic, bytes of the model's weights, number of arrays; for
 * each array its role (0 input, 1 weights, 2 result), its number of dimensions, sixteen dimensions;
 * then the float32 data of all arrays. The result's data is written to standard output.
 *
 * Before the call the caches are put into the state that they have in the model, as
 * search/measure.py does: since the weights were last used, all other layers' went by; the input
 * was just written.
 */

typedef long long i64;
typedef unsigned long long u64;
typedef __SIZE_TYPE__ size;

enum { INPUT, WEIGHTS, RESULT, MAX_ARRAYS = 16, MAX_DIMENSIONS = 16, LINE = 64 };
enum { MAGIC = 0x45564d54, ARRAY_HANDLE = 7, CPU = 1, FLOAT = 2 };

/* DLPack's DLTensor and TVM's TVMParallelGroupEnv, in the layout of their public interfaces. */
struct array {
    void *data;
    int device_type, device_id;
    int dimensions;
    unsigned char code, bits;
    unsigned short lanes;
    i64 *shape, *strides;
    u64 byte_offset;
};
struct group {
    void *sync;
    int tasks;
};

extern int KERNEL(void *values, int *types, int count, void *result, int *result_type, void *self);

typedef int (*parallel_body)(int task, struct group *group, void *data);

/* What TVM's loader fills in; the object defines those that it uses. */
extern int (*__TVMBackendParallelLaunch)(parallel_body, void *, int) __attribute__((weak));
extern void *(*__TVMBackendAllocWorkspace)(int, int, u64, int, int) __attribute__((weak));
extern int (*__TVMBackendFreeWorkspace)(int, int, void *) __attribute__((weak));
extern void (*__TVMAPISetLastError)(const char *) __attribute__((weak));

/* The kernel's own: counted with it. */
__attribute__((section(".text.kernel"))) void *memset(void *to, int value, size count)
{
    for (volatile char *at = to; count--;)
        *at++ = (char)value;
    return to;
}

__attribute__((section(".text.kernel"))) void *memcpy(void *to, const void *from, size count)
{
    volatile char *at = to;
    for (const char *source = from; count--;)
        *at++ = *source++;
    return to;
}

#pragma clang section text = "harness"

static char memory[ARENA_BYTES] __attribute__((aligned(4096)));
static size used;
/* Not the system's stack, whose address differs from run to run. */
__attribute__((aligned(4096))) char harness_stack[1 << 20];

static long system_call(long number, long a, long b, long c)
{
#if defined(__x86_64__)
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b,
                  x2 __asm__("x2") = c;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
#endif
}

#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, EXIT = 60 };
#elif defined(__aarch64__)
enum { READ = 63, WRITE = 64, EXIT = 93 };
#endif

static void leave(const char *message)
{
    size length = 0;
    while (message[length])
        length++;
    system_call(WRITE, 2, (long)message, (long)length);
    for (;;)
        system_call(EXIT, 1, 0, 0);
}

/* As malloc does with what is large: a page of its own, the data one line behind its beginning. */
static void *allocate(size bytes)
{
    size at = ((used + 4095) & ~(size)4095) + 64;
    if (at + bytes > sizeof memory)
        leave("the kernel needs more memory than ARENA_BYTES");
    used = at + bytes;
    return memory + at;
}

static void transfer(int number, void *data, size bytes)
{
    for (char *at = data; bytes > 0;) {
        long done = system_call(number, number == WRITE, (long)at, (long)bytes);
        if (done <= 0)
            leave("the data ends too soon");
        at += done;
        bytes -= (size)done;
    }
}

static void touch(const char *data, size bytes)
{
    for (size at = 0; at < bytes; at += LINE)
        (void)*(volatile const char *)(data + at);
}

static int launch(parallel_body body, void *data, int tasks)
{
    (void)tasks;
    struct group group = {0, 1};
    return body(0, &group, data);
}

static void *allocate_workspace(int device, int id, u64 bytes, int code, int bits)
{
    (void)device, (void)id, (void)code, (void)bits;
    return allocate((size)bytes);
}

static int free_workspace(int device, int id, void *data)
{
    (void)device, (void)id, (void)data;
    return 0;
}

static void fail(const char *message)
{
    leave(message);
}

/* Objects of another kind call them by name. */
int TVMBackendParallelLaunch(parallel_body body, void *data, int tasks)
{
    return launch(body, data, tasks);
}

void *TVMBackendAllocWorkspace(int device, int id, u64 bytes, int code, int bits)
{
    return allocate_workspace(device, id, bytes, code, bits);
}

int TVMBackendFreeWorkspace(int device, int id, void *data)
{
    return free_workspace(device, id, data);
}

void TVMAPISetLastError(const char *message)
{
    leave(message);
}

static struct {
    i64 role, dimensions, shape[MAX_DIMENSIONS];
} given[MAX_ARRAYS];
static struct array arrays[MAX_ARRAYS];
static u64 values[MAX_ARRAYS];
static int types[MAX_ARRAYS];

void harness_main(void)
{
    i64 head[3];
    transfer(READ, head, sizeof head);
    i64 model_bytes = head[1], count = head[2];
    if (head[0] != MAGIC || count < 1 || count > MAX_ARRAYS)
        leave("this is no input of the harness");
    transfer(READ, given, (size)count * sizeof given[0]);
    size bytes[MAX_ARRAYS];
    for (int i = 0; i < count; i++) {
        bytes[i] = 4;
        for (int axis = 0; axis < given[i].dimensions; axis++)
            bytes[i] *= (size)given[i].shape[axis];
        arrays[i] = (struct array){.data = allocate(bytes[i]), .device_type = CPU,
            .dimensions = (int)given[i].dimensions, .code = FLOAT, .bits = 32, .lanes = 1,
            .shape = given[i].shape};
        transfer(READ, arrays[i].data, bytes[i]);
        values[i] = (u64)(size)&arrays[i];
        types[i] = ARRAY_HANDLE;
    }
    if (&__TVMBackendParallelLaunch)
        __TVMBackendParallelLaunch = launch;
    if (&__TVMBackendAllocWorkspace)
        __TVMBackendAllocWorkspace = allocate_workspace;
    if (&__TVMBackendFreeWorkspace)
        __TVMBackendFreeWorkspace = free_workspace;
    if (&__TVMAPISetLastError)
        __TVMAPISetLastError = fail;

    const char *others = allocate((size)model_bytes);
    for (int i = 0; i < count; i++)
        if (given[i].role != INPUT)
            touch(arrays[i].data, bytes[i]);
    touch(others, (size)model_bytes);
    for (int i = 0; i < count; i++)
        if (given[i].role == INPUT)
            touch(arrays[i].data, bytes[i]);

    u64 result[2];
    int result_type = 0;
    if (KERNEL(values, types, (int)count, result, &result_type, 0))
        leave("the kernel failed");
    for (int i = 0; i < count; i++)
        if (given[i].role == RESULT)
            transfer(WRITE, arrays[i].data, bytes[i]);
    for (;;)
        system_call(EXIT, 0, 0, 0);
}

__attribute__((naked, noreturn)) void _start(void)
{
#if defined(__x86_64__)
    __asm__("leaq harness_stack+1048576-64(%rip), %rsp\n call harness_main\n hlt");
#elif defined(__aarch64__)
    __asm__("adrp x0, harness_stack+1048576-64\n add x0, x0, :lo12:harness_stack+1048576-64\n"
            " mov sp, x0\n bl harness_main\n brk 0");
#endif
}
