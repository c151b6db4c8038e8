"""Kernels for a CPU, in numba, where torch and its libraries are slow.

numba compiles the loops for the processor that it finds and caches the code, in `NUMBA_CACHE_DIR` or beside these
files.

A kernel is a C function of one argument, the address of a call: a `ctypes.Structure` with its work counters, sizes and
addresses of tensors by name, 0 where one is absent. Each thread of torch's own OpenMP team runs it, and takes the next
piece of work by the counter `next` until none is left: a thread that another process delays leaves the pieces it has
not begun to the others. `begun` and `done` count threads, as an exception in a thread does not propagate.

The order in which products are added does not depend on the number of rows: a row has the same bits regardless of the
batch. Tensors are float32, or all of a call bfloat16 or float16, with the exceptions that a call names. bfloat16 needs
no hardware support; sums are float32, except where float16 is multiplied.
"""
