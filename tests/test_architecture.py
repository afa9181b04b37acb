"""The house stays as drawn: imports point down the table of levels, and ``cfg`` stops at the door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "slowfast"
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS = {
    "utils": 0,  # imports nothing of ours, so it lies below everything
    "config": 1,
    "solver": 1,
    "datasets": 2,
    "models": 2,
    "evaluation": 2,
    "checkpoint": 2,
    "tasks": 3,
    "visualization": 3,
    "engine": 4,
    "export": 4,  # beside the layers: only tools use it
    "zoo": 4,  # beside the layers: only tools and hubconf.py use it
}
# Functions that may take a configuration: builders, alternative constructors, and the four jobs.
JOBS = {"train", "test", "demo", "visualize"}
DOORS = {"from_cfg", "lr_at", "task_name", "training_phases"} | JOBS
# The one thing that carries a configuration: it is handed from one door to the next.
CARRIERS = {"Phase"}


def room(module: str) -> str | None:
    """The sub-package a dotted name lies in."""
    parts = module.split(".")
    return parts[1] if parts[0] == "slowfast" and len(parts) > 1 and parts[1] in LEVELS else None


def imported(tree: ast.AST) -> list[str]:
    """Every module name that ``tree`` imports."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.append("relative import")
    return names


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path):
    home = room("slowfast." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    for name in imported(ast.parse(path.read_text())):
        assert name != "relative import", f"{name_of(path)} imports relatively"
        assert name.split(".")[0] not in ("tools", "benchmarks", "tests"), f"{name_of(path)} imports {name}"
        target = room(name)
        if target is None or home is None or target == home:
            continue
        assert LEVELS[target] < LEVELS[home], f"{name_of(path)} ({home}) imports {name} ({target})"


def cfg_outside_doors(tree: ast.AST) -> list[int]:
    """Lines where the name ``cfg`` is used outside the functions that may read a configuration."""
    lines: list[int] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = inside or node.name in DOORS or node.name.lstrip("_").startswith("build_")
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                if argument.arg == "cfg" and not inside:
                    lines.append(argument.lineno)
        if isinstance(node, ast.ClassDef) and node.name in CARRIERS:
            inside = True
        is_read = isinstance(node, ast.Name) and node.id == "cfg" and not inside
        is_stored = isinstance(node, ast.Attribute) and node.attr == "cfg"
        if is_stored and inside and isinstance(node.ctx, ast.Load):  # read off a carrier, not off an object of ours
            is_stored = getattr(node.value, "id", None) == "self"
        if is_read or is_stored:
            lines.append(node.lineno)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree, False)
    return lines


@pytest.mark.parametrize("path", [p for p in FILES if room(f"slowfast.{p.parent.name}") != "config"], ids=name_of)
def test_cfg_stops_at_the_door(path):
    lines = cfg_outside_doors(ast.parse(path.read_text()))
    assert not lines, f"{name_of(path)}: cfg is used at lines {lines} outside {sorted(DOORS)} and build_*"


def test_the_checks_can_fail():
    assert imported(ast.parse("from slowfast.engine import train")) == ["slowfast.engine.train"]
    assert cfg_outside_doors(ast.parse("def crop(clip, cfg):\n    return cfg.DATA"))
    assert cfg_outside_doors(ast.parse("class A:\n    def build_a(self, cfg):\n        self.cfg = cfg"))
    assert cfg_outside_doors(ast.parse("def step(phase):\n    return phase.cfg"))
    assert not cfg_outside_doors(ast.parse("def build_clip(cfg):\n    return cfg.DATA"))


def test_nothing_prints_or_moves_to_a_device_in_models():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{name_of(path)}:{node.lineno} prints"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "models" in path.parts:
                assert node.func.attr != "cuda", f"{name_of(path)}:{node.lineno} calls .cuda()"
