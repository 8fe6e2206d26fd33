"""Client for a server of exported adapters: asks an OpenAI-compatible server for each draw's prediction, and averages them."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPException, HTTPResponse
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import torch

from swag_trainer.adapters.export import AdapterIndex
from swag_trainer.errors import SwagError, shortened
from swag_trainer.prediction.predictive import Predictive

_MOST_BYTES = 64 * 1024**2
_PIECE = 2**16
_ROUNDING = 0.01  # of a log-probability above 0, in half precision
# What urllib and json raise for a reply that breaks off or is none; ValueError: no JSON.
_FAILURES = (HTTPException, OSError, RecursionError, ValueError)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would send the key to whatever host the server names."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request, so that the redirect is an error."""


class ServedPosterior:
    """Averaged predictions of the adapters that `swag_trainer.export_adapters` wrote and a server holds.

    Each adapter is asked for one token and for the log-probabilities of the likeliest tokens in its place. These are exact for adapters of
    any kind; the log-probabilities of a prompt's own tokens, which some servers give too, are wrong for an adapter on ``lm_head``
    (vllm-project/vllm#51594), and are not asked for.

    Args:
        url: Of the server's OpenAI-compatible interface, such as "http://localhost:8000/v1".
        adapters: The folder of the adapters, for its index; or the index. The server knows each adapter by the name in it.
        api_key: Sent as a bearer token; it is in no error.
        chat: Ask the chat interface, which puts each prompt into the chat template as the user's message; the only one of TGI that gives
            log-probabilities. Otherwise prompts are continued as they are.
        num_logprobs: How many of the likeliest tokens to ask for. vLLM gives 20 at most, unless it was started with --max-logprobs.
        max_workers: How many requests are under way at once; the server batches them.
        timeout: Seconds to wait for a reply, and then for the whole of it.

    Attributes:
        index: What was exported.

    Raises:
        SwagError: The address is no http or https address, the key cannot be sent, or a number is out of range.
    """

    def __init__(
        self,
        url: str,
        adapters: str | Path | AdapterIndex,
        *,
        api_key: str | None = None,
        chat: bool = False,
        num_logprobs: int = 20,
        max_workers: int = 16,
        timeout: float = 60.0,
    ) -> None:
        try:
            parts = urlsplit(url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # of a port that is no number, or of brackets that are not closed
            is_address = False
        if not is_address or not url.isprintable() or " " in url:
            raise SwagError(
                f"The address of a server begins with http:// or https://, as http://localhost:8000/v1 does; got {shortened(repr(url))}."
            )
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise SwagError("The api_key has characters that a header cannot hold. Does it end in a line break?")
        if num_logprobs < 1 or max_workers < 1 or not timeout > 0:
            raise SwagError(f"num_logprobs={num_logprobs}, max_workers={max_workers} and timeout={timeout} must be above 0.")
        self.index = adapters if isinstance(adapters, AdapterIndex) else AdapterIndex.read(adapters)
        self._url = f"{url.rstrip('/')}/{'chat/completions' if chat else 'completions'}"
        self._shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
        self._key, self._chat, self._count = api_key, chat, num_logprobs
        self._workers, self._timeout = max_workers, timeout

    def predict(self, prompts: Sequence[str], answers: Sequence[str]) -> Predictive:
        """Average the probabilities of the answers over the draws.

        Args:
            prompts: N texts, each up to where its answer begins.
            answers: C tokens that the answer may be, as the server spells them: letters, or names of classes of one token each, with the
                space before them where the tokenizer has it (" A").

        Returns:
            Probabilities of the answers, which sum to 1, and their uncertainty.

        Raises:
            SwagError: The server cannot be reached, refuses, redirects, or gives an answer's log-probability for some draw to none of its
                likeliest tokens, or one that is none; or there are no prompts, or fewer than two answers.
        """
        if isinstance(prompts, str) or not prompts or len(set(answers)) != len(answers) or len(answers) < 2:
            raise SwagError("predict() takes a list of prompts, and two or more answers that differ.")
        index = self.index
        with ThreadPoolExecutor(self._workers) as pool:
            tasks = [pool.submit(self._log_probabilities, *pair, answers) for pair in product(index.draws, prompts)]
            try:
                found = [task.result() for task in tasks]
            except SwagError:
                pool.shutdown(cancel_futures=True)
                raise
        predictive = Predictive.from_logits(
            torch.tensor(found, dtype=torch.float64).unflatten(0, (len(index.draws), len(prompts))),
            "softmax",
            temperature=index.temperature,
            draws_per_block=index.draws_per_block,
            weights=torch.tensor(index.weights, dtype=torch.float64),
            members=None if index.members is None else torch.tensor(index.members),
        )
        return replace(predictive, labels=tuple(answer.strip() or answer for answer in answers))

    def _log_probabilities(self, adapter: str, prompt: str, answers: Sequence[str]) -> list[float]:
        """Return the log-probability of each answer as the next token under one adapter."""
        request: dict[str, Any] = {"model": adapter, "max_tokens": 1, "temperature": 0}
        if self._chat:
            request |= {"messages": [{"role": "user", "content": prompt}], "logprobs": True, "top_logprobs": self._count}
        else:
            request |= {"prompt": prompt, "logprobs": self._count}
        reply = self._post(adapter, request)
        try:
            logprobs = reply["choices"][0]["logprobs"]
            if self._chat:
                likeliest = {each["token"]: each["logprob"] for each in logprobs["content"][0]["top_logprobs"]}
            else:
                likeliest = dict(logprobs["top_logprobs"][0])
        except (LookupError, TypeError, ValueError) as error:
            raise self._failure(adapter, f"its reply has no log-probabilities: {shortened(str(reply))}") from error
        missing = next((answer for answer in answers if likeliest.get(answer) is None), None)
        if missing is not None:
            raise self._failure(
                adapter,
                f"the answer {missing!r} is not among the {len(likeliest)} likeliest tokens of the prompt that ends in {prompt[-40:]!r}: "
                f"{shortened(str(list(likeliest)))}. Does it begin with a space there? Otherwise ask for more: num_logprobs=...",
            )
        wrong = next((answer for answer in answers if not _is_log_probability(likeliest[answer])), None)
        if wrong is not None:
            raise self._failure(
                adapter,
                f"the answer {wrong!r} has the log-probability {shortened(str(likeliest[wrong]))}; a number <= 0 was expected.",
            )
        return [float(likeliest[answer]) for answer in answers]

    def _post(self, adapter: str, request: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        headers |= {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        asked = urllib.request.Request(self._url, json.dumps(request).encode(), headers)
        try:
            try:
                with urllib.request.build_opener(_NoRedirect).open(asked, timeout=self._timeout) as reply:
                    return json.loads(self._read(reply))
            except urllib.error.HTTPError as error:
                with error:
                    said, hint = error.read1(2000).decode("utf-8", "replace"), ""
                if error.code == 404:
                    hint = " Was the server started with the adapter of that name?"
                elif 300 <= error.code < 400:
                    hint = f" It redirects to {shortened(repr(error.headers.get('Location')))}, which is not followed: give the address itself."
                raise self._failure(adapter, f"it answered {error.code}: {shortened(said)}{hint}") from error
        except _FAILURES as error:
            raise self._failure(adapter, f"{type(error).__name__}: {str(error)[:300]}") from error

    def _read(self, reply: HTTPResponse) -> bytes:
        """Return a reply; one that comes in drops ends with the timeout, which urllib counts anew for each."""
        content, end = bytearray(), time.monotonic() + self._timeout
        while piece := reply.read1(_PIECE):
            content += piece
            if len(content) > _MOST_BYTES or time.monotonic() > end:
                raise ValueError(
                    f"the reply has more than {_MOST_BYTES} bytes, or is not whole after {self._timeout:g} seconds"
                )
        return bytes(content)

    def _failure(self, adapter: str, what: str) -> SwagError:
        what = what.replace(self._key, "***") if self._key else what  # some servers repeat a key that they refuse
        return SwagError(
            f"The server at {shortened(self._shown)} was asked for the prediction of the adapter {adapter!r}, and {what}"
        )


def _is_log_probability(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -sys.float_info.max <= value <= _ROUNDING
