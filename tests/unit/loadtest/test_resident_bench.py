"""The resident-model benchmark's own readers: metrics, memory of processes, and the text whose prefix is shared."""

from __future__ import annotations

from loadtest.host import parse_metrics
from loadtest.resident import PREFIX_TOKENS, long_text, parse_rollup


def test_metrics_are_read_by_name_and_labels_as_they_stand() -> None:
    page = (
        "# HELP faas_model_loads_total Times a model's weights were loaded.\n"
        "# TYPE faas_model_loads_total counter\n"
        'faas_model_loads_total{model="default"} 1\n'
        'faas_model_tokens_total{model="a b",kind="cached"} 1.5e3\n'
        "faas_models 2\n"
    )
    assert parse_metrics(page) == {
        'faas_model_loads_total{model="default"}': 1.0,
        'faas_model_tokens_total{model="a b",kind="cached"}': 1500.0,
        "faas_models": 2.0,
    }


def test_sizes_of_a_process_are_bytes_and_its_address_range_is_no_size() -> None:
    rollup = (
        "55d0c0a00000-7ffd3b1f2000 ---p 00000000 00:00 0                          [rollup]\n"
        "Rss:               10240 kB\n"
        "Pss:                4096 kB\n"
        "Pss_Anon:              1 kB\n"
    )
    assert parse_rollup(rollup) == {"Rss": 10240 * 1024, "Pss": 4096 * 1024, "Pss_Anon": 1024}


def test_long_texts_are_the_same_each_time_and_share_no_beginning_with_another() -> None:
    one, again, other = long_text(1), long_text(1), long_text(2)
    assert one == again
    assert len(one.split()) > PREFIX_TOKENS
    assert one.split()[:8] != other.split()[:8]
