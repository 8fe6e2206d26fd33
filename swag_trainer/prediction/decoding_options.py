"""Which ways of decoding can be averaged over draws; the others are refused before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swag_trainer.errors import SwagError, shortened

# Options of transformers' generate() that only one of these values is possible for; a value of None is possible for each.
_ONLY: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1,), "beam search"),
    "num_beam_groups": ((1,), "beam search"),
    "constraints": ((), "beam search"),
    "force_words_ids": ((), "beam search"),
    "penalty_alpha": ((0,), "contrastive search"),
    "dola_layers": ((), "decoding by contrasting layers"),
    "assistant_model": ((), "assisted decoding"),
    "assistant_tokenizer": ((), "assisted decoding"),
    "prompt_lookup_num_tokens": ((), "assisted decoding"),
    "assistant_early_exit": ((), "assisted decoding"),
    "use_mtp": ((False,), "assisted decoding"),
    "custom_generate": ((), "decoding by code of one's own"),
    "guidance_scale": ((1,), "classifier-free guidance"),
    "negative_prompt_ids": ((), "classifier-free guidance"),
    "negative_prompt_attention_mask": ((), "classifier-free guidance"),
    "cache_implementation": (("dynamic", "hybrid"), "a cache of a fixed size, in lower precision or elsewhere"),
    "past_key_values": ((), "a cache of the caller's, which has no draws"),
    "inputs_embeds": ((), "a prompt of embeddings"),
    "prefill_chunk_size": ((), "cutting the prompt elsewhere than at max_tokens"),
    "token_healing": ((False,), "token healing"),
    "synced_gpus": ((False,), "generation in step with other processes"),
    "return_dict_in_generate": ((False,), "returning what is inside of one model"),
    "output_attentions": ((False,), "returning what is inside of one model"),
    "output_hidden_states": ((False,), "returning what is inside of one model"),
    "output_scores": ((False,), "returning what is inside of one model"),
    "output_logits": ((False,), "returning what is inside of one model"),
}
# Options of generate() that are no fields of a GenerationConfig.
ARGUMENTS = (
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "streamer",
    "tokenizer",
    *_ONLY,
)


def setting(name: str, options: Mapping[str, Any], defaults: Any) -> Any:
    """Return an option of generate() as it takes effect: as given, as in the given ``generation_config``, or as the model has it.

    Args:
        name: Of the option.
        options: What generate() is given.
        defaults: The model's GenerationConfig.
    """
    if name in options:
        return options[name]
    given = getattr(options.get("generation_config"), name, None)
    return getattr(defaults, name, None) if given is None else given


def check_decoding(options: Mapping[str, Any], defaults: Any = None) -> None:
    """Do nothing if texts can be generated in this way by the average of the draws: greedy, or sampled.

    Args:
        options: What generate() is given.
        defaults: The model's GenerationConfig, which may ask for something else.

    Raises:
        SwagError: They cannot.
    """
    for name, (possible, purpose) in _ONLY.items():
        value = setting(name, options, defaults)
        if value is not None and value not in possible:
            where = "" if options.get(name) is not None else " in the generation config"
            advice = f"Pass {name}={possible[0]!r}" if possible else "Leave it out"
            raise SwagError(
                f"{name}={shortened(repr(value))}{where} is for {purpose}. Texts are generated token by token from the averaged next-token "
                f"distribution of the draws, greedily or sampled. {advice}."
            )
