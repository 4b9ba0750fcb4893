"""From an uploaded .wasm to native code: validate, preinit, compile and store, in a limited subprocess."""
