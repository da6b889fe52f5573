"""The suite of OpenAI's own Python package."""

import asyncio
import json
import time
from typing import Annotated

import httpx2 as http
import openai
import pytest
from pydantic import BaseModel, Field

import stage

client = openai.OpenAI(base_url=stage.BASE, api_key=stage.KEY, max_retries=0)
ASK = [{"role": "user", "content": "Tell me about yourself."}]
LOOKUP = {
    "type": "function",
    "function": {
        "name": "lookup_candidate",
        "description": "Finds a candidate",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 20}, "limit": {"type": "integer"}},
            "required": ["name", "limit"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
REPORT = {"type": "function", "function": {"name": "write_report", "parameters": {"type": "object", "properties": {"title": {"type": "string", "maxLength": 20}}, "required": ["title"]}}}


Word = Annotated[str, Field(max_length=20)]  # the test models' texts have no end


class Employer(BaseModel):
    name: Word


class Candidate(BaseModel):
    name: Word
    years: int
    skills: Annotated[list[Word], Field(max_length=2)]
    email: Word | None
    employer: Employer


def chat(messages=ASK, model="phi3:mini", **more):
    return client.chat.completions.create(model=model, messages=messages, **more)


def text_of(stream):
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def test_models():
    ids = [m.id for m in client.models.list()]
    assert "recruit-auto" in ids and "recruit/resume_parsing" in ids and "phi3:mini" in ids
    assert all(client.models.retrieve(id).id == id for id in ids)  # a slash goes as %2F
    raw = client.get("/models/recruit/resume_parsing", cast_to=openai.types.Model)
    assert raw.id == "recruit/resume_parsing"


def test_chat():
    answer = chat(model="recruit/general")
    assert answer.model == "recruit/general" and answer.id.startswith("chatcmpl-")
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content and choice.message.refusal is None
    assert choice.finish_reason == "stop" and choice.logprobs is None
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer._request_id


def test_base_url_with_slash():
    slashed = openai.OpenAI(base_url=stage.BASE + "/", api_key=stage.KEY)
    assert slashed.chat.completions.create(model="phi3:mini", messages=ASK).choices


def test_stream_is_the_answer():
    whole = chat(temperature=0, seed=1)
    chunks = list(chat(temperature=0, seed=1, stream=True))
    assert text_of(chunks) == whole.choices[0].message.content
    assert all(c.usage is None and c.choices for c in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]


def test_stream_usage():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0
    assert all(c.usage is None for c in chunks[:-1])


def test_stream_helper():
    with client.chat.completions.stream(model="phi3:mini", messages=ASK) as stream:
        kinds = [event.type for event in stream]
        assert "content.delta" in kinds and "content.done" in kinds
        assert stream.get_final_completion().choices[0].finish_reason == "stop"


def test_async_stream():
    async def go():
        async with openai.AsyncOpenAI(base_url=stage.BASE, api_key=stage.KEY) as c:
            stream = await c.chat.completions.create(model="phi3:mini", messages=ASK, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(go())


@pytest.mark.parametrize("model", ["mistral", "phi3:mini"])  # with tools of its own, and without
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "lookup_candidate"}}], ids=["required", "named"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_tools_forced(model, choice, stream):
    messages = [{"role": "user", "content": "Hello."}]
    args = {"model": model, "messages": messages, "tools": [LOOKUP], "tool_choice": choice}
    if stream:
        with client.chat.completions.stream(**args) as s:
            s.until_done()
            answer = s.get_final_completion()
    else:
        answer = client.chat.completions.create(**args)
    [call] = answer.choices[0].message.tool_calls
    assert call.id and call.type == "function" and call.function.name == "lookup_candidate"
    assert set(json.loads(call.function.arguments)) == {"name", "limit"}
    assert answer.choices[0].finish_reason == "tool_calls"
    assert not answer.choices[0].message.content


def test_tools_named_of_two():
    answer = chat(tools=[LOOKUP, REPORT], tool_choice={"type": "function", "function": {"name": "write_report"}})
    assert [c.function.name for c in answer.choices[0].message.tool_calls] == ["write_report"]


@stage.simulated
def test_tools_auto():
    answer = chat([{"role": "user", "content": "Use the lookup tool."}], "mistral", tools=[LOOKUP], tool_choice="auto")
    assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
    answer = chat([{"role": "user", "content": "Hello."}], "mistral", tools=[LOOKUP])
    assert answer.choices[0].message.tool_calls is None and answer.choices[0].message.content
    # On a model without tools it may be either, but must be one of them.
    message = chat([{"role": "user", "content": "Hello."}], tools=[LOOKUP]).choices[0].message
    assert bool(message.content) != bool(message.tool_calls)


def test_tools_none():
    answer = chat([{"role": "user", "content": "Use the lookup tool."}], "mistral", tools=[LOOKUP], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None and answer.choices[0].finish_reason == "stop"


@stage.simulated
def test_tools_stream_deltas():
    chunks = list(chat([{"role": "user", "content": "Use the lookup tool."}], "mistral", tools=[LOOKUP], stream=True))
    deltas = [d for c in chunks for d in c.choices[0].delta.tool_calls or []]
    assert deltas[0].index == 0 and deltas[0].id and deltas[0].type == "function" and deltas[0].function.name
    assert json.loads("".join(d.function.arguments or "" for d in deltas))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@stage.simulated
def test_tools_round_trip():
    messages = [{"role": "user", "content": "Use the lookup tool."}]
    message = chat(messages, "mistral", tools=[LOOKUP]).choices[0].message
    call = message.tool_calls[0]
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "Jane Doe"}]}]
    assert chat(messages, "mistral", tools=[LOOKUP]).choices[0].message.content


