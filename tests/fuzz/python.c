/* The Python interpreter with libFuzzer and the sanitizers in it: what the core's modules, compiled for them, need. */
#include <Python.h>

int main(int argc, char **argv) { return Py_BytesMain(argc, argv); }
