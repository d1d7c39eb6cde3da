"""Which web pages may make a browser change something here (cross-site request forgery)."""

from dataclasses import dataclass
from typing import Final, Self

from starlette.datastructures import Headers

from jobs.settings import Settings
from jobs.settings.hosts import DEFAULT_PORTS, Authority, parse_origin, parse_origins

_FOREIGN_SITES: Final = frozenset({"cross-site", "same-site"})


@dataclass(frozen=True, kw_only=True)
class OriginRule:
    """The origins of other pages that are allowed, as browsers write them."""

    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the rule of an installation: QUANTRY_ALLOWED_ORIGINS."""
        return cls(origins=frozenset(parse_origins(settings.allowed_origins)))

    def allows(self, headers: Headers, host: Authority) -> bool:
        """Return whether a request that changes something may come from where its headers say.

        A program sends neither Origin nor Sec-Fetch-Site and is allowed. A browser sends both with every such request,
        and a page can not change them.
        """
        offered = [origin.strip(" \t").lower() for origin in headers.getlist("origin")]
        if len(offered) > 1:
            return False
        if offered and offered[0] in self.origins:
            return True
        sites = headers.getlist("sec-fetch-site")
        if any(site.strip().lower() in _FOREIGN_SITES for site in sites):
            return False
        return not offered or _is_own(offered[0], host)


def _is_own(origin: str, host: Authority) -> bool:
    """Return whether the origin is the host that the request is addressed to.

    The scheme is not compared: behind a proxy with TLS, a request arrives here by plain HTTP.
    """
    parsed = parse_origin(origin)
    if parsed is None:
        return False
    scheme, page = parsed
    return page == Authority(host.host, host.port or DEFAULT_PORTS[scheme])
