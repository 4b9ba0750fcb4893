"""Things at rest: kept modules, native code with its HMAC, and bundles of read-only files."""
