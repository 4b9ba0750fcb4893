"""
The CGI program of the peers that run Python: a fixed answer, after QUERY_STRING milliseconds if there are any.

It imports nothing that it doesn't use, and runs without ``site``: what is measured is the interpreter's start.
"""

import os
import sys

query = os.environ.get("QUERY_STRING")
if query:
    import time

    time.sleep(int(query) / 1000)
sys.stdout.write("Content-Type: text/plain\n\nhello world\n")
