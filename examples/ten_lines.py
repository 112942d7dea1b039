"""Twenty pages at ten a second: `python ten_lines.py 'https://api.example/items/{target}'`."""

import asyncio
import sys

from tidegate import RateLimitScheduler
from tidegate.backends.http import HttpBackend


async def main(url):
    async with RateLimitScheduler([HttpBackend("api", url, "10/s")]) as scheduler:
        async for reply in scheduler.map(range(20)):
            print(reply.target, reply.value.text if reply.ok else reply.error)


asyncio.run(main(sys.argv[1]))
