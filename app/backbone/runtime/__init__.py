"""How forward passes run on a device: CUDA graphs, copies, threads, memory, batch size and dtype."""
