"""Kernels written with Pallas; `ops` has the functions that use them."""
