"""A server for programs that are tested as processes: `python server.py PORT LOG`. It keeps a line for each request."""

import asyncio
import os
import sys

from aiohttp import web


async def answer(request: web.Request) -> web.StreamResponse:
    """`/ok/x` at once, `/slow/x` after half a second, `/missing/x` with 404; the body says what was asked and by whom."""
    how, _, what = request.path.strip("/").partition("/")
    os.write(LOG, f"{what}\n".encode())
    if how == "missing" or what.startswith("missing"):
        raise web.HTTPNotFound(text="no such thing")
    await asyncio.sleep(0.5 if how == "slow" else 0.01)
    return web.json_response({"id": what, "key": request.headers.get("Authorization")})


if __name__ == "__main__":
    LOG = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None, shutdown_timeout=0.1)
