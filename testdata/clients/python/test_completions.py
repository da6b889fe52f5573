"""OpenAI's own Python package on completions."""

import openai
import pytest

import stage

client = openai.OpenAI(base_url=stage.BASE, api_key=stage.KEY, max_retries=0)


def complete(prompt="Tell me about yourself.", model="phi3:mini", **more):
    return client.completions.create(model=model, prompt=prompt, **more)


def test_completion():
    answer = complete(model="recruit/general", max_tokens=8)
    assert answer.model == "recruit/general" and answer.id.startswith("cmpl-") and answer.object == "text_completion"
    assert answer.choices[0].text and answer.choices[0].finish_reason in ("stop", "length") and answer.choices[0].logprobs is None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_prompts_times_n():
    answer = complete(["A nurse.", "A cook."], n=2, seed=1, max_tokens=8, echo=True)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert [c.text.split(".")[0] for c in answer.choices] == ["A nurse", "A nurse", "A cook", "A cook"]
    by_tokens = complete([[32, 29198, 13]], echo=True, max_tokens=4)  # cl100k_base
    assert by_tokens.choices[0].text.startswith("A nurse.")


def test_stream():
    whole = complete(temperature=0, seed=1, max_tokens=12)
    chunks = list(complete(temperature=0, seed=1, max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert not chunks[-1].choices and chunks[-1].usage.total_tokens > 0
    assert len({c.id for c in chunks}) == 1


def test_suffix():
    assert complete("func add(", model="coder", suffix="return a + b }", max_tokens=8).choices[0].text
    with pytest.raises(openai.BadRequestError) as e:
        complete(suffix="the end")
    assert e.value.param == "suffix"


@pytest.mark.parametrize(
    "prompt, code", [("", "invalid_value"), ([], "invalid_value"), ("word " * 20000, "context_length_exceeded")]
)
def test_refused(prompt, code):
    with pytest.raises(openai.BadRequestError) as e:
        complete(prompt)
    assert e.value.code == code and e.value.param == "prompt"


def test_failure_within_stream():
    stage.fault("error-line", After=2, Times=1)
    with pytest.raises(openai.APIError):
        list(complete(stream=True))


def test_abort_cancels():
    stage.fault("hang-mid", After=2, Times=1)
    before = stage.cancelled()
    with complete(stream=True) as stream:
        next(iter(stream))
    stage.wait_until(lambda: stage.cancelled() == before + 1)
