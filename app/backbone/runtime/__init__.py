"""How a forward pass is executed on a device: threads, memory, CUDA graphs, batch size, precision."""
