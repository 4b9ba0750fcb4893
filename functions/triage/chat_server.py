"""A stand-in for a chat: prints what it is sent, and with which token."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Chat(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print(self.headers["Authorization"], body.decode(), flush=True)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        """Only the line above."""


ThreadingHTTPServer(("127.0.0.1", 9300), Chat).serve_forever()
