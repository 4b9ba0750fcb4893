"""What a well-behaved function and its caller can rely on, over HTTP."""

from __future__ import annotations

import json
import re
import socket

import pytest
from hosting import Host, MakeHost, wasm

TIMING = re.compile(r"queue;dur=(\d+\.\d{3}), start;dur=(\d+\.\d{3}), run;dur=(\d+\.\d{3})")


def meta(host: Host, path: str = "", headers: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment that a command sees."""
    text = host.get(f"/{host.serves('env')}{path}", headers).text
    return dict(line.partition("=")[::2] for line in text.splitlines())


# --- kinds of function -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guest", ["hello-c", "hello-rust"])
def test_a_command_answers_with_what_it_writes(host: Host, guest: str) -> None:
    reply = host.get(f"/{host.serves(guest)}/there")
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert reply.text.splitlines()[1] == f"GET /{guest}/there"


@pytest.mark.parametrize("guest", ["echo-c", "echo-rust"])
def test_a_reactor_gets_the_body_and_gives_it_back(host: Host, guest: str) -> None:
    body = bytes(range(256)) * 40
    reply = host.request("POST", f"/{host.serves(guest)}", body, {"Content-Type": "application/x-some"})
    assert (reply.status, reply.headers["Content-Type"], reply.body) == (200, "application/x-some", body)


def test_the_two_reactor_sdks_see_the_same_request(host: Host) -> None:
    def seen(guest: str) -> dict[str, object]:
        reply = host.get(f"/{host.serves(guest)}/item?q=%20x&y", {"X-Odd": "ä", "X-Request-Id": "same"})
        request: dict[str, object] = json.loads(reply.text.replace(guest, "echo"))
        assert 0 < int(str(request.pop("deadline_ms"))) <= 30_000
        request.pop("headers")
        return request

    assert seen("echo-c") == seen("echo-rust")
    assert seen("echo-c")["query"] == "q=%20x&y"


def test_markdown_becomes_html(host: Host) -> None:
    reply = host.request("POST", f"/{host.serves('markdown')}", b"# Title\n\n* one\n* two\n")
    assert reply.headers.get_content_type() == "text/html"
    assert '<h1 id="title">Title</h1>' in reply.text
    assert reply.text.count("<li>") == 2


def test_a_function_of_two_megabytes_is_served(host: Host) -> None:
    assert host.get(f"/{host.serves('big')}?7").text.startswith("hello\n5000 functions")


def test_each_request_gets_a_fresh_instance(host: Host) -> None:
    """What one request writes into memory or /tmp is not there for the next."""
    path = f"/{host.serves('tmp-hog')}?1"
    first, second = host.get(path), host.get(path)
    assert first.status == second.status == 200
    assert first.text == second.text


# --- CGI -------------------------------------------------------------------------------------------------------------


def cgi(host: Host, query: str, method: str = "GET"):
    return host.request(method, f"/{host.serves('cgi')}?{query}")


def test_status_and_reason_are_the_guests(host: Host) -> None:
    with host.socket() as raw:
        raw.sendall(f"GET /{host.serves('cgi')}?status=418+Short+And+Stout HTTP/1.0\r\n\r\n".encode())
        line = raw.makefile("rb").readline()
    assert line.split(b" ", 1)[1] == b"418 Short And Stout\r\n"


def test_status_defaults_to_200(host: Host) -> None:
    reply = cgi(host, "")
    assert (reply.status, reply.text) == (200, "plain\n")


def test_a_client_redirect_is_302_with_its_location(host: Host) -> None:
    reply = cgi(host, "location=https://example.org/a?b=c")
    assert (reply.status, reply.headers["Location"], reply.body) == (302, "https://example.org/a?b=c", b"")


def test_a_redirect_with_a_document_keeps_status_and_body(host: Host) -> None:
    reply = cgi(host, "redirect=/somewhere")
    assert (reply.status, reply.headers["Location"], reply.text) == (303, "/somewhere", "see other\n")


def test_a_local_redirect_is_served_by_the_host(host: Host) -> None:
    reply = cgi(host, f"location=/{host.serves('hello-c')}/moved", method="POST")
    assert reply.status == 200
    assert reply.headers["X-Faas-Function"] == "hello-c"
    assert "GET /hello-c/moved" in reply.text


def test_a_local_redirect_to_nowhere_is_404(host: Host) -> None:
    assert cgi(host, "location=/nowhere-at-all").code == "route-not-found"


def test_local_redirects_without_end_are_a_problem(host: Host) -> None:
    name = host.serves("cgi")
    reply = host.get(f"/{name}?location=" + f"/{name}?location=" * 12 + "/")
    assert (reply.status, reply.code) == (502, "redirect-loop")


def test_set_cookie_headers_stay_separate(host: Host) -> None:
    assert cgi(host, "cookies").headers.get_all("Set-Cookie") == ["a=1; Path=/", "b=2; HttpOnly"]


def test_a_body_may_hold_every_byte(host: Host) -> None:
    reply = cgi(host, "binary")
    assert reply.body == bytes(range(256))
    assert reply.headers["Content-Length"] == "256"


def test_header_lines_may_end_in_crlf(host: Host) -> None:
    reply = cgi(host, "crlf")
    assert (reply.status, reply.headers["X-Line-End"], reply.text) == (201, "crlf", "crlf headers\n")


def test_an_empty_body_is_a_reply(host: Host) -> None:
    reply = cgi(host, "empty")
    assert (reply.status, reply.body, reply.headers["Content-Length"]) == (200, b"", "0")


def test_head_gets_the_headers_of_get_and_no_body(host: Host) -> None:
    head, get = cgi(host, "binary", "HEAD"), cgi(host, "binary")
    assert head.body == b""
    for name in ("Content-Type", "Content-Length"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_body_has_none_and_keeps_the_connection_in_step(host: Host, status: int) -> None:
    connection = host.connect()
    path = f"/{host.serves('cgi')}"
    for query, expected in ((f"status={status}", status), ("", 200)):
        connection.request("GET", f"{path}?{query}")
        response = connection.getresponse()
        assert response.status == expected
        body = response.read()
    assert body == b"plain\n"
    connection.close()


def test_meta_variables_follow_rfc_3875(host: Host) -> None:
    seen = meta(host, "/a%20b/c?x=1&y=%20", {"Host": "example.org:99", "Accept": "text/plain", "Cookie": "a=b"})
    assert seen["GATEWAY_INTERFACE"] == "CGI/1.1"
    assert seen["REQUEST_METHOD"] == "GET"
    assert seen["SCRIPT_NAME"] == "/env"
    assert seen["PATH_INFO"] == "/a b/c"
    assert seen["QUERY_STRING"] == "x=1&y=%20"
    assert seen["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert seen["SERVER_NAME"] == "example.org"
    assert seen["SERVER_PORT"] == str(host.port)
    assert seen["REMOTE_ADDR"] == "127.0.0.1"
    assert seen["HTTP_ACCEPT"] == "text/plain"
    assert seen["HTTP_COOKIE"] == "a=b"
    assert seen["X_MATCHED_ROUTE"] == "/env/*"


def test_a_query_without_equals_sign_becomes_arguments(host: Host) -> None:
    text = host.get(f"/{host.serves('env')}?one+two%21").text
    assert text.splitlines()[:3] == ["arg 0=env", "arg 1=one", "arg 2=two!"]


def test_no_environment_of_the_host_reaches_a_guest(host: Host) -> None:
    assert not {"PATH", "HOME", "PWD"} & meta(host).keys()


def test_a_proxy_header_never_becomes_http_proxy(host: Host) -> None:
    """The attack is called httpoxy: CGI programs take HTTP_PROXY for the proxy to use."""
    assert "HTTP_PROXY" not in meta(host, headers={"Proxy": "http://evil.example"})


def test_manifest_env_reaches_the_guest_and_no_header_can_pose_as_it(host: Host) -> None:
    host.deploy("env-set", wasm("env"), {"env": {"GREETING": "hä", "HTTP_X_ROLE": "admin"}})
    text = host.get("/env-set", {"X-Role": "guest"}).text
    assert "GREETING=hä\n" in text
    assert "HTTP_X_ROLE=admin\n" in text


# --- headers of every reply ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guest", ["hello-c", "echo-c"])
def test_every_reply_says_who_served_it_and_how_long_it_took(host: Host, guest: str) -> None:
    headers = host.get(f"/{host.serves(guest)}").headers
    assert headers["X-Faas-Function"] == guest
    assert headers["X-Faas-Version"] == "1"
    assert headers["X-Request-Id"]
    found = TIMING.fullmatch(headers["Server-Timing"])
    assert found
    assert 0 < float(found[2]) < 1000
    assert headers["Server"].startswith("faas/")


def test_a_guests_failure_carries_the_same_headers(host: Host) -> None:
    reply = host.get(f"/{host.serves('trap')}", {"X-Request-Id": "trap-1"})
    assert reply.headers["X-Faas-Function"] == "trap"
    assert reply.headers["X-Request-Id"] == "trap-1"
    assert TIMING.fullmatch(reply.headers["Server-Timing"])
    assert reply.json()["request_id"] == "trap-1"


def test_a_request_id_passes_through_to_guest_and_reply(host: Host) -> None:
    assert meta(host, headers={"X-Request-Id": "abc.DEF-1/2=3"})["FAAS_REQUEST_ID"] == "abc.DEF-1/2=3"
    assert host.get("/env", {"X-Request-Id": "abc"}).headers["X-Request-Id"] == "abc"


@pytest.mark.parametrize("bad", ["has space", "x" * 129, 'quo"te', "semi;colon"])
def test_an_invalid_request_id_is_replaced(host: Host, bad: str) -> None:
    reply = host.get(f"/{host.serves('hello-c')}", {"X-Request-Id": bad})
    assert re.fullmatch(r"[0-9a-f]{16,}", reply.headers["X-Request-Id"])


def test_two_requests_get_different_ids(host: Host) -> None:
    path = f"/{host.serves('hello-c')}"
    assert host.get(path).headers["X-Request-Id"] != host.get(path).headers["X-Request-Id"]


def test_a_traceparent_passes_through_to_guest_and_log(host: Host) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert meta(host, headers={"traceparent": trace, "X-Request-Id": "traced"})["HTTP_TRACEPARENT"] == trace
    assert host.log_of("env", "traced")[-1]["traceparent"] == trace


def test_an_invalid_traceparent_is_not_logged(host: Host) -> None:
    host.get(f"/{host.serves('hello-c')}", {"traceparent": "00-nonsense", "X-Request-Id": "untraced"})
    assert "traceparent" not in host.log_of("hello-c", "untraced")[-1]


def test_health_answers_without_any_function(host: Host) -> None:
    reply = host.get("/_faas/health")
    assert (reply.status, reply.json()["status"]) == (200, "ok")


# --- routes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(host: Host) -> Host:
    """Three functions that share a path: one exact, one with a parameter, one for the rest."""
    host.deploy("shop-exact", wasm("hello-c"), {"routes": ["GET,PUT /shop/items/new"]})
    host.deploy("shop-item", wasm("echo-c"), {"routes": ["/shop/items/{id}", "/shop/{kind}/x/{id}"]})
    host.deploy("shop-rest", wasm("env"), {"routes": ["GET /shop/*"]})
    return host


@pytest.mark.parametrize(
    ("path", "function"),
    [
        ("/shop/items/new", "shop-exact"),
        ("/shop/items/7", "shop-item"),
        ("/shop/items/7/more", "shop-rest"),
        ("/shop", "shop-rest"),
        ("/shop/", "shop-rest"),
    ],
)
def test_the_most_specific_route_wins(shop: Host, path: str, function: str) -> None:
    assert shop.get(path).headers["X-Faas-Function"] == function


def test_path_parameters_reach_the_function(shop: Host) -> None:
    request = shop.get("/shop/tools/x/a%2Fb").json()
    assert request["params"] == {"kind": "tools", "id": "a%2Fb"}
    assert request["route"] == "/shop/{kind}/x/{id}"


def test_a_trailing_star_leaves_the_rest_in_path_info(shop: Host) -> None:
    text = shop.get("/shop/deep/er?x").text
    assert "SCRIPT_NAME=/shop\n" in text
    assert "PATH_INFO=/deep/er\n" in text


def test_an_unknown_path_is_404(host: Host) -> None:
    reply = host.get("/no/such/thing")
    assert (reply.status, reply.code) == (404, "route-not-found")
    assert reply.headers["X-Request-Id"]


def test_another_method_is_405_and_allow_names_the_right_ones(shop: Host) -> None:
    reply = shop.request("DELETE", "/shop/elsewhere/1")
    assert (reply.status, reply.code, reply.headers["Allow"]) == (405, "method-not-allowed", "GET")


def test_a_method_that_the_exact_route_lacks_falls_to_the_next(shop: Host) -> None:
    assert shop.request("POST", "/shop/items/new", b"x").headers["X-Faas-Function"] == "shop-item"


def everything(sock: socket.socket) -> bytes:
    """Return what comes until the host closes."""
    reply = b""
    while chunk := sock.recv(65536):
        reply += chunk
    return reply


def test_what_is_no_http_is_answered_by_a_problem(host: Host) -> None:
    with host.socket() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n")
        reply = everything(sock)
    assert b" 400 Bad Request" in reply
    assert b"application/problem+json" in reply
    assert b'"malformed-request"' in reply


def test_a_client_that_does_not_finish_its_head_is_cut_off(make_host: MakeHost) -> None:
    host = make_host(header_timeout_s=0.3).start()
    for begun in (b"", b"GET / HTTP/1.1\r\nHost:"):
        with host.socket() as sock:
            sock.sendall(begun)
            assert everything(sock).startswith(b"HTTP/1.1 408 ")
    with host.socket() as sock:
        sock.sendall(b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 404 ")
        sock.sendall(b"GET /nope HTTP/1.1\r\nHost:")
        assert everything(sock).startswith(b"HTTP/1.1 408 ")
