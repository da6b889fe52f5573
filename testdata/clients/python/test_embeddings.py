"""OpenAI's own Python package on embeddings."""

import base64
import struct

import openai
import pytest

import stage

client = openai.OpenAI(base_url=stage.BASE, api_key=stage.KEY, max_retries=0)
MODEL = "nomic-embed-text"


def embed(texts, model=MODEL, **more):
    return client.embeddings.create(model=model, input=texts, **more)


def test_formats():
    coded = embed(["a nurse", "a cook"])  # the package asks for base64 and decodes it
    plain = embed(["a nurse", "a cook"], encoding_format="float")
    raw = client.post("/embeddings", body={"model": MODEL, "input": ["a nurse", "a cook"], "encoding_format": "base64"}, cast_to=object)
    bytes_ = [base64.b64decode(d["embedding"]) for d in raw["data"]]
    for i in range(2):
        assert coded.data[i].index == plain.data[i].index == i
        assert coded.data[i].embedding == pytest.approx(plain.data[i].embedding, abs=1e-7)
        assert list(struct.unpack(f"<{len(bytes_[i]) // 4}f", bytes_[i])) == coded.data[i].embedding
    assert coded.data[0].embedding != coded.data[1].embedding
    assert coded.model == MODEL and coded.usage.prompt_tokens == coded.usage.total_tokens > 0


def test_inputs():
    text = embed("hello world").data[0].embedding
    assert embed([15339, 1917]).data[0].embedding == text
    both = embed([[15339, 1917], [15339]]).data
    assert both[0].embedding == pytest.approx(text, abs=1e-6) and both[1].embedding == pytest.approx(embed("hello").data[0].embedding, abs=1e-6)
    many = embed(["hello world"] * 600)
    assert [d.index for d in many.data] == list(range(600)) and many.data[599].embedding == pytest.approx(text, abs=1e-6)


def test_dimensions():
    short = embed("hello world", dimensions=8).data[0].embedding
    assert len(short) == 8 and sum(x * x for x in short) == pytest.approx(1, abs=1e-4)
    with pytest.raises(openai.BadRequestError) as e:
        embed("hello world", dimensions=100_000)
    assert e.value.param == "dimensions"


@pytest.mark.parametrize(
    "model, texts, code, param",
    [
        (MODEL, "", "invalid_value", "input"),
        (MODEL, [], "invalid_value", "input"),
        (MODEL, ["x", ""], "invalid_value", "input[1]"),
        (MODEL, "word " * 20000, "context_length_exceeded", "input"),
        ("recruit-auto", "x", "invalid_value", "model"),
        ("mistral", "x", "invalid_value", "model"),
    ],
)
def test_refused(model, texts, code, param):
    with pytest.raises(openai.BadRequestError) as e:
        embed(texts, model=model)
    assert e.value.code == code and e.value.param == param


def test_unknown_model():
    with pytest.raises(openai.NotFoundError):
        embed("x", model="nobody")
