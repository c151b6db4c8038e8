"""Device code that T3 and S3Gen share: matrix products, CUDA graphs, streams, the CPU's kernels."""
