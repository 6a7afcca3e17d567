"""Language models and endpoints that never finish, or return control characters."""

import json
import re
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.chat_server import GOOD, BadServer, Reply, completion
from magicseg.backends import DescribeRequest
from magicseg.core.errors import BackendError
from magicseg.labels import Label
from magicseg.stages.describe import chat, http_client
from magicseg.stages.describe.answer import (
    UnusableAnswer,
    _without_fence,
    _without_thoughts,
    check_draft,
    read_answer,
)
from magicseg.stages.describe.chat import ChatTemplate
from magicseg.stages.describe.endpoint import OpenAICaptioner

CAT = Label(id=1, name="cat")
LONG = 1 << 19


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Shorten the client's pauses to a thousandth."""
    import openai._base_client as client

    monkeypatch.setattr(client, "INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(client, "MAX_RETRY_DELAY", 0.01)


def captioner(server, **more):
    settings = {"base_url": server.url, "model": "tiny", "retries": 0, "timeout": 60, **more}
    return OpenAICaptioner(None, OpenAICaptioner.Options.model_validate(settings))


def requests(count=1):
    return [DescribeRequest(index=index, labels=(CAT,), seed=index + 50) for index in range(count)]


ENDLESS = [
    "<think>" * (LONG // 8),
    "<think>" * (LONG // 16) + "</think>",
    " \n" * (LONG // 2) + "<think>",
    "```json\n" + "\n" * LONG,
    "```json\n" + " \n" * (LONG // 2) + "x",
    "```\n" + "``" * (LONG // 2),
    "```" + " \t" * (LONG // 2),
    "1. a" + " " * LONG + "b",
    "1." + " " * LONG,
    "1. a\n" * (LONG // 8),
    '"' * LONG,
    "“" * LONG,
    "[" * LONG,
    '{"with": ' * (LONG // 10),
    '{"with": ' + "9" * LONG + "}",
    json.dumps({"with": "a cat " * (LONG // 8), "without": "a sofa"}),
    json.dumps({"with": '"' * (LONG // 4), "without": "“" * (LONG // 4)}),
    "a" * (http_client.MOST_BYTES + 1),
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ENDLESS, ids=lambda text: repr(text[:12]))
def test_parsing_an_answer_takes_linear_time(text):
    with pytest.raises(UnusableAnswer):
        check_draft(read_answer(text), [CAT], max_tokens=75)


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "```", "json", "\n", " ", "\t", "a", "{}"]), max_size=12)


@given(PIECES.map("".join))
def test_reasoning_and_fences_are_found_like_with_regular_expressions(text):
    thinking = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
    fenced = re.compile(r"\s*```(?:json)?[ \t]*\n(?P<inside>.*?)\n?[ \t]*```\s*", re.DOTALL)
    bare = thinking.sub("", text, count=1).strip()
    assert _without_thoughts(text).strip() == bare
    match = fenced.fullmatch(bare)
    assert _without_fence(bare).strip() == (match["inside"].strip() if match else bare)


@pytest.mark.parametrize(
    "character", ["\0", "\x1b", "\x07", "\x7f", "\x9b", "\u200e", "\u202e", "\u2066", "\ufeff\0", "\x1b[2J", "\b"]
)
def test_a_caption_with_control_characters_is_refused(character):
    answer = json.dumps({"with": f"A grey cat {character}on a red sofa.", "without": "A red sofa by a window."})
    with pytest.raises(UnusableAnswer, match="control-character"):
        check_draft(read_answer(answer), [CAT], max_tokens=75)
    with BadServer(lambda number, body: Reply(completion(answer))) as server:
        (description,) = captioner(server, attempts=2).describe(requests())
    assert description.quality["source"] == "template"
    assert description.quality["rejected"] == "control-character,control-character"


@pytest.mark.parametrize(
    "text", ["A grey cat on a sofa \U0001f408", "Une chatte près d'un canapé", "貓 on a red sofa"]
)
def test_captions_may_contain_letters_and_symbols_of_all_languages(text):
    with pytest.raises(UnusableAnswer) as refused:
        check_draft(read_answer(json.dumps({"with": text, "without": "x"})), [CAT], max_tokens=75)
    assert refused.value.reason != "control-character"


class Trickle:
    """A server that sends a valid answer, with one byte every 0.05 s from a given position on."""

    def __init__(self, start):
        body = json.dumps(completion()).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self._data, self._start = head + body, start if start >= 0 else len(head) + 5
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._socket.close()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        with connection:
            try:
                connection.recv(1 << 16)
                connection.sendall(self._data[: self._start])
                for position in range(self._start, len(self._data)):
                    connection.sendall(self._data[position : position + 1])
                    time.sleep(0.05)
            except OSError:
                return


@pytest.mark.timeout(30)
@pytest.mark.parametrize("start", [0, 20, -1])
def test_a_slow_trickle_of_bytes_does_not_extend_the_deadline(start):
    with Trickle(start) as server, pytest.raises(BackendError, match=r"gave no answer to any request.*timeout"):
        captioner(server, timeout=0.5, give_up_after=99, attempts=1).describe(requests())


@pytest.mark.timeout(30)
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_answer_without_end_is_cut_off(encoding, monkeypatch):
    import gzip

    monkeypatch.setattr(http_client, "MOST_BYTES", 1 << 20)
    body = b" " * (64 << 20)
    body = gzip.compress(body, 1) if encoding == "gzip" else body
    reply = Reply(body, headers={"Content-Encoding": encoding})
    with BadServer(lambda number, sent: reply) as server, pytest.raises(BackendError, match="broken-connection"):
        captioner(server, timeout=20).describe(requests())


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_control_characters_in_a_servers_message_are_escaped(status):
    message = "no\x1b[2J\x1b]0;title\x07\nhint: rm -r \u202ex" + "x" * 10_000
    reply = Reply({"error": {"message": message}}, status=status)
    with BadServer(lambda number, body: reply) as server, pytest.raises(BackendError) as stopped:
        captioner(server).describe(requests())
    assert stopped.value.message.isprintable()
    assert "\\x1b[2J" in stopped.value.message
    assert len(stopped.value.message) < 1000


class Tokenizer:
    """The part of a tokenizer that a chat template needs."""

    special_tokens_map = {"eos_token": "<end>"}  # noqa: RUF012

    def __init__(self, template):
        self._template = template

    def get_chat_template(self, chosen, tools):
        return chosen or self._template


LOOPS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}",
    "{{ 9 ** (9 ** (9 ** 9)) % 2 }}",
    "{% set n = namespace(x='a') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{{ 'a' * 99999999999 }}",
    "{{ 'a'|center(9999999999) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
]
FAULTS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__['os'].system('true') }}",
    "{% include '/etc/passwd' %}",
    "{% for %}",
    "{{ raise_exception('no \x1b[2J') }}",
    "{{ 'a' * 2000000 }}",
]


@pytest.fixture(scope="module")
def rendering():
    """Return a function `rendering(template)`. Its process is shared by tests until one of them ends it."""
    kept = ChatTemplate(Tokenizer(""), {"more": 1})
    kept.render(["hello"])

    def render(template, *prompts):
        kept._request["template"] = template
        return kept.render(prompts or ["hello"])

    return render


@pytest.mark.slow
@pytest.mark.parametrize("template", LOOPS)
def test_a_chat_template_without_end_is_stopped(rendering, template, monkeypatch):
    monkeypatch.setattr(chat, "DEADLINE", 2.0)
    with pytest.raises(BackendError, match="chat template") as stopped:
        rendering(template)
    assert stopped.value.hint


@pytest.mark.parametrize("template", FAULTS)
def test_a_failing_chat_template_gives_an_error_with_the_reason(rendering, template):
    with pytest.raises(BackendError, match="chat template fails") as stopped:
        rendering(template)
    assert stopped.value.message.isprintable()


def test_a_valid_chat_template_is_rendered_like_in_transformers(rendering):
    template = "{{ messages[0].content }}|{{ eos_token }}|{{ more }}"
    assert rendering(template, "a\n\u2028b", "貓") == ["a\n\u2028b|<end>|1", "貓|<end>|1"]
    assert rendering(template, GOOD) == [f"{GOOD}|<end>|1"]