def test_parse():
    answer = client.chat.completions.parse(model="mistral", messages=ASK, response_format=Candidate)
    assert isinstance(answer.choices[0].message.parsed, Candidate)
    with client.chat.completions.stream(model="mistral", messages=ASK, response_format=Candidate) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Candidate)


def test_parse_cut_short():
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="mistral", messages=ASK, response_format=Candidate, max_completion_tokens=2)


def test_json_object():
    choice = chat([{"role": "user", "content": "Answer in JSON."}], response_format={"type": "json_object"}).choices[0]
    if choice.finish_reason == "length":  # what is cut is said to be
        assert stage.REAL
    else:
        assert isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_token_limit(field):
    answer = chat(**{field: 3})
    assert answer.usage.completion_tokens == 3 and answer.choices[0].finish_reason == "length"


def test_token_limit_smaller_wins():
    assert chat(max_tokens=5, max_completion_tokens=2).usage.completion_tokens == 2


def test_n():
    answer = chat(n=3)
    assert [c.index for c in answer.choices] == [0, 1, 2] and all(c.message.content for c in answer.choices)
    ended = [c.choices[0].index for c in chat(n=2, stream=True) if c.choices[0].finish_reason]
    assert sorted(ended) == [0, 1]
    with pytest.raises(openai.BadRequestError) as e:
        chat(n=129)
    assert e.value.param == "n"


def test_logprobs():
    assert chat(logprobs=True, top_logprobs=2).choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError) as e:
        chat(logprobs=True, top_logprobs=21)
    assert e.value.param == "top_logprobs"


def test_stop():
    whole = chat(temperature=0).choices[0].message.content
    word = whole.split()[4]
    for stop in (word, [word, "never said"]):
        assert chat(temperature=0, stop=stop).choices[0].message.content == whole[: whole.index(word)]


def test_seed():
    same = [chat(seed=7, temperature=1).choices[0].message.content for _ in range(2)]
    assert same[0] == same[1]


def test_absent_and_null():
    assert chat(temperature=0, stop=None, tools=[], extra_body={"top_p": None, "stream": None, "seed": None}).choices


def test_every_field():
    answer = client.chat.completions.with_raw_response.create(
        model="phi3:mini",
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "system", "content": [{"type": "text", "text": "Be kind."}]}, *ASK],
        store=True, metadata={"team": "red"}, service_tier="flex", prompt_cache_key="k", safety_identifier="s", verbosity="low",
        prediction={"type": "content", "content": "x"}, parallel_tool_calls=True, user="u", logit_bias={"17": 1},
        frequency_penalty=0.1, presence_penalty=0.1, top_p=0.9, extra_body={"top_k": 40, "min_p": 0.1, "repeat_penalty": 1.1, "unheard_of": 1},
        extra_headers={"OpenAI-Organization": "o", "OpenAI-Project": "p", "Idempotency-Key": "i"},
    )  # fmt: skip
    assert answer.parse().choices[0].message.content
    ignored = answer.headers["tenure-ignored"].split(", ")
    assert {"store", "verbosity", "logit_bias", "unheard_of"} <= set(ignored) and "top_k" not in ignored


def test_reasoning_in_history():
    messages = [*ASK, {"role": "assistant", "content": "x", "reasoning_content": "y", "reasoning": "z"}, *ASK]
    assert chat(messages).choices[0].message.content


