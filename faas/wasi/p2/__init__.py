"""What WASI 0.2's interfaces mean: plain Python values in, plain Python values out, no engine."""
