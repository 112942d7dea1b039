"""Cells for a notebook, with no `await`: `BASE_URL=https://api.example/items/ python notebook.py`.

`run` works where an event loop runs already, as in a notebook, and a cell may be run again.
"""

# %% What to ask, and what it allows
import os

import requests

from tidegate import Backend, run

base = os.environ["BASE_URL"]


def fetch(request):  # a plain function: it runs in a thread
    response = requests.get(f"{base}{request.target}", timeout=30)
    response.raise_for_status()
    return response.text


api = Backend("api", fetch, "10/s")

# %% Collect: a list of replies, in the order of the targets, failed ones too
replies = run(["ada", "grace", "edsger"], [api])

# %% Look
for reply in replies:
    print(reply.target, reply.value if reply.ok else reply.error)
