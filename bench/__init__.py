"""Benchmarks. `make bench` runs all that this machine can; `make bench NAME=t3` runs one."""
