"""The settings of the operator: every ``QUANTRY_*`` variable of the service."""

from jobs.settings.settings import SINGLE_TENANT, Settings, get_settings, is_loopback

__all__ = ["SINGLE_TENANT", "Settings", "get_settings", "is_loopback"]
