"""The suite of Ollama's own package for Python."""

import asyncio

import ollama
import pytest

import stage

client = ollama.Client(host=stage.URL, headers={"Authorization": "Bearer " + stage.KEY})
MODEL = "phi3:mini"
CANDIDATE = {"type": "object", "properties": {"years": {"type": "integer", "minimum": 0, "maximum": 60}}, "required": ["years"], "additionalProperties": False}


def ask(text="Tell me about yourself."):
    return [{"role": "user", "content": text}]


def lookup_candidate(name: str) -> str:
    """Finds a candidate.

    Args:
      name: the name of the candidate
    """
    return name


def test_chat():
    answer = client.chat("recruit/general", ask())
    assert answer.model == "recruit/general" and answer.message.role == "assistant" and answer.message.content
    assert answer.done and answer.done_reason == "stop" and answer.eval_count > 0 and answer.prompt_eval_count > 0
    assert answer.total_duration > 0 and answer.created_at
    cut = client.chat(MODEL, ask(), options={"num_predict": 3, "temperature": 0.5})
    assert cut.done_reason == "length" and cut.eval_count == 3


def test_chat_stream():
    options = {"temperature": 0, "seed": 1}
    parts = list(client.chat(MODEL, ask(), stream=True, options=options))
    whole = client.chat(MODEL, ask(), options=options)
    assert len(parts) > 2 and "".join(p.message.content for p in parts) == whole.message.content
    assert [p.done for p in parts] == [False] * (len(parts) - 1) + [True] and parts[-1].eval_count == whole.eval_count


def test_format():
    answer = client.chat(MODEL, ask("Answer in JSON."), format=CANDIDATE, options={"num_predict": 300})
    assert '"years"' in answer.message.content
    assert client.generate(MODEL, "Answer in JSON.", format="json", options={"num_predict": 300}).response.startswith("{")


def test_generate():
    options = {"temperature": 0, "seed": 1}
    parts = list(client.generate(MODEL, "Hello.", system="Be brief.", stream=True, options=options))
    whole = client.generate(MODEL, "Hello.", system="Be brief.", options=options)
    assert "".join(p.response for p in parts) == whole.response != "" and parts[-1].done and whole.done_reason == "stop"
    assert client.generate(MODEL, "").done_reason == "load"


@stage.simulated
def test_tools():
    messages = ask("Use the lookup tool.")
    answer = client.chat("mistral", messages, tools=[lookup_candidate])
    [call] = answer.message.tool_calls
    assert call.function.name == "lookup_candidate" and set(call.function.arguments) == {"name"}
    messages += [answer.message, {"role": "tool", "tool_name": "lookup_candidate", "content": "a nurse"}]
    assert client.chat("mistral", messages).message.content
    streamed = [c for p in client.chat("mistral", ask("Use the lookup tool."), tools=[lookup_candidate], stream=True) for c in p.message.tool_calls or []]
    assert [c.function.name for c in streamed] == ["lookup_candidate"]


def test_lists():
    names = [m.model for m in client.list().models]
    assert {"recruit-auto", "recruit/resume_parsing", MODEL, "mistral"} <= set(names)
    shown = client.show("recruit/report_generation")
    assert shown.details.family and "num_ctx" in shown.parameters and "completion" in shown.capabilities
    client.chat(MODEL, ask(), options={"num_predict": 1})
    assert MODEL in [m.model for m in client.ps().models]


def test_errors():
    for wrong, status, says in [
        (lambda: client.chat("no-such-model", ask()), 404, "no-such-model"),
        (lambda: client.chat(MODEL, ask("word " * 20000)), 400, "context"),
        (lambda: client.chat(MODEL, ask(), options={"temperature": "hot"}), 400, "temperature"),
        (lambda: client.show("no-such-model"), 404, "no-such-model"),
        (lambda: client.pull("mistral"), 403, "server itself"),
        (lambda: client.delete("mistral"), 403, "server itself"),
        (lambda: client.copy("mistral", "other"), 403, "server itself"),
        (lambda: ollama.Client(host=stage.URL, headers={"Authorization": "Bearer not-the-key"}).list(), 401, "key"),
    ]:
        with pytest.raises(ollama.ResponseError, match=says) as e:
            wrong()
        assert e.value.status_code == status


def test_stream_of_an_unknown_model():
    with pytest.raises(ollama.ResponseError) as e:
        list(client.chat("no-such-model", ask(), stream=True))
    assert e.value.status_code == 404


def test_failure_within_stream():
    stage.fault("error-line", after=3, times=1)
    with pytest.raises(ollama.ResponseError):
        list(client.chat(MODEL, ask(), stream=True, options={"seed": 31}))


def test_abort_cancels():
    before = stage.cancelled()
    stage.fault("hang-mid", after=2)
    answer = client.chat(MODEL, ask(), stream=True, options={"seed": 32})
    next(answer)
    answer.close()
    stage.wait_until(lambda: stage.cancelled() == before + 1)


def test_async():
    async def run():
        other = ollama.AsyncClient(host=stage.URL, headers={"Authorization": "Bearer " + stage.KEY})
        text = ""
        async for part in await other.chat(MODEL, ask(), stream=True, options={"num_predict": 8}):
            text += part.message.content
        return text

    assert asyncio.run(run())


def test_embed():
    answer = client.embed("nomic-embed-text", ["a nurse", "a cook"])
    assert len(answer.embeddings) == 2 and answer.embeddings[0] != answer.embeddings[1] and answer.prompt_eval_count > 0
    [alone] = client.embed("nomic-embed-text", "a cook").embeddings
    assert list(alone) == pytest.approx(list(answer.embeddings[1]), abs=1e-6)
    assert client.embeddings("nomic-embed-text", "a cook").embedding
    with pytest.raises(ollama.ResponseError) as e:
        client.embed(MODEL, "a nurse")
    assert e.value.status_code == 400
