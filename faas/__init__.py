"""A serverless function host for WebAssembly with resident LLMs."""

__version__ = "0.1.0"
