"""Gold answers of a whole file, checked before a run starts: each different one once, by all cores where that takes long, and on one machine
not again.

Usage: python -m actors.verifiers.gold_checks VERIFIER, with a JSON list of gold answers on stdin; writes why each that is refused is.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from actors.import_path import module_command, module_environment
from actors.verifiers import refuse_gold
from moments_service.durable import write_bytes

logger = logging.getLogger(__name__)

ALONE_S = 1.0
"""After so long without an end, other processes help; each of them takes about two seconds to start."""
CACHE = Path("~/.cache/bvblend/gold_answers")
DIGEST_BYTES = 12
"""Of each gold answer that was found right; one in 10^17 of a million is another's."""
READERS = ("math-verify", "latex2sympy2-extended", "sympy")
"""What reads formulas, beside our own modules: another version may refuse others."""


def refusals(verifier: str, golds: Iterable[str]) -> dict[str, str]:
    """Of each gold answer that the verifier cannot compare anything with, why. verifier: as a prompt names it.

    Those that took long and were found right are remembered under ~/.cache/bvblend.
    """
    waiting = iter(dict.fromkeys(golds))
    refused = _refused(verifier, waiting, time.monotonic() + ALONE_S)
    left = list(waiting)
    if not left:
        return refused
    cache = CACHE.expanduser() / _fingerprint(verifier)
    known = _read(cache)
    unknown = [gold for gold in left if _digest(gold) not in known]
    if unknown:
        processes = max(1, min(len(os.sched_getaffinity(0)), len(unknown) // 100))
        logger.info("%d gold answers are checked by %d processes, which may take minutes once", len(unknown), processes)
        with ThreadPoolExecutor(processes) as threads:
            shares = [unknown[start::processes] for start in range(processes)]
            for found in threads.map(_elsewhere, [verifier] * processes, shares):
                refused |= found
        _remember(cache, known, [gold for gold in unknown if gold not in refused])
    return refused


def _refused(verifier: str, golds: Iterator[str], until: float) -> dict[str, str]:
    """Takes gold answers out of the iterator until it is empty, or for that long."""
    refused = {}
    for gold in golds:
        try:
            refuse_gold(verifier, gold)
        except ValueError as error:
            refused[gold] = str(error)
        if time.monotonic() > until:
            break
    return refused


def _elsewhere(verifier: str, golds: Sequence[str]) -> dict[str, str]:
    """The same in a process of its own. Raises RuntimeError where that fails."""
    done = subprocess.run(
        module_command("actors.verifiers.gold_checks", verifier),
        input=json.dumps(golds).encode(),
        capture_output=True,
        env=module_environment(),
        check=False,
    )
    if done.returncode:
        end = " ".join(done.stderr.decode(errors="replace").split())[-200:]
        raise RuntimeError(f"checking gold answers of the verifier `{verifier}` failed ({done.returncode}): {end}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _fingerprint(verifier: str) -> str:
    """Of the verifier and all that its opinion depends on."""
    digest = hashlib.blake2b(verifier.encode(), digest_size=12)
    for name in READERS:
        digest.update(version(name).encode())
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()


def _digest(gold: str) -> bytes:
    return hashlib.blake2b(gold.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()


def _read(cache: Path) -> set[bytes]:
    try:
        data = cache.read_bytes()
    except OSError:
        return set()
    return {data[start : start + DIGEST_BYTES] for start in range(0, len(data) - DIGEST_BYTES + 1, DIGEST_BYTES)}


def _remember(cache: Path, known: Collection[bytes], right: Iterable[str]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(cache, b"".join({*known, *map(_digest, right)}))
    except OSError as error:
        logger.warning("which gold answers are right is not kept: %s: %s", cache, error)


if __name__ == "__main__":
    json.dump(_refused(sys.argv[1], iter(json.load(sys.stdin)), float("inf")), sys.stdout)
