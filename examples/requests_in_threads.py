"""A program with requests and threads, under two limits: `python requests_in_threads.py https://api.example/items/`.

The adapter is all that is new. Each message that the session sends takes a permit, redirects and retries too.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import requests

from tidegate import BackendQuota
from tidegate.clients.requests import Adapter

base = sys.argv[1]
session = requests.Session()
session.mount(base, Adapter(BackendQuota("10/s", "300/min", concurrency=4)))


def fetch(number):
    response = session.get(f"{base}{number}", timeout=30)
    return number, response.status_code, response.text


with session, ThreadPoolExecutor(8) as pool:
    for number, status, text in pool.map(fetch, range(20)):
        print(number, status, text)
