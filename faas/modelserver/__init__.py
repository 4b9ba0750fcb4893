"""The model server process: resident weights and continuous batching for every function of the host."""
