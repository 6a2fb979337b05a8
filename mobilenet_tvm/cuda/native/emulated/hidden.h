// A function that NVIDIA's headers declare and we define is not to be exported: a real library of
// that name may come to be in the process, too. (A pragma around the headers would hide the C
// library's functions that they declare.)

#ifndef MOBILENET_TVM_EMULATED_HIDDEN_H_
#define MOBILENET_TVM_EMULATED_HIDDEN_H_

// Some names are macros for the newest version of a function.
#define MOBILENET_TVM_HIDDEN(name) asm(".hidden " #name)
#define HIDDEN(name) MOBILENET_TVM_HIDDEN(name)

#endif  // MOBILENET_TVM_EMULATED_HIDDEN_H_
