"""What pyproject.toml can't say yet: the part in C. Without a C compiler pip says so and goes on without it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("faas.wasm._calls", ["faas/wasm/_calls.c"], optional=True),
        Extension("faas.wasm._values", ["faas/wasm/_values.c"], optional=True),
    ]
)
