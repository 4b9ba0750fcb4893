"""WASI-NN: what the guests' imports mean, over the wire to the model server; filled by the models work."""
