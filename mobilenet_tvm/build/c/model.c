/* The kernels of $model, called in order. */
#include "$prefix.h"

extern const unsigned char ${prefix}_constants[];

$declarations

int ${prefix}_run_in($parameters, void *workspace_)
{
    /* Kernels of TVM's take what they only read without const. */
    unsigned char *constants = (unsigned char *)(uintptr_t)${prefix}_constants;
    unsigned char *workspace = (unsigned char *)workspace_;
    int32_t status = 0;

    (void)constants;
    if (workspace == 0 || (uintptr_t)workspace % ${PREFIX}_WORKSPACE_ALIGNMENT$null_checks)
        return -1;
$calls
    return status == 0 ? 0 : -1;
}
