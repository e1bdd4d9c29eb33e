"""A reference policy that the policy cannot be compared with is found before anything starts."""

from pathlib import Path
from typing import Any

from deploy.config.models import RunConfig
from deploy.config.recipe import ConfigError
from learner.config import START

_KEY = "learner.kl.reference"
_WITHOUT_EFFECT = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "hidden_dropout",
    "initializer_range",
    "pad_token_id",
    "resid_pdrop",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Entries of a config.json on which no log-prob depends: the learner computes without dropout, in a dtype of its own."""


def refuse_unfit_reference(config: RunConfig, policy_config: Any) -> None:
    """Raise ConfigError for a reference policy that is not there, has other weights than safetensors, or another architecture or vocabulary.

    policy_config: what transformers reads of the policy's config.json.
    """
    reference = config.learner.kl.reference
    if not config.learner.compares or reference == START:
        return
    if not Path(reference).is_dir():
        raise ConfigError(f"{_KEY}: {reference} is no directory; name one that holds a Hugging Face model, or {START}")
    from actors.engines.policy_files import UnfitPolicyError, read_config, read_policy_files

    try:
        found = read_config(reference)
        _refuse_other_architecture(reference, found.to_dict(), policy_config.to_dict())
        read_policy_files(reference)
    except (UnfitPolicyError, OSError) as error:
        reason = str(error).strip().splitlines()[0].removeprefix("policy: ")
        raise ConfigError(f"{_KEY}: {reason}") from None
    _refuse_other_vocabulary(reference, config.policy)


def _refuse_other_architecture(reference: str, found: dict[str, Any], policy: dict[str, Any]) -> None:
    names = sorted((found.keys() | policy.keys()) - _WITHOUT_EFFECT, key=lambda name: (name != "model_type", name))
    for name in names:
        here, there = found.get(name), policy.get(name)
        if here != there:
            raise ConfigError(
                f"{_KEY}: {reference} is of another architecture than the policy ({name} is {here!r} in its config.json and {there!r} "
                "in the policy's); name one that the policy, or what it came of, was trained into"
            )


def _refuse_other_vocabulary(reference: str, policy: str) -> None:
    if not (Path(reference) / "tokenizer.json").is_file():
        return
    from actors.prompts.renderer import load_tokenizer

    here, there = load_tokenizer(reference).get_vocab(), load_tokenizer(policy).get_vocab()
    if others := sorted(token for token in here.keys() | there.keys() if here.get(token) != there.get(token)):
        raise ConfigError(
            f"{_KEY}: {reference} has another vocabulary than the policy (token {others[0]!r} is {here.get(others[0])} in it and "
            f"{there.get(others[0])} in the policy's), so that their log-probs are of different tokens; name one with the policy's "
            "tokenizer"
        )
