"""What a manifest may say of jobs, schedules and webhooks."""

from __future__ import annotations

import pytest

from faas.errors import ManifestError
from faas.manifest import manifest_from_builtins, manifest_from_toml

SCHEDULE = {"name": "tick", "cron": "0 3 * * *"}
HOOK = {"path": "/f/hook", "secret": "S"}
SIGNED = {**HOOK, "scheme": "hmac"}


def manifest(**more):
    return manifest_from_builtins({"name": "f", "routes": ["/f/*"], **more})


def test_triggers_are_read_from_toml():
    read = manifest_from_toml(
        """
        name = "f"
        routes = ["POST /f/*"]
        [async]
        max_attempts = 5
        [[schedules]]
        name = "nightly"
        cron = "30 0 3 * * *"
        timezone = "Europe/Berlin"
        missed = "last"
        [[webhooks]]
        path = "/f/hook"
        secret = "HOOK"
        async = true
        """
    )
    assert (read.jobs.max_attempts, read.schedules[0].timezone, read.webhooks[0].run_async) == (
        5,
        "Europe/Berlin",
        True,
    )


@pytest.mark.parametrize("cron", ["* * * * *", "*/10 * * * * *", "0 0 L * *", "0 9 * * MON#1", "0 0 1 JAN *"])
def test_cron_expressions_with_five_and_six_fields_are_taken(cron):
    assert manifest(schedules=[{**SCHEDULE, "cron": cron}]).schedules[0].cron == cron


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"cron": "hourly"}, "no cron expression"),
        ({"cron": "61 * * * *"}, "Bad minute"),
        ({"cron": "0 0 31 2 *"}, "no cron expression"),
        ({"timezone": "Mars/Olympus"}, "no time zone"),
        ({"timezone": "../etc/passwd"}, "no time zone"),
        ({"timezone": ""}, "no time zone"),
        ({"path": "nope"}, "path"),
        ({"headers": {"Host": "x"}}, "header"),
        ({"headers": {"X-A": "a\r\nb"}}, "header"),
        ({"missed": "all"}, "overlap"),
        ({"missed": "some"}, "missed"),
    ],
)
def test_schedule_that_can_not_be_kept_is_refused_by_name(more, said):
    with pytest.raises(ManifestError, match=said):
        manifest(schedules=[{**SCHEDULE, **more}])


def test_two_schedules_of_one_name_are_refused():
    with pytest.raises(ManifestError, match="twice"):
        manifest(schedules=[SCHEDULE, SCHEDULE])


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ({**HOOK, "path": "/elsewhere"}, "routes"),
        ({**HOOK, "path": "/f/{id}"}, "parameters"),
        ({**HOOK, "path": "/f/%68ook"}, "parameters"),
        ({**HOOK, "path": "hook"}, "path"),
        ({**HOOK, "header": "x-mine"}, "scheme"),
        ({**HOOK, "secret": "not a name"}, "secret"),
        ({**SIGNED, "signed": "nothing"}, "body"),
        ({**SIGNED, "signed": "{timestamp}.{body}"}, "timestamp_header"),
        ({**SIGNED, "timestamp_header": "x-time"}, "timestamp_header"),
        ({**SIGNED, "delivery_header": "two words"}, "delivery_header"),
    ],
)
def test_webhook_that_no_request_could_pass_is_refused(hook, said):
    with pytest.raises(ManifestError, match=said):
        manifest(webhooks=[hook])


def test_webhook_on_a_route_for_other_methods_is_refused():
    with pytest.raises(ManifestError, match="POST"):
        manifest(routes=["GET /f/*"], webhooks=[HOOK])


@pytest.mark.parametrize("more", [{"schedules": [SCHEDULE]}, {"webhooks": [{**HOOK, "async": True}]}])
def test_triggers_that_make_jobs_need_jobs(more):
    with pytest.raises(ManifestError, match=r"async\.enabled"):
        manifest(**{"async": {"enabled": False}, **more})


def test_back_off_that_begins_above_its_maximum_is_refused():
    with pytest.raises(ManifestError, match="max_backoff_s"):
        manifest(**{"async": {"backoff_s": 10, "max_backoff_s": 5}})
