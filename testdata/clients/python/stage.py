"""What the suite talks to: the program, and the switches of the stage it is on."""

import json
import os
import time
import urllib.request

import pytest

REAL = os.environ["TENURE_BACKEND"] == "real"
URL = os.environ["TENURE_URL"]
KEY = os.environ["TENURE_KEY"]
BASE = URL + "/v1"


def _call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(URL + "/stage/" + path, data)) as answer:
        return answer.read()


# What counts on the simulated Ollama's words.
simulated = pytest.mark.skipif(REAL, reason="the test models say what they like")


# Asks for an answer that takes seconds.
_TEXTS = {"type": "array", "minItems": 60, "maxItems": 60, "items": {"type": "string", "minLength": 60, "maxLength": 80}}
LONG = {"response_format": {"type": "json_schema", "json_schema": {"name": "texts", "schema": _TEXTS}}, "max_completion_tokens": 3000}


def fault(kind, **more):
    if REAL:
        pytest.skip("the real Ollama does not fail on command")
    _call("fault", {"kind": kind, **more})


def clear():
    if not REAL:
        _call("clear", {})


def cancelled():
    return json.loads(_call("cancelled"))


def wait_until(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
