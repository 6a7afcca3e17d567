"""The captioner that sends prompts to an OpenAI-compatible endpoint: vLLM, llama.cpp, a hosted service.

Error handling: the official client retries each request (408, 409, 429, 5xx, timeouts, broken connections), after the
time in Retry-After (up to two minutes) or with growing pauses. A request without an answer after all retries counts
as one attempt of its sample, with the reason. The stage stops with an error, and does not commit the open shard, if
only template captions would follow:

- at once, if no connection can be made, or if the endpoint refuses the key or the model (401, 403, 404);
- after ``give_up_after`` consecutive requests without an answer;
- at the end of a batch's first round, if the endpoint has answered no request since the back end started.

A refused request (400, 422) counts as a request without an answer. Either the options are wrong and all requests are
refused, or the server cannot process this prompt, for example because it is too long.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from magicseg.backends import DescribeRequest, Description, Rejection
from magicseg.core.errors import BackendError
from magicseg.core.text import printable
from magicseg.stages.describe.writer import RECIPES, NoAnswer, Prompt, WritingOptions, write_descriptions

if TYPE_CHECKING:
    import openai

RECIPE = 1  # incremented whenever the requests for the same prompts change

# The address of the server that this process's cluster task has started: it replaces `base_url`.
SERVER_VARIABLE = "MAGICSEG_CAPTION_SERVER"

_SEED_BITS = 31  # all servers accept seeds of this length
_REFUSALS = {
    401: "the key is wrong or missing: see describe.options.api_key_env",
    403: "the key does not allow this: see describe.options.api_key_env",
    404: "correct describe.options.base_url (it usually ends in /v1) or describe.options.model",
}
_REFUSED_REQUESTS = (400, 422)


class OpenAIOptions(WritingOptions):
    """The endpoint, the model, and the limits for requests."""

    # The server's address, limits and retries do not affect captions; the model does.
    NEUTRAL: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "api_key_env", "concurrency", "timeout", "retries", "give_up_after"}
    )

    base_url: str | None = Field(
        None, description="as http://127.0.0.1:8000/v1; null: the server of the cluster task"
    )
    model: str = Field(min_length=1, description="as the endpoint calls it; name weights that do not change")
    api_key_env: str | None = Field(None, description="the environment variable that holds the key, if required")
    concurrency: int = Field(8, ge=1, le=256, description="concurrent requests of each worker")
    timeout: float = Field(120.0, gt=0, le=3600, description="time limit for a whole request, in seconds")
    retries: int = Field(5, ge=0, le=50, description="retries of each request, with growing pauses")
    give_up_after: int = Field(8, ge=1, description="stop after this many consecutive requests without an answer")
    length_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="the endpoint's name for max_new_tokens; some hosted models accept only the second"
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="additional JSON fields of each request; null removes a field, as in {temperature: null}",
    )

    @field_validator("base_url")
    @classmethod
    def _is_plain(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        if "@" in value or "?" in value:
            raise ValueError("must hold neither a password nor a key: it is stored; use api_key_env")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not (value.isidentifier() and value == value.upper()):
            raise ValueError("must be the NAME of an environment variable in capitals, never the key itself")
        return value


class OpenAICaptioner:
    """Back end of the describe stage. The fingerprint contains the model's name, because its weights are unknown."""

    Options = OpenAIOptions
    LIBRARIES = ("openai",)

    @classmethod
    def identity(cls, options: OpenAIOptions) -> Mapping[str, str | int]:
        """Return the numbers of all recipes. The weights cannot be identified."""
        return {"endpoint": RECIPE, **RECIPES}

    def __init__(self, settings: object, options: OpenAIOptions) -> None:
        self._options = options
        self._address = _address(options)
        self._key = _key(options)
        self._health = _Health(options, self._address, secret=self._key)

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Description | Rejection]:
        """Return one description per request."""
        return write_descriptions(requests, self._options, self._complete)

    def _complete(self, prompts: Sequence[Prompt]) -> list[str | NoAnswer]:
        answers = asyncio.run(self._answers(prompts))
        self._health.refuse_silence()
        return answers

    async def _answers(self, prompts: Sequence[Prompt]) -> list[str | NoAnswer]:
        import openai

        from magicseg.stages.describe.http_client import BoundedClient

        options = self._options
        turns = asyncio.Semaphore(options.concurrency)
        async with openai.AsyncOpenAI(
            base_url=self._address,
            api_key=self._key or "none",  # the client requires a key; local servers ignore it
            timeout=options.timeout,
            max_retries=options.retries,
            http_client=BoundedClient(options.timeout),
        ) as client:

            async def in_turn(prompt: Prompt) -> str | NoAnswer:
                async with turns:
                    return await self._answer(client, prompt)

            return await asyncio.gather(*map(in_turn, prompts))

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        """Return a request's fields except model and messages, without fields that ``extra_body`` sets to null."""
        fields = {
            "temperature": self._options.temperature,
            "top_p": self._options.top_p,
            "seed": prompt.seed % 2**_SEED_BITS,
            self._options.length_field: self._options.max_new_tokens,
            **self._options.extra_body,
        }
        return {name: value for name, value in fields.items() if value is not None}

    async def _answer(self, client: "openai.AsyncOpenAI", prompt: Prompt) -> str | NoAnswer:
        import openai

        if self._health.dead:  # skip requests that still wait for their turn
            return NoAnswer("endpoint-dead")
        try:
            completion = await client.chat.completions.create(
                model=self._options.model,
                messages=[{"role": "user", "content": prompt.text}],
                extra_body=self._body(prompt),
            )
        except openai.APIStatusError as error:
            if error.code == "content_filter":
                self._health.answered()
                return NoAnswer("refused")
            if error.status_code in _REFUSED_REQUESTS:
                return self._health.refused(error.status_code, error.message)
            if error.status_code in _REFUSALS:
                self._health.died(f"answered {error.status_code}: {error.message}", _REFUSALS[error.status_code])
            return self._health.unanswered(f"http-{error.status_code}")
        except openai.APITimeoutError:
            return self._health.unanswered("timeout")
        except openai.APIConnectionError as error:
            if _never_connected(error):
                self._health.died(
                    f"cannot be reached: {error.__cause__ or error}", "is it running, and the address right?"
                )
            return self._health.unanswered("broken-connection")
        except (openai.OpenAIError, ValueError):  # the body is not JSON, or not a completion
            return self._health.unanswered("broken-answer")
        return self._text_of(completion)

    def _text_of(self, completion: Any) -> str | NoAnswer:
        """Return the text of a completion. The client does not validate responses, so any type may occur."""
        try:
            choice = completion.choices[0]
            text, ended = choice.message.content, choice.finish_reason
        except (AttributeError, IndexError, TypeError, KeyError):
            return self._health.unanswered("wrong-schema")
        if ended == "content_filter" or (text is None and getattr(choice.message, "refusal", None)):
            self._health.answered()
            return NoAnswer("refused")
        if not isinstance(text, str):
            return self._health.unanswered("wrong-schema")
        self._health.answered()
        return NoAnswer("cut-off") if ended == "length" else text


