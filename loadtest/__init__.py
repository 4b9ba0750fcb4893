"""Load and fault tests: each starts a host of its own, talks to loopback only and stops by itself."""
