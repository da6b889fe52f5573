"""The suite of LangChain's package for OpenAI."""

from typing import Annotated

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

import stage


Word = Annotated[str, Field(max_length=20)]  # the test models' texts have no end


class Candidate(BaseModel):
    """A candidate."""

    name: Word
    years: int


def llm(model="phi3:mini", **more):
    return ChatOpenAI(model=model, base_url=stage.BASE, api_key=stage.KEY, max_retries=more.pop("max_retries", 0), **more)


def lookup_candidate(name: Word, limit: int) -> str:
    """Finds a candidate."""
    return name * limit


def test_invoke():
    answer = llm().invoke([SystemMessage("Be brief."), HumanMessage("Hello.")])
    assert answer.content and answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["total_tokens"] > 0 and answer.response_metadata["model_name"] == "phi3:mini"


def test_max_tokens_by_its_new_name():
    answer = llm(max_tokens=3).invoke("Hello.")
    assert answer.usage_metadata["output_tokens"] == 3 and answer.response_metadata["finish_reason"] == "length"


def test_stream():
    whole = AIMessageChunk("")
    for chunk in llm().stream("Hello."):
        whole += chunk
    assert whole.content and whole.response_metadata["finish_reason"] == "stop"


def test_stream_usage():
    chunks = list(llm(stream_usage=True).stream("Hello."))
    assert len([c for c in chunks if c.usage_metadata]) == 1


def test_batch():
    assert all(a.content for a in llm().batch(["One.", "Two.", "Three."]))


@pytest.mark.parametrize("model", ["mistral", "phi3:mini"])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", pytest.param("json_mode", marks=stage.simulated)])
def test_structured_output(model, method):
    class Anything(BaseModel):
        model_config = {"extra": "allow"}

    shape = Anything if method == "json_mode" else Candidate
    bound = llm(model).with_structured_output(shape, method=method)
    assert isinstance(bound.invoke("Answer in JSON."), shape)
    if method == "json_schema":
        assert isinstance(list(bound.stream("Answer in JSON."))[-1], shape)


@stage.simulated
def test_tools():
    bound = llm("mistral").bind_tools([lookup_candidate])
    answer = bound.invoke("Use the lookup tool.")
    [call] = answer.tool_calls
    assert call["name"] == "lookup_candidate" and set(call["args"]) == {"name", "limit"} and not answer.invalid_tool_calls
    result = ToolMessage(lookup_candidate("x", 2), tool_call_id=call["id"])
    assert bound.invoke([HumanMessage("Use the lookup tool."), answer, result]).content


@pytest.mark.parametrize("choice", ["any", "lookup_candidate"])
def test_tools_forced_stream(choice):
    whole = AIMessageChunk("")
    for chunk in llm().bind_tools([lookup_candidate], tool_choice=choice).stream("Hello."):
        whole += chunk
    assert [c["name"] for c in whole.tool_calls] == ["lookup_candidate"] and not whole.invalid_tool_calls


def test_errors():
    with pytest.raises(openai.NotFoundError):
        llm("no-such-model").invoke("Hello.")
    with pytest.raises(openai.BadRequestError) as e:
        llm().invoke("word " * 20000)
    assert "maximum context length" in str(e.value)
    stage.fault("queue-full", times=1)
    with pytest.raises(openai.RateLimitError):
        llm(seed=21).invoke("Hello.")


def test_failure_within_stream():
    stage.fault("error-line", after=3, times=1)
    with pytest.raises(openai.APIError):
        list(llm(seed=22).stream("Hello."))


def test_abort_cancels():
    before = stage.cancelled()
    stage.fault("hang-mid", after=2)
    answer = llm(seed=23).stream("Hello.")
    next(answer)
    answer.close()
    stage.wait_until(lambda: stage.cancelled() == before + 1)


@pytest.mark.parametrize("tokens", [True, False])
def test_embeddings(tokens):
    embedder = OpenAIEmbeddings(model="nomic-embed-text", base_url=stage.BASE, api_key=stage.KEY, max_retries=0, check_embedding_ctx_length=tokens)
    nurse, cook = embedder.embed_documents(["a nurse", "a cook"])
    assert len(nurse) == len(cook) > 8 and nurse != cook
    # Tokens of OpenAI's vocabulary mean the text that they came from.
    assert embedder.embed_query("a nurse") == pytest.approx(nurse, abs=1e-6)
    plain = openai.OpenAI(base_url=stage.BASE, api_key=stage.KEY).embeddings.create(model="nomic-embed-text", input="a nurse")
    assert nurse == pytest.approx(plain.data[0].embedding, abs=1e-6)