class _Health:
    """Track over all requests whether the endpoint is alive."""

    def __init__(self, options: OpenAIOptions, address: str, *, secret: str) -> None:
        self._options, self._address = options, address
        self._secret = secret
        self._answered = 0
        self._silent_in_a_row = 0
        self._last_reason = ""
        self._refusal = ""
        self._error: BackendError | None = None

    @property
    def dead(self) -> bool:
        """Whether further requests are useless."""
        return self._error is not None

    def answered(self) -> None:
        """Record an answer, usable or not."""
        self._answered += 1
        self._silent_in_a_row = 0
        self._refusal = ""

    def refused(self, status: int, message: str) -> NoAnswer:
        """Record a request that the endpoint refused."""
        self._refusal = f"answered {status}: {message}"
        return self.unanswered(f"http-{status}")

    def unanswered(self, reason: str) -> NoAnswer:
        """Record a request without an answer after all retries."""
        self._silent_in_a_row += 1
        self._last_reason = reason
        if self._silent_in_a_row >= self._options.give_up_after:
            self._give_up(f"{self._options.give_up_after} requests in a row")
        return NoAnswer(reason)

    def died(self, what: str, hint: str) -> None:
        """Record that the endpoint cannot be used."""
        if self._secret:  # a server may quote it
            what = what.replace(self._secret, "***")
        self._error = self._error or BackendError(f"{self._address} {printable(what, 500)}", hint=hint)

    def refuse_silence(self) -> None:
        """Raise BackendError if the endpoint is dead or has never answered."""
        if not self._answered and not self.dead:
            self._give_up("any request")
        if self._error is not None:
            raise self._error

    def _give_up(self, requests: str) -> None:
        if self._refusal:
            self.died(
                f"refused {requests}; it {self._refusal}",
                "correct describe.options if the endpoint does not accept one of them; "
                "extra_body={temperature: null} removes a field; if single prompts are too long for the endpoint, "
                "raise its context length, or describe.options.give_up_after",
            )
            return
        self.died(
            f"gave no answer to {requests}, each tried {self._options.retries + 1} times: {self._last_reason}",
            "check the endpoint, then run the same command again: committed shards are kept "
            "(describe.options: timeout, retries, give_up_after)",
        )


def _address(options: OpenAIOptions) -> str:
    """Return the endpoint's base URL. Raises BackendError if there is no endpoint."""
    address = os.environ.get(SERVER_VARIABLE) or options.base_url
    if address is None:
        raise BackendError(
            "describe.options.base_url is not set, and only tasks on a cluster start a server",
            hint="start a server, and set describe.options.base_url in the run's magicseg.yaml to its address",
        )
    return address


def _key(options: OpenAIOptions) -> str:
    """Return the key from the environment; "" if no variable is named.

    Raises: BackendError if the variable is not set.
    """
    if options.api_key_env is None:
        return ""
    key = os.environ.get(options.api_key_env, "")
    if not key.strip():
        raise BackendError(
            f"the environment variable {options.api_key_env} (describe.options.api_key_env) is not set",
            hint=f"export {options.api_key_env}=...   # where the stage runs",
        )
    return key.strip()


def _never_connected(error: "openai.APIConnectionError") -> bool:
    """Return whether no connection was made: unknown host, no route, or connection refused."""
    return type(error.__cause__).__name__ == "ConnectError"