def test_bad_request():
    for change in ({"temperature": 9}, {"messages": []}, {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}}):
        with pytest.raises(openai.BadRequestError) as e:
            client.chat.completions.create(**{"model": "phi3:mini", "messages": ASK, **change})
        assert e.value.type == "invalid_request_error" and e.value.param


def test_image_url_refused():
    with pytest.raises(openai.BadRequestError) as e:
        chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}]}])
    assert "messages" in e.value.param


def test_wrong_key():
    with pytest.raises(openai.AuthenticationError) as e:
        client.with_options(api_key="not-the-key").models.list()
    assert e.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="not-the-key").chat.completions.create(model="phi3:mini", messages=ASK)


@pytest.mark.parametrize("header", ["Authorization", "api-key", "x-api-key"])
def test_key_headers(header):
    value = "Bearer " + stage.KEY if header == "Authorization" else stage.KEY
    answer = http.get(stage.BASE + "/models", headers={header: value})
    assert answer.status_code == 200


def test_azure_client_key():
    """The client for Azure sends api-key, and other paths: a clean 404."""
    azure = openai.AzureOpenAI(azure_endpoint=stage.URL, api_version="2024-10-21", api_key=stage.KEY, max_retries=0)
    with pytest.raises(openai.NotFoundError) as e:
        azure.chat.completions.create(model="phi3:mini", messages=ASK)
    assert e.value.code == "unknown_url"


def test_unknown_model():
    for ask in (lambda: chat(model="no-such-model"), lambda: client.models.retrieve("no/such-model")):
        with pytest.raises(openai.NotFoundError) as e:
            ask()
        assert e.value.code == "model_not_found" and "no" in e.value.message


def test_unknown_route():
    with pytest.raises(openai.NotFoundError) as e:
        client.moderations.create(input="x")
    assert e.value.code == "unknown_url"


def test_too_large():
    with pytest.raises(openai.APIStatusError) as e:
        chat([{"role": "user", "content": "x" * (2 << 20)}])
    assert e.value.status_code == 413 and e.value.code == "request_too_large"


def test_context_exceeded():
    with pytest.raises(openai.BadRequestError) as e:
        chat([{"role": "user", "content": "word " * 20000}])
    assert e.value.code == "context_length_exceeded" and "maximum context length" in e.value.message


def test_busy():
    stage.fault("queue-full", times=1)
    with pytest.raises(openai.RateLimitError) as e:
        chat()
    headers = e.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 60
    assert 0 < int(headers["retry-after-ms"]) <= int(headers["retry-after"]) * 1000


def test_busy_is_retried():
    stage.fault("queue-full", times=1)
    began = time.monotonic()
    assert client.with_options(max_retries=2).chat.completions.create(model="phi3:mini", messages=ASK).choices
    assert time.monotonic() - began > 3  # as Retry-After asks


def test_upstream_fails():
    stage.fault("error-line", after=0)
    with pytest.raises(openai.InternalServerError) as e:
        chat(seed=11)
    assert e.value.status_code == 502
    with pytest.raises(openai.InternalServerError):
        chat(seed=11, stream=True)  # before the first byte: a status


@pytest.mark.parametrize("kind", ["error-line", "cut-mid", "no-done"])
def test_failure_within_stream(kind):
    stage.fault(kind, after=3, times=1)
    got = []
    with pytest.raises(openai.APIError) as e:
        for chunk in chat(stream=True, seed=12):
            got.append(chunk)
    assert got and e.value.code in ("upstream_error", "upstream_aborted") and e.value.message


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_abort_cancels(stream):
    before = stage.cancelled()
    if stream:
        with chat(stream=True, seed=13, **stage.LONG) as answer:
            next(iter(answer))
    else:
        with pytest.raises(openai.APITimeoutError):
            chat(seed=14, timeout=0.5, **stage.LONG)
    stage.wait_until(lambda: stage.cancelled() == before + 1)
    assert chat().choices


def test_comments_while_loading():
    stage.fault("slow-load", model="llama3", delay=11)
    raw = client.chat.completions.with_raw_response.create(model="llama3", messages=ASK, stream=True)
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert "tenure-residency" not in raw.headers  # they came while it loaded
    assert text_of(raw.parse())


@stage.simulated
def test_no_retry_where_it_cannot_help():
    stage.fault("fail-load", model="gpt-4o-mini")  # which no other test has loaded
    with pytest.raises(openai.InternalServerError) as e:
        client.with_options(max_retries=2).chat.completions.create(model="gpt-4o-mini", messages=ASK)
    assert e.value.code == "model_load_failed" and e.value.response.headers["x-should-retry"] == "false"
    assert e.value.response.request.headers["x-stainless-retry-count"] == "0"
