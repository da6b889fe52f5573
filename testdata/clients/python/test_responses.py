"""OpenAI's own Python package on responses."""

import json

import openai
import pytest
from pydantic import BaseModel, Field

import stage

client = openai.OpenAI(base_url=stage.BASE, api_key=stage.KEY, max_retries=0)
LOOKUP = {
    "type": "function",
    "name": "lookup_candidate",
    "description": "Finds a candidate",
    "parameters": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}},
        "required": ["name"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Candidate(BaseModel):
    name: str = Field(max_length=20)
    years: int = Field(ge=0, le=60)


def respond(text="Tell me about yourself.", model="phi3:mini", **more):
    return client.responses.create(model=model, input=text, **more)


def test_response():
    answer = respond(model="recruit/general", instructions="Be brief.", metadata={"a": "b"}, store=True, max_output_tokens=400)
    assert answer.model == "recruit/general" and answer.id.startswith("resp_") and answer.output_text
    assert answer.status in ("completed", "incomplete") and answer.error is None and answer.metadata == {"a": "b"}
    assert answer.instructions == "Be brief." and answer.output[0].id.startswith("msg_")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    assert answer.to_dict()["store"] is False


def test_same_as_chat():
    chat = client.chat.completions.create(
        model="phi3:mini", temperature=0, seed=1, max_tokens=12, messages=[{"role": "user", "content": "Tell me about yourself."}]
    )
    assert respond(temperature=0, max_output_tokens=12, extra_body={"seed": 1}).output_text == chat.choices[0].message.content


def test_stream():
    with client.responses.stream(model="phi3:mini", input="Tell me about yourself.") as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [e.type for e in events]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == final.output_text != ""
    numbers = [e.sequence_number for e in respond(stream=True)]
    assert numbers == list(range(len(numbers)))


def test_cut_short():
    answer = respond(max_output_tokens=3)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"


def test_parse():
    answer = client.responses.parse(model="phi3:mini", input="Parse this.", text_format=Candidate, max_output_tokens=300)
    assert isinstance(answer.output_parsed, Candidate)
    assert json.loads(answer.output_text)["years"] == answer.output_parsed.years


@pytest.mark.parametrize("model", ["phi3:mini", "mistral"])
def test_tools_round_trip(model):
    history = [{"role": "user", "content": "Look up Jane."}]
    choice = {"type": "function", "name": "lookup_candidate"}
    answer = respond(history, model=model, tools=[LOOKUP], tool_choice=choice, max_output_tokens=300)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "lookup_candidate" and "name" in json.loads(call.arguments) and call.call_id.startswith("call_")
    history += [item.to_dict() for item in answer.output]
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "a nurse"})
    assert respond(history, model=model, tools=[LOOKUP], tool_choice="none", max_output_tokens=400).output_text


def test_tools_stream():
    events = list(respond("Look up Jane.", tools=[LOOKUP], tool_choice="required", stream=True, max_output_tokens=300))
    arguments = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert len(done) == 1 and done[0].arguments == arguments and "name" in json.loads(arguments)


@pytest.mark.parametrize(
    "more, param",
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
    ],
)
def test_refused(more, param):
    with pytest.raises(openai.BadRequestError) as e:
        client.responses.create(**{"model": "phi3:mini", "input": "x", **more})
    assert e.value.param == param


def test_context_exceeded():
    with pytest.raises(openai.BadRequestError) as e:
        respond("word " * 20000)
    assert e.value.code == "context_length_exceeded"


def test_not_stored():
    id = respond(max_output_tokens=16).id
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(id)


def test_failure_within_stream():
    stage.fault("error-line", After=2, Times=1)
    with pytest.raises(openai.APIError):
        list(respond(stream=True))


def test_abort_cancels():
    stage.fault("hang-mid", After=2, Times=1)
    before = stage.cancelled()
    with respond(stream=True) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                break
    stage.wait_until(lambda: stage.cancelled() == before + 1)
