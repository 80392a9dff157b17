"""The kernels themselves. They import triton alone, and compile for any target without a GPU."""
