/* Runs a static library for Python: inputs on stdin, outputs on stdout, until stdin ends. */
#include <stdio.h>

#include HEADER

BUFFERS

int main(void)
{
    while (READ) {
        int status = RUN;

        if (fwrite(&status, sizeof status, 1, stdout) != 1 || !(WRITE) || fflush(stdout))
            return 1;
    }
    return 0;
}
