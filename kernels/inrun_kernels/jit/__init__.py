"""The Triton kernels, one module per op.

jit functions, then `plan` (what is launched) and `launch` (launch it). Only modules of this folder
import triton, and they are imported at the first call that needs them.
"""
