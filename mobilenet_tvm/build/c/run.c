/* $model with a workspace of its own. */
#include "$prefix.h"

static unsigned char workspace[${PREFIX}_WORKSPACE_BYTES]
    __attribute__((aligned(${PREFIX}_WORKSPACE_ALIGNMENT)));

int ${prefix}_run($parameters)
{
    return ${prefix}_run_in($arguments, workspace);
}
