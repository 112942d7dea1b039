"""An API that counts by key, with two keys: `API_KEYS=first,second python two_accounts.py https://api.example/items/`.

Each key has the limit to itself, so two keys are twice as fast. Keys come from the environment, and are never printed.
"""

import asyncio
import os
import sys

import httpx

from tidegate import Backend, RateLimitScheduler


async def main(base, keys):
    async with httpx.AsyncClient() as client:

        async def fetch(request):
            response = await client.get(f"{base}{request.target}", headers={"Authorization": f"Bearer {request.account}"})
            return response.raise_for_status().text  # a 429 makes this key wait, and the request goes with the other one

        async with RateLimitScheduler([Backend("api", fetch, "10/s", accounts=keys)]) as scheduler:
            async for reply in scheduler.map(range(30)):
                print(reply.target, reply.value if reply.ok else reply.error)


asyncio.run(main(sys.argv[1], os.environ["API_KEYS"].split(",")))
