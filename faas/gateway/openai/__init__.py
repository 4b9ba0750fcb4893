"""The OpenAI-compatible endpoints under ``/v1/``, on the same resident weights that functions use."""
