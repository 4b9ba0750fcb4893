"""The HTTP data plane: routes requests to functions and runs them in fresh instances."""
