"""Everything that touches wasmtime: the engine, instances on fibers, and the host functions guests import."""
