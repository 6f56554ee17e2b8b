"""Kernels compiled ahead of time, without a GPU: `python -m inrun_kernels.aot [TEXT]`."""
