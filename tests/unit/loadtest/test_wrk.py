"""What wrk prints is read right, or refused."""

import pytest

from loadtest.wrk import Run, WrkError, parsed

OUTPUT = """Running 5s test @ http://127.0.0.1:8090/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.19ms    1.64ms  11.40ms   80.37%
    Req/Sec    16.60k     6.26k   22.79k    60.00%
  Latency Distribution
     50%    1.68ms
     75%    2.31ms
     90%    4.60ms
     99%    7.92ms
  16501 requests in 1.00s, 1.67MB read
Requests/sec:  16479.46
Transfer/sec:      1.67MB
"""


def test_a_run_is_its_rate_and_its_percentiles():
    assert parsed(OUTPUT) == Run(requests_per_s=16479.46, p50_ms=1.68, p99_ms=7.92, n_failed=0)


@pytest.mark.parametrize(("text", "ms"), [("97.00us", 0.097), ("1.68ms", 1.68), ("1.02s", 1020.0), ("1.50m", 90_000.0)])
def test_percentiles_are_in_ms_whatever_unit_wrk_chooses(text, ms):
    assert parsed(OUTPUT.replace("1.68ms", text)).p50_ms == pytest.approx(ms)


def test_replies_with_errors_and_broken_sockets_are_failures():
    errors = "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 500\n"

    assert parsed(OUTPUT.replace("Requests/sec", errors + "Requests/sec")).n_failed == 510


@pytest.mark.parametrize("lost", ["Requests/sec:  16479.46", "     50%    1.68ms", "     99%    7.92ms"])
def test_output_without_a_number_is_refused(lost):
    with pytest.raises(WrkError, match="wrk printed nothing like"):
        parsed(OUTPUT.replace(lost, ""))


def test_a_duration_in_an_unknown_unit_is_refused():
    with pytest.raises(WrkError, match="'weeks'"):
        parsed(OUTPUT.replace("1.68ms", "1.68weeks"))
