"""Follows links over many hosts, two pages a second from each: `python crawl.py --pages 50 https://example.org/`.

Hosts do not wait for each other. Which pages may be visited at all (robots.txt) is for you to look at.
"""

import argparse
import asyncio
import re
from urllib.parse import urldefrag, urljoin

from tidegate import BackendQuota, RateLimitScheduler, TidegateError
from tidegate.backends.http import HttpBackend

LINK = re.compile(r'<a\s[^>]*href="([^"]+)"', re.IGNORECASE)


async def main(seeds, pages):
    seen = set(seeds)
    web = HttpBackend("web", "{target}", BackendQuota("2/s per host", concurrency=100))
    async with RateLimitScheduler([web]) as scheduler, asyncio.TaskGroup() as group:

        async def visit(url):
            try:
                page = (await scheduler.fetch(url)).value
            except TidegateError as error:
                print(url, error)
                return
            links = {urldefrag(urljoin(page.url, link)).url for link in LINK.findall(page.text)}
            print(url, len(links))
            for link in sorted(links):
                if link.startswith("http") and link not in seen and len(seen) < pages:
                    seen.add(link)
                    group.create_task(visit(link))

        for seed in seeds:
            group.create_task(visit(seed))


parser = argparse.ArgumentParser()
parser.add_argument("seeds", nargs="+")
parser.add_argument("--pages", type=int, default=20)
options = parser.parse_args()
asyncio.run(main(options.seeds, options.pages))
