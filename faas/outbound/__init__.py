"""Outbound HTTP: what functions ask of other hosts, with the host's checks around it; knows no kind of function."""
