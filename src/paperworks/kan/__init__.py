"""Kolmogorov-Arnold networks: a shared vocabulary of bases, layers that use it, one module a paper."""
