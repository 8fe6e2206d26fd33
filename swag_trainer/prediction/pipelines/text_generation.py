"""The pipeline "swag-text-generation": prompts in, texts by the averaged next-token distribution of the draws and their uncertainty out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import GenerationConfig, TextGenerationPipeline
from transformers.pipelines.text_generation import Chat

from swag_trainer.errors import SwagError, shortened
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.decisions import PredictionOptions
from swag_trainer.prediction.decoding_options import ARGUMENTS, check_decoding
from swag_trainer.prediction.generation import TextGenerator
from swag_trainer.prediction.loading import AutoSwagModelForTextGeneration
from swag_trainer.prediction.pipelines.base import PosteriorPipeline
from swag_trainer.prediction.token_scores import SUMMARY, TextScore, TokenScores
from swag_trainer.prediction.tokenizers import check_tokens, encoding_errors
from swag_trainer.prediction.transformers_internals import register_pipeline
from swag_trainer.tasks.chat_templates import chat_errors
from swag_trainer.tasks.generation import TextGeneration, check_causal_language_model
from swag_trainer.tasks.question_encoder import leading_tokens

_OWN = ("scores", "return_tokens", "return_draws")
# What makes a text of a prompt, for `score` as for a call.
_PROMPT = ("prefix", "tools", "documents", "continue_final_message")
_TAKEN = (*SUMMARY, "generated_text", "generated_token_ids", "continuation", "tokens", "draw_log_probabilities")
_OPTIONS = ("num_samples", "seed", "scale", "design", "center")
_FOR_CLASSES = tuple(name for name in PredictionOptions.option_names() if name not in (*_OPTIONS, "temperature"))
_PARENTS = tuple(inspect.signature(TextGenerationPipeline._sanitize_parameters).parameters)[1:-1]
_CONFIG = tuple(name for name in vars(GenerationConfig()) if not name.startswith("_"))


class SwagTextGenerationPipeline(PosteriorPipeline, TextGenerationPipeline):
    """Text generation by the next-token distribution of S weight draws averaged.

    Everything that `transformers.TextGenerationPipeline` takes and returns holds here too (prompts and chats, ``max_new_tokens``,
    ``do_sample``, ``temperature``, ``top_k``, ``top_p``, ``num_return_sequences``, ``return_full_text``, ``stop_sequence``,
    ``generation_config``, ``batch_size``, data sets and generators), with its defaults. Beam search, assisted decoding and what else has no
    average over draws is refused. Each text also has its ``log_probability`` and ``num_tokens``, and per token, in nats, its ``entropy``
    (total uncertainty), ``aleatoric`` part and ``mutual_information`` (epistemic), see `TokenScores`: they are those of the averaged
    distribution before temperature, ``top_k`` and the like, conditional on the text that was generated.

        from transformers import pipeline
        import swag_trainer

        generate = pipeline("swag-text-generation", model="me/llama-sft-swag", num_samples=10, seed=0)
        generate("The film was", max_new_tokens=20, do_sample=False)
        # [{'generated_text': 'The film was ...', 'log_probability': -21.4, 'num_tokens': 20, 'entropy': 1.9, ...}]
        generate.score("The film was", " a delight.")
        # {'continuation': ' a delight.', 'log_probability': -7.1, 'num_tokens': 3, 'entropy': 2.2, ...}

    Args:
        model: The PEFT model. One that `transformers.pipeline` loads brings its posterior along.
        posterior: The posterior, of any kind, for a model that has none attached.
        tokenizer: As in `PosteriorPipeline`.
        num_samples: S, how many draws; this and the next four here or in a call. Default: 10.
        seed: The draws of the weights depend on this alone. Sampled tokens come from torch's global generator.
        scale: Factor of the covariance; None for the posterior's own, 0 for the mean.
        design, center: As in `Sampling`.
        scores: Further scores of a text by name: each function gets the texts that were generated for the prompt, the scored one first, and
            its `TokenScores.draw_log_probabilities`, shape (S, T), and returns a number.
        return_tokens: Add ``tokens``: each with its own ``log_probability``, ``entropy``, ``aleatoric`` and ``mutual_information``.
        return_draws: Add ``draw_log_probabilities``: T numbers for each draw.
        **kwargs: What `transformers.TextGenerationPipeline` takes. ``temperature`` is that of sampling, not of the draws.

    Attributes:
        posterior, options: See `PosteriorPipeline`.

    Raises:
        PosteriorNotFoundError: The model has no posterior.
        SwagError: An argument is unknown, out of range or for another way of decoding; the model is no causal language model.
    """

    swag_task = TextGeneration.name
    option_names = _OPTIONS
    own_arguments = (*_OWN, *_PARENTS, "add_special_tokens", "padding", *_CONFIG, *ARGUMENTS)
    takes_tokenizer_arguments = False

    def __init__(self, model: Any, *, posterior: WeightPosterior | None = None, tokenizer: Any = None, **kwargs: Any) -> None:
        check_decoding(kwargs, getattr(model, "generation_config", None))
        if tokenizer is not None and not isinstance(tokenizer, (str, tuple)):
            tokenizer = copy.deepcopy(tokenizer)  # transformers turns its padding to the left
        super().__init__(model=model, posterior=posterior, tokenizer=tokenizer, **kwargs)
        check_causal_language_model(self.model, self.swag_task)
        if self.tokenizer.pad_token_id is None:  # batches are padded, and the padding is not attended to
            self.tokenizer.pad_token_id = self.tokenizer.eos_token_id or 0

    def score(self, prompts: Any, continuations: Any, *, batch_size: int = 1, **arguments: Any) -> Any:
        """Score given continuations under the draws: exact log-probabilities and uncertainties, token by token.

        Args:
            prompts: A text or a chat, or a list of them; a chat goes through the tokenizer's chat template. One that ends in a message of
                the assistant is continued there, as in a call.
            continuations: The text behind it, or a list of them, as long.
            batch_size: How many texts are scored together.
            **arguments: ``num_samples``, ``seed``, ``scale``, ``design``, ``center``, ``scores``, ``return_tokens``, ``return_draws``; and
                ``prefix``, ``tools``, ``documents``, ``continue_final_message``, which make the text of a prompt, as in a call.

        Returns:
            As in a call, with the ``continuation`` in the place of the generated text; a list for a list.

        Raises:
            SwagError: Not as many prompts as continuations; one without a token, or too long for the model; an unknown argument.
        """
        known = (*_OPTIONS, *_OWN, *_PROMPT)
        other = next((name for name in arguments if name not in known), None)
        if other is not None:
            raise SwagError(f"score() takes {', '.join(known)}, got {other!r}.")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise SwagError(f"batch_size must be a whole number of at least 1, got {shortened(repr(batch_size))}.")
        preprocess, _, own = self._sanitize_parameters(**arguments)
        prompting = {name: value for name, value in (self._preprocess_params | preprocess).items() if name in _PROMPT}
        kept = {name: value for name, value in (self._postprocess_params | own).items() if name in _OWN}
        generator = self._generator_for(own["options"])
        is_single = isinstance(continuations, str)
        if not is_single and not (isinstance(prompts, (list, tuple)) and isinstance(continuations, (list, tuple))):
            raise SwagError(f"score() takes a prompt and a text, or a list of each, got {type(continuations).__name__}.")
        if not is_single and len(prompts) != len(continuations):
            raise SwagError(f"score() got {len(prompts)} prompts and {len(continuations)} continuations.")
        pairs = [(prompts, continuations)] if is_single else list(zip(prompts, continuations, strict=True))
        records = []
        encoded = [self._encode(prompt, continuation, **prompting) for prompt, continuation in pairs]
        for begin in range(0, len(pairs), batch_size):
            scored = generator.score(*zip(*encoded[begin : begin + batch_size], strict=True))
            texts = [text for _, text in pairs[begin : begin + batch_size]]
            records += [
                {"continuation": text} | self._record(scores, [text], **kept)
                for text, scores in zip(texts, scored, strict=True)
            ]
        return records[0] if is_single else records

    def own_parameters(self, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Divide arguments as transformers' pipeline does; what is made of the scores is for the end."""
        own = {name: arguments.pop(name) for name in _OWN if name in arguments}
        scores = own.get("scores") or {}
        if not isinstance(scores, Mapping) or not all(isinstance(name, str) and callable(f) for name, f in scores.items()):
            raise SwagError(
                f'scores={shortened(repr(scores))} must be functions by name: {{"name": f}}, f(texts, log_probabilities).'
            )
        if taken := [name for name in scores if name in _TAKEN]:
            raise SwagError(f"scores={{{taken[0]!r}: ...}} has the name of what texts have already: {', '.join(_TAKEN)}.")
        check_decoding(arguments, self.model.generation_config)
        preprocess, forward, postprocess = TextGenerationPipeline._sanitize_parameters(self, **arguments)
        return preprocess, forward, postprocess | own

    def preprocess(self, inputs: Any, **arguments: Any) -> Any:
        """Make model inputs of a prompt or a chat, as transformers' pipeline does."""
        self._check_prompt(inputs)
        with self._tokenizer_lock, encoding_errors(), chat_errors() if isinstance(inputs, Chat) else nullcontext():
            return TextGenerationPipeline.preprocess(self, inputs, **arguments)

    def _forward(self, model_inputs: Any, options: PredictionOptions, **arguments: Any) -> Any:
        check_tokens(model_inputs["input_ids"], self.model)
        # The pipeline of transformers asks its model for ``generate`` and ``generation_config``, and takes tensors of rows apart.
        averaged = copy.copy(self)
        averaged.model = self._generator_for(options)
        return TextGenerationPipeline._forward(averaged, model_inputs, **arguments)

    def postprocess(
        self,
        model_outputs: Mapping[str, Any],
        options: PredictionOptions = PredictionOptions(),  # noqa: B008 - frozen
        scores: Mapping[str, TextScore] | None = None,
        return_tokens: bool = False,
        return_draws: bool = False,
        **arguments: Any,
    ) -> list[dict[str, Any]]:
        """Put the texts of one prompt into transformers' form, each with its log-probability and its uncertainty."""
        names = ("generated_sequence", "input_ids", "prompt_text")
        records = TextGenerationPipeline.postprocess(self, {name: model_outputs[name] for name in names}, **arguments)
        weights = self._generator_for(options).draw_weights
        scored, draws = [], model_outputs["draw_log_probabilities"][0].double().numpy()
        for place, length in enumerate(model_outputs["lengths"][0].tolist()):
            tokens = model_outputs["generated_sequence"][0, place, -draws.shape[-1] :][:length]
            scored.append(
                TokenScores(
                    tokens=tokens.numpy(),
                    draw_log_probabilities=draws[place, :, :length],
                    entropy=model_outputs["entropy"][0, place, :length].double().numpy(),
                    aleatoric=model_outputs["aleatoric"][0, place, :length].double().numpy(),
                    weights=None if weights is None else weights.cpu().numpy(),
                )
            )
        texts = [self.tokenizer.decode(each.tokens.tolist(), skip_special_tokens=True) for each in scored]
        kept = {"scores": scores, "return_tokens": return_tokens, "return_draws": return_draws}
        return [
            record | self._record(each, [texts[place], *texts[:place], *texts[place + 1 :]], **kept)
            for place, (record, each) in enumerate(zip(records, scored, strict=True))
        ]

    def _record(
        self,
        scored: TokenScores,
        texts: Sequence[str],
        scores: Mapping[str, TextScore] | None = None,
        return_tokens: bool = False,
        return_draws: bool = False,
    ) -> dict[str, Any]:
        record = scored.summary()
        for name, score in (scores or {}).items():
            record[name] = float(score(texts, scored.draw_log_probabilities))
        if return_tokens:
            record["tokens"] = scored.token_rows([self.tokenizer.decode([token]) for token in scored.tokens.tolist()])
        if return_draws:
            record["draw_log_probabilities"] = np.asarray(scored.draw_log_probabilities).tolist()
        return record

    def _encode(
        self,
        prompt: Any,
        continuation: str,
        *,
        prefix: str = "",
        continue_final_message: bool | None = None,
        **template: Any,
    ) -> tuple[list[int], list[int]]:
        """Return the tokens of a prompt, and those of its continuation: as both are tokenised together, where the prompt's stay what they are."""
        if isinstance(prompt, (list, tuple)):
            try:
                prompt = Chat(prompt)
            except (LookupError, TypeError, ValueError) as error:
                raise SwagError(
                    f"A list is a chat of messages with a role and a content, got {shortened(repr(prompt))}. For several prompts pass a list of "
                    "as many continuations."
                ) from error
        self._check_prompt(prompt)
        if not isinstance(continuation, str):
            raise SwagError(f"A continuation is a text, got {type(continuation).__name__}.")
        with self._tokenizer_lock, encoding_errors():
            if isinstance(prompt, Chat):  # whose template writes what texts begin with
                continues = continue_final_message
                if continues is None:
                    continues = prompt.messages[-1]["role"] == "assistant"
                how = {"add_generation_prompt": not continues, "continue_final_message": continues, **template}
                with chat_errors():
                    text = self.tokenizer.apply_chat_template(prompt.messages, tokenize=False, **how)
                head = []
            else:
                text, head = prefix + prompt, leading_tokens(self.tokenizer)
            first, both, alone = (
                list(self.tokenizer(part, add_special_tokens=False)["input_ids"])
                for part in (text, text + continuation, continuation)
            )
        return [*head, *first], both[len(first) :] if both[: len(first)] == first else alone

    def _check_prompt(self, prompt: Any) -> None:
        if isinstance(prompt, Chat) and getattr(self.tokenizer, "chat_template", None) is None:
            raise SwagError("A chat needs a tokenizer with a chat template, and this one has none: pass the prompt as a text.")
        if not isinstance(prompt, (str, Chat)):
            raise SwagError(
                f'{self.swag_task} takes a text, or a chat such as [{{"role": "user", "content": "..."}}], got {type(prompt).__name__}.'
            )

    def _refuse_unknown(self, arguments: Mapping[str, Any]) -> None:
        name = next((name for name in arguments if name in _FOR_CLASSES), None)
        if name is not None:
            raise SwagError(
                f"{name}=... is for predictions of classes; {self.swag_task} takes {', '.join(_OPTIONS)} of such options."
            )
        super()._refuse_unknown(arguments)

    def _generator_for(self, options: PredictionOptions) -> Any:
        """Return the generator, made anew only where draws are others than those of the last call."""
        sampling = replace(options.resolved(self.posterior), temperature=None, dropout=None)
        with self._lock:
            if self._predictor is None or self._settings != {"sampling": sampling}:
                self._predictor = TextGenerator(self.model, self.posterior, sampling)
                self._settings = {"sampling": sampling}
            return self._predictor


register_pipeline(
    SwagTextGenerationPipeline, AutoSwagModelForTextGeneration, peft_classes=("PeftModelForCausalLM", "PeftModel")
)
