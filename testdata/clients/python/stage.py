"""What the suite talks to: the program, and the switches of the stage it is on."""

import json
import os
import time
import urllib.request

URL = os.environ["TENURE_URL"]
KEY = os.environ["TENURE_KEY"]
BASE = URL + "/v1"


def _call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(URL + "/stage/" + path, data)) as answer:
        return answer.read()


def fault(kind, **more):
    _call("fault", {"kind": kind, **more})


def clear():
    _call("clear", {})


def cancelled():
    return json.loads(_call("counts"))["Cancelled"]


def wait_until(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
