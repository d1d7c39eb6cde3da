"""The port of the nudge."""

from jobs.job.nudge import Nudger, SilentNudger, redis_url


def test_silence_is_a_nudger() -> None:
    nudger: Nudger = SilentNudger()
    nudger.nudge()


def test_a_brokers_url_is_understood_by_a_redis_client() -> None:
    assert redis_url("redis+socket:///run/valkey.sock") == "unix:///run/valkey.sock"
    assert redis_url("rediss://h:6379/0") == "rediss://h:6379/0"
