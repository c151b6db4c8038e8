"""What T3 and S3Gen share on a device: matrix products, CUDA graphs, streams, the CPU's kernels."""
