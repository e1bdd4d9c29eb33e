"""A policy that cannot be trained, or cannot be given a run's prompts, is found before anything starts."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.prompts.pool import PromptPool
from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError
from deploy.run.prompt_lengths import refuse_unfit_prompts
from deploy.run.reference_check import refuse_unfit_reference

_HUB_TIMEOUT_S = 10.0
_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Config entries that say how far a model reaches, as vLLM looks for them."""
_REACH_ALREADY_SCALED = {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}
"""Kinds of rope whose config gives the reach after scaling."""


def refuse_unfit_policy(config: RunConfig, pool: PromptPool) -> frozenset[str]:
    """Raise ConfigError for a policy whose files, length or tokenizer cannot serve this run and its prompts.

    Returns the ids of prompts that are to be left out, see `refuse_unfit_prompts`.
    """
    refuse_nowhere(config.policy)
    # Imported here: it takes seconds, and a recipe with a mistake in it is refused without them.
    from actors.engines.policy_files import UnfitPolicyError, here, read_config, read_policy_files

    try:
        model_config = read_config(config.policy)
        if here(config.policy):  # a model name whose weights are still to be fetched is looked at by those who fetch it
            read_policy_files(config.policy)
    except UnfitPolicyError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"policy: {config.policy} is no Hugging Face directory, and no model that can be had here ({reason})"
        ) from None
    text = model_config.get_text_config()
    if (reach := model_reach(text)) is not None and config.rollout.max_model_len > reach:
        raise ConfigError(
            f"rollout.max_model_len: {config.rollout.max_model_len} is more than the {reach:g} tokens that {config.policy} can hold "
            "(max_position_embeddings and rope scaling in its config.json); lower it"
        )
    refuse_unfit_reference(config, model_config)
    return refuse_unfit_prompts(config, pool, text.vocab_size)


def refuse_unfit_adapter(config: RunConfig) -> None:
    """Raise ConfigError where rollout actors would be sent adapters alone that their engine cannot put on the policy."""
    if (plan := config.learner.published_adapter) is not None:
        from actors.engines.create import refuse_adapters

        try:
            refuse_adapters(config.rollout, config.policy, plan)
        except ValueError as error:
            raise ConfigError(str(error)) from None


def refuse_nowhere(policy: str) -> None:
    """Raise ConfigError where nothing is at a path, or nobody has a model of that name. One question: others would ask for half a minute."""
    if Path(policy).is_dir():
        return
    if Path(policy).is_absolute():
        raise ConfigError(
            f"policy: {policy} is no directory; name one that holds a Hugging Face model, or a model by its name"
        )
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(policy, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(policy, "config.json"), timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # its own, or of whichever HTTP library it stands on
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"policy: {policy} is no directory beside the recipe, and {constants.ENDPOINT} gives no model of that name "
            f"({reason}); write ./NAME for a directory, or fetch it where there is a network: hf download {policy}"
        ) from None


def model_reach(text_config: Any) -> float | None:
    """Tokens that a model can hold, None where its config does not say. The same as vLLM derives, which refuses more."""
    named = [
        value for name in (*_LENGTHS, "model_max_length") if (value := getattr(text_config, name, None)) is not None
    ]
    if not named:
        return None
    # Command-R's own entry stands above the others.
    reach: float = getattr(text_config, "model_max_length", None) or min(named)
    if "gemma3" in text_config.model_type:
        return reach
    scaled = [rope for rope in _ropes(text_config) if rope.get("rope_type") not in _REACH_ALREADY_SCALED]
    return reach * next((rope["factor"] for rope in reversed(scaled) if rope.get("factor") is not None), 1.0)


def _ropes(text_config: Any) -> Iterator[Mapping[str, Any]]:
    """Rope parameters of all layers: one set, or one by kind of layer."""
    said = getattr(text_config, "rope_parameters", None) or {}
    if "rope_type" in said:
        yield said
    else:
        yield from (each for each in said.values() if isinstance(each, Mapping))
