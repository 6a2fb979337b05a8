/* The weights, in read-only memory. */
#ifdef __APPLE__
#define CONSTANTS _${prefix}_constants
.section __TEXT,__const
#else
#define CONSTANTS ${prefix}_constants
.section .rodata
.type CONSTANTS, %object
#endif
.globl CONSTANTS
.balign $alignment
CONSTANTS:
.incbin "constants.bin"
#ifndef __APPLE__
.size CONSTANTS, . - CONSTANTS
.section .note.GNU-stack,"",%progbits
#endif
