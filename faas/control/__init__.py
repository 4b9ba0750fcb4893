"""The control plane: state, deploys, worker processes, logs and the admin API; it never runs a guest."""
