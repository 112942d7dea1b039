"""Mirrors of Nitter on loopback, and nginx before them, as the judge of what they allow."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.backends.nitter_site import Mirror, Site


@pytest.fixture
def site() -> Site:
    """A site without tweets."""
    return Site()


@pytest.fixture
def mirror_of(serve):
    """Start a mirror of a site; `instead` answers, or gives None for the site's own answer."""

    async def start(site: Site, instead=None) -> Mirror:
        mirror = Mirror(site, instead)
        mirror.url = (await serve(mirror.answer)).rstrip("/")
        return mirror

    return start


NGINX = """
daemon off;
master_process off;
pid nginx.pid;
error_log error.log error;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
    log_format counted '$status';
    access_log access.log counted;
    limit_req_status 429;
    limit_req_zone "all" zone=all:64k rate={rate}r/s;
    server {{
        listen 127.0.0.1:{port};
        location / {{ limit_req zone=all burst={burst} nodelay; proxy_pass {url}; proxy_set_header Host $http_host; }}
    }}
}}
"""


@dataclass
class Strict:
    """A mirror behind an nginx that limits it."""

    url: str
    log: Path

    @property
    def statuses(self) -> list[int]:
        """What nginx answered."""
        return [int(line) for line in self.log.read_text().split()]


@pytest.fixture
def strict(tmp_path, find_server, free_port, run_server):
    """Put an nginx before a mirror: `rate` a second, and `burst` more at once."""

    def start(mirror: Mirror, rate: int, burst: int) -> Strict:
        port = free_port()
        folder = tmp_path / str(port)
        (folder / "temp").mkdir(parents=True)
        configuration = folder / "nginx.conf"
        configuration.write_text(NGINX.format(port=port, rate=rate, burst=burst, url=mirror.url))
        run_server([find_server("nginx"), "-p", str(folder), "-c", str(configuration)], port, folder / "output")
        return Strict(f"http://127.0.0.1:{port}", folder / "access.log")

    return start
