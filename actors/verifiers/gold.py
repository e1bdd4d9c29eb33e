"""The gold answer that verifiers compare with."""

from actors.prompts.prompt import Prompt


def gold_answer(prompt: Prompt) -> str:
    """Raises ValueError where the prompt's source has none."""
    if prompt.answer is None:
        raise ValueError(f"prompt {prompt.prompt_id} of source `{prompt.source}` has no gold answer to compare with")
    return prompt.answer
