"""
WASI-NN: what the guests' imports mean, over the wire to the model server.

``client`` is the process's connection, ``session`` one invocation's graphs and contexts, ``options`` their JSON
configuration, ``errno`` the table of errors, ``signatures`` the imports. Guest memory is a floor above, in
``faas.wasm.host.wasi_nn``.
"""
