"""Model libraries behind one protocol (``base``); each other file here is the only place that imports its library."""
