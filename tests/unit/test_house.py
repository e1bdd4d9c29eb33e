"""The house: imports only go down, data is never code, and the configuration stays small."""

import ast
import inspect
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
FLOORS = ["moments_service", "actors", "learner", "deploy"]


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_no_import_runs_up(floor: int) -> None:
    above = set(FLOORS[floor + 1 :])
    files = list((ROOT / FLOORS[floor]).rglob("*.py"))
    assert files
    upward = {str(path.relative_to(ROOT)): up for path in files if (up := imported_packages(path) & above)}
    assert not upward


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for path in (path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_no_import_runs_in_a_circle() -> None:
    """Not even one that a function holds back until it is called."""
    known = modules()
    _refuse_circles({name: (_imports(path) & known.keys()) - {name} for name, path in known.items()})


def test_rooms_of_deploy_do_not_import_in_circles() -> None:
    """config, then rundir, then what shows and guards a run, then the run, then the commands; also inside of functions.

    The loop in train.py belongs to the room `run`: it stands on top so that it is found first.
    """
    rooms = {path.name for path in (ROOT / "deploy").iterdir() if path.is_dir()} | {"run"}
    imported: dict[str, set[str]] = {}
    for name, path in modules().items():
        if name.startswith("deploy."):
            room = _room(name)
            found = {_room(other) for other in _imports(path) if other.startswith("deploy.")}
            imported.setdefault(room, set()).update(found & rooms - {room})
    assert imported["run"] > {"rundir", "config"}
    _refuse_circles(imported)


def _room(module: str) -> str:
    room = module.split(".")[1]
    return "run" if room == "train" else room


def _imports(path: Path) -> set[str]:
    """Modules, and what is taken out of them, by dotted name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _refuse_circles(imported: dict[str, set[str]]) -> None:
    assert imported
    try:
        list(TopologicalSorter(imported).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_moments_service_needs_neither_torch_nor_vllm_nor_ray() -> None:
    code = (
        "import sys, moments_service.service, moments_service.clusters.encoder\n"
        "print(sorted({'torch', 'vllm', 'ray', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_the_learner_below_its_shell_needs_neither_ray_nor_vllm_and_its_configuration_no_torch() -> None:
    code = (
        "import sys, learner.config\n"
        "early = {'torch', 'transformers'} & set(sys.modules)\n"
        "import learner.rank\n"
        "print(sorted(early | {'vllm', 'ray'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


REMOTE_CODE = {
    f"{loader}.{method}"
    for loader in ("AutoTokenizer", "AutoConfig", "AutoModelForCausalLM")
    for method in ("from_pretrained", "from_config")
}


def test_nothing_is_unpickled_and_no_code_of_a_model_is_run() -> None:
    """What lies in a run directory, an export or a model's directory is data."""
    unpickle = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    loaders = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("dcp", "FileSystemReader")}
    found = []
    for path in (path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")):
        found += [(path.name, name) for name in imported_packages(path) & unpickle]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found += [(path.name, node.attr)] if (node.value.id, node.attr) in loaders else []
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
                off = isinstance(node.value, ast.Constant) and node.value.value is False
                found += [] if off else [(path.name, node.arg)]
            # Left out, it means that a terminal is asked.
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                asks = ast.unparse(node.func) in REMOTE_CODE
                said = any(keyword.arg == "trust_remote_code" for keyword in node.keywords)
                found += [(path.name, ast.unparse(node.func))] if asks and not said else []
    assert not found


def test_the_configuration_stays_small() -> None:
    from pydantic import BaseModel

    from deploy.config.models import RunConfig
    from deploy.config.recipe import models_in

    seen: set[type[BaseModel]] = set()

    def visit(model: type[BaseModel]) -> None:
        if model not in seen:
            seen.add(model)
            for field in model.model_fields.values():
                for inner in models_in(field.annotation):
                    visit(inner)

    visit(RunConfig)
    fields = [(model.__name__, name, field) for model in seen for name, field in model.model_fields.items()]
    # What two kinds of a thing inherit is written, explained and learned once; a kind's name is no key to be set beside others.
    keys = {(_defined_in(model, name), name) for model in seen for name in model.model_fields if name != "kind"}
    assert len(keys) < 290
    sections = {model.__name__ for model in seen}
    crowded = {
        model.__name__: count
        for model in seen
        if (
            count := sum(
                not models_in(field.annotation) for name, field in model.model_fields.items() if name != "kind"
            )
        )
        > 15
    }
    assert not crowded
    undocumented = [
        f"{model}.{name}"
        for model, name, field in fields
        if not field.description and not _is_section(field.annotation) and name != "kind"
    ]
    assert sections and not undocumented


def _defined_in(model: type, name: str) -> type:
    return next(base for base in reversed(model.__mro__) if name in inspect.get_annotations(base))


def _is_section(annotation: object) -> bool:
    from pydantic import BaseModel

    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
