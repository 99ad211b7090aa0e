"""The README keeps in step with the code."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from ms_diffusion import config as configuration
from ms_diffusion.config import Config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def documented_options():
    """(key, default, meaning) of every option, from the source of config.py."""
    classes = {node.name: node for node in ast.parse(Path(configuration.__file__).read_text()).body
               if isinstance(node, ast.ClassDef)}
    for group in dataclasses.fields(Config):
        options = getattr(Config(), group.name)
        body = classes[type(options).__name__].body
        for field, meaning in zip(body, body[1:]):
            if isinstance(field, ast.AnnAssign):
                default = getattr(options, field.target.id)
                default = "null" if default is None else str(default).lower() if default in (True, False) else default
                default = list(default) if isinstance(default, tuple) else default
                yield f"{group.name}.{field.target.id}", str(default), meaning.value.value


@pytest.mark.parametrize("key, default, meaning", documented_options())
def test_the_table_of_options_is_the_code(key, default, meaning):
    assert f"| `{key}` | `{default}` | {meaning} |" in README


def test_the_table_has_no_other_options():
    keys = set(re.findall(r"^\| `(\w+\.\w+)` \| `", README, flags=re.M))
    assert keys == {key for key, _, _ in documented_options()}


def test_named_tests_functions_and_files_exist():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    for name in re.findall(r"`(test_\w+)`", README):
        assert f"def {name}(" in tests, name
    for path in re.findall(r"(?:docs|ms_diffusion|scripts|configs|tests)/[\w/]+\.\w+", README):
        assert (ROOT / path).exists(), path


def test_every_option_in_a_command_is_one():
    keys = {key for key, _, _ in documented_options()} | {"config"}
    commands = re.findall(r"python scripts/(\w+)\.py (.*)", README)
    assert len(commands) >= 5
    shared = (ROOT / "ms_diffusion" / "sampling_command.py").read_text()
    for script, words in commands:
        source = (ROOT / "scripts" / f"{script}.py").read_text()
        source += shared if "sampling_command" in source else ""
        for option in re.findall(r"--([\w.]+)", words):
            assert option in keys or f'"--{option}"' in source, f"{script}: --{option}"
