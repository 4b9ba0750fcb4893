"""
``faas_v1``: what the guests' imports of that module mean: keys and values, settings, HTTP, calls, jobs.

``ports`` says what the host has to bring, ``session`` is one invocation's handles and limits, ``errno`` the table of
errors, ``signatures`` the imports, ``requests`` the msgpack maps. Guest memory is a floor above, in
``faas.wasm.host.faas``.
"""
