"""Peak memory of the output head against vocabulary and tokens: `python -m benchmarks.learner_memory --out FILE`.

Each cell is a process of its own that computes log-probs, entropy and gradients. What is reported is the peak of its resident
memory above what it held with its inputs and their gradients in place; a head that held all logits would grow with the product
of both, in the plain form by 12 bytes for each logit.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.figures import figure, write_figures

HIDDEN = 64
TOKENS = (1024, 4096)
VOCABULARIES = (32_000, 64_000, 150_000)


def resident_mib() -> float:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def cell(tokens: int, vocabulary: int, elements: int) -> float:
    """MiB that the head takes above its inputs and their gradients."""
    import torch

    from learner.model.logprobs import token_logprobs

    torch.set_num_threads(1)
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    weight = (torch.randn(vocabulary, HIDDEN) * 0.02).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,))
    small = token_logprobs(hidden[:8], weight[:8], None, targets[:8] % 8, torch.ones(8), elements, False)[0]
    small.sum().backward()  # loads what the first call loads
    hidden.grad = weight.grad = None
    gradients = (hidden.numel() + weight.numel()) * 4 / 2**20
    before = resident_mib() + gradients
    logprobs, _ = token_logprobs(hidden, weight, None, targets, torch.ones(tokens), elements, False)
    logprobs.sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--elements", type=int, default=2**22)
    parser.add_argument("--cell", type=int, nargs=2, metavar=("TOKENS", "VOCABULARY"))
    arguments = parser.parse_args()
    if arguments.cell:
        tokens, vocabulary = arguments.cell
        print(cell(tokens, vocabulary, arguments.elements))
        return
    figures = []
    for tokens in TOKENS:
        for vocabulary in VOCABULARIES:
            command = [sys.executable, "-m", "benchmarks.learner_memory", "--cell", str(tokens), str(vocabulary)]
            command += ["--elements", str(arguments.elements)]
            mib = float(subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout)
            plain = tokens * vocabulary * 12 / 2**20
            print(f"{tokens:6d} tokens, vocabulary {vocabulary:7d}: {mib:7.1f} MiB (all logits: {plain:8.1f})")
            figures.append(figure(f"output head, {tokens} tokens, vocabulary {vocabulary}", mib, "MiB", target=400))
    if arguments.out:
        write_figures(arguments.out, figures)


if __name__ == "__main__":
    main()
