"""The model server process: resident weights and continuous batching; filled by the models work."""
