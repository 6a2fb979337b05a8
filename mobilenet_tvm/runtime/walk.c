/* The kernels of an inference, called one after the other with the clock read between them.

   What a Python loop would do in its place takes longer than the smallest kernels, and throws
   their data out of the first level of the cache. */

#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* TVM's packed function (tvm/runtime/c_backend_api.h, TVMBackendPackedCFunc). */
typedef int (*kernel)(void *values, int *codes, int count, void *result, int *result_code,
                      void *resource);

struct call {
  kernel run;
  void *values;
  int *codes;
  int64_t count;
};

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* stamps_ns is [inferences][count + 1]. Returns 0, or 1 + the index of the call that failed. */
int64_t walk(const struct call *calls, int64_t count, int64_t inferences, int64_t *stamps_ns) {
  for (int64_t inference = 0; inference < inferences; ++inference) {
    *stamps_ns++ = now_ns();
    for (int64_t index = 0; index < count; ++index) {
      int64_t result = 0;
      int code = 0;
      const struct call *one = &calls[index];
      if (one->run(one->values, one->codes, (int)one->count, &result, &code, NULL) != 0)
        return index + 1;
      *stamps_ns++ = now_ns();
    }
  }
  return 0;
}

/* TVMFuncCall (tvm/runtime/c_runtime_api.h). */
typedef int (*tvm_call)(void *function, void *values, int *codes, int count, void *result,
                        int *result_code);

/* Whole inferences, by the function of the executor that runs one. stamps_ns is
   [inferences + 1]. Returns 0, or 1 if one failed. */
int64_t repeat(tvm_call call, void *function, int64_t inferences, int64_t *stamps_ns) {
  *stamps_ns++ = now_ns();
  for (int64_t inference = 0; inference < inferences; ++inference) {
    int64_t result = 0;
    int code = 0;
    if (call(function, NULL, NULL, 0, &result, &code) != 0) return 1;
    *stamps_ns++ = now_ns();
  }
  return 0;
}

/* A kernel that does nothing: what is left of its time is the clock's. */
int nothing(void *values, int *codes, int count, void *result, int *result_code, void *resource) {
  (void)values, (void)codes, (void)count, (void)result, (void)result_code, (void)resource;
  return 0;
}

static int no_task(int task, void *group, void *data) {
  (void)task, (void)group, (void)data;
  return 0;
}

/* TVMBackendParallelLaunch (tvm/runtime/c_backend_api.h). */
typedef int (*parallel_launch)(int (*task)(int, void *, void *), void *data, int tasks);

/* A kernel that wakes all threads of the pool and has them do nothing. values is what the
   artifact's kernels launch through. */
int launch_nothing(void *values, int *codes, int count, void *result, int *result_code,
                   void *resource) {
  (void)codes, (void)count, (void)result, (void)result_code, (void)resource;
  return ((parallel_launch)values)(no_task, NULL, 0);
}
