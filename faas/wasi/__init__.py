"""WASI preview 1 as a virtual implementation: what each call means, with no guest memory and no host file system."""
