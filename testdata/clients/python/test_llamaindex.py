"""The suite of LlamaIndex's packages for servers like OpenAI's."""

import openai
import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

import stage


class Candidate(BaseModel):
    """A candidate."""

    years: int


def llm(model="phi3:mini", **more):
    defaults = {"is_chat_model": True, "context_window": 4096, "timeout": 60, "max_retries": 0}
    return OpenAILike(model=model, api_base=stage.BASE, api_key=stage.KEY, **{**defaults, **more})


def embedder(**more):
    return OpenAILikeEmbedding(model_name="nomic-embed-text", api_base=stage.BASE, api_key=stage.KEY, max_retries=0, **more)


def ask(text="Tell me about yourself."):
    return [ChatMessage(role="user", content=text)]


def lookup_candidate(name: str) -> str:
    """Finds a candidate."""
    return name


def test_chat():
    answer = llm("recruit/general").chat([ChatMessage(role="system", content="Be brief."), *ask()])
    assert answer.message.content and answer.raw.model == "recruit/general" and answer.raw.usage.total_tokens > 0
    assert llm(max_tokens=3).chat(ask()).raw.choices[0].finish_reason == "length"


def test_chat_stream():
    parts = list(llm(temperature=0).stream_chat(ask()))
    assert len(parts) > 2 and parts[-1].message.content == "".join(p.delta for p in parts)
    assert parts[-1].message.content == llm(temperature=0).chat(ask()).message.content


def test_complete_by_its_default():
    plain = llm(is_chat_model=False, temperature=0, max_tokens=12)  # /v1/completions
    whole = plain.complete("Hello.")
    assert whole.text and whole.raw.object == "text_completion"
    assert list(plain.stream_complete("Hello."))[-1].text == whole.text


def test_tools_forced():
    tool = FunctionTool.from_defaults(lookup_candidate)
    bound = llm("mistral", is_function_calling_model=True, max_tokens=300)
    answer = bound.chat_with_tools([tool], user_msg="Look up Jane.", tool_required=True)
    [call] = bound.get_tool_calls_from_response(answer)
    assert call.tool_name == "lookup_candidate" and set(call.tool_kwargs) == {"name"}


def test_structured():
    answer = llm("mistral", is_function_calling_model=True, max_tokens=300).as_structured_llm(Candidate).chat(ask("Parse."))
    assert isinstance(answer.raw, Candidate)
    by_format = llm(max_tokens=300, additional_kwargs={"response_format": {"type": "json_schema", "json_schema": {
        "name": "candidate", "strict": True, "schema": {**Candidate.model_json_schema(), "additionalProperties": False}}}})
    program = LLMTextCompletionProgram.from_defaults(output_cls=Candidate, prompt_template_str="Parse.", llm=by_format)
    assert isinstance(program(), Candidate)


def test_embeddings():
    nurse, cook = embedder().get_text_embedding_batch(["a nurse", "a cook"])
    assert len(nurse) > 8 and nurse != cook
    assert embedder().get_query_embedding("a nurse") == pytest.approx(nurse, abs=1e-6)
    assert len(embedder(dimensions=8).get_text_embedding("a nurse")) == 8


def test_index_and_question():
    index = VectorStoreIndex.from_documents([Document(text=t) for t in ("Jane is a nurse.", "John is a cook.")], embed_model=embedder())
    answer = index.as_query_engine(llm=llm(), similarity_top_k=1).query("Jane is a nurse.")
    assert str(answer) and [n.text for n in answer.source_nodes] == ["Jane is a nurse."]


def test_errors():
    with pytest.raises(openai.NotFoundError):
        llm("no-such-model").chat(ask())
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        llm().chat(ask("word " * 20000))
    with pytest.raises(openai.BadRequestError):
        OpenAILikeEmbedding(model_name="phi3:mini", api_base=stage.BASE, api_key=stage.KEY, max_retries=0).get_text_embedding("a nurse")


def test_failure_within_stream():
    stage.fault("error-line", after=3, times=1)
    with pytest.raises(openai.APIError):
        list(llm(additional_kwargs={"seed": 61}).stream_chat(ask()))
