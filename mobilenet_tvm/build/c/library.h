/* $model for $preset, a static library: made by mobilenet_tvm $version, not by hand.
 *
 * Link lib$prefix.a, and libc and libm for what it needs of them$symbols.
 * It allocates nothing, keeps nothing between calls and runs on the thread that calls it.
 * Tensors lie in memory as ONNX has them, in C's order of the axes, aligned as their type is;
 * outputs must not overlap with inputs or each other. $cpu
 */
#ifndef ${PREFIX}_H
#define ${PREFIX}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Numbers of elements. */
$sizes
$preprocessing
/* What one inference writes to besides the outputs and a little stack. */
#define ${PREFIX}_WORKSPACE_BYTES $workspace_bytes
#define ${PREFIX}_WORKSPACE_ALIGNMENT $alignment

/* One inference in a workspace of the library's own (.bss): for one thread at a time.
 * 0, or -1 where a pointer is NULL. */
int ${prefix}_run($parameters);

/* The same in a workspace of yours, of so many bytes, so aligned: for any number of threads.
 * 0, or -1 where a pointer is NULL or the workspace not aligned. A program that calls only this
 * has no other workspace linked in. */
int ${prefix}_run_in($parameters, void *workspace);

#ifdef __cplusplus
}
#endif

#endif
