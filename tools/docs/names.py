"""Checks that what the documents name in backticks exists: python -m tools.docs.names

    `voices/store.py`                 a file, or folder, of the project, by the end of its path
    `Engine.submit`, `text.english`   an attribute of a class or module, or a module
    `choose` in `t3/sampling.py`      a name that the file defines
    `server.kind`                     a value of the Helm chart
    `max_slots`, `SamplingParams`     a word of some file that is neither a document nor a test
    `ResembleAI/chatterbox`           an official repository that such a file names

The log is not checked: what it names existed at its date.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

from chatterbox_engine.environment import PREFIX
from deploy.helm import values
from tools.docs.files import ROOT, project_files
from tools.docs.links import without_fences

NOT_OURS = frozenset(
    {
        *("HF_HUB_OFFLINE", "OMP_WAIT_POLICY", "PKUSEG_HOME", "TORCHINDUCTOR_CACHE_DIR"),
        *("envoyproxy/envoy", "nvidia.com/gpu", "nvidia.com/mig-1g.18gb"),
        *("T3.inference", "chunk_size", "speed_factor", "split_text", "streaming_chunk_size", "turbo_stream"),
    }
)
"""Names of other programs that no file of ours has."""

_CODE = re.compile(r"`([^`\n]+)`")
_DEFINED_IN = re.compile(r"`([A-Za-z_]\w*)` (?:of|in) `([\w/]+\.py)`")
_PATH = re.compile(r"(?:[\w*.-]+/)*[\w*.-]+\.(?:py|md|pbtxt|yaml|yml|toml|lock|service)|(?:[\w*.-]+/)+[\w*.-]*")
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_DATA = (".json", ".pt", ".safetensors", ".sqlite", ".wav")  # files that are not in the repository
_REPOSITORY = re.compile(r"ResembleAI/[\w-]+")
_VARIABLE = re.compile(rf"{PREFIX}(\w+)")
_WORD = re.compile(r"[A-Za-z]+_\w+|[A-Z][a-z0-9]+[A-Z]\w*")


@cache
def files() -> tuple[PurePosixPath, ...]:
    """The project's files, and the folders that they are in."""
    paths = [PurePosixPath(path) for path in project_files()]
    return tuple({*paths, *(folder for path in paths for folder in path.parents)})


@cache
def words() -> frozenset[str]:
    """All words, and the official repositories, of the files that are neither documents nor tests."""
    found: set[str] = set()
    for path in project_files(":!tests", ":!tools/docs/names.py"):
        if path.suffix in (".py", ".pbtxt", ".yaml", ".yml", ".toml", ".html", ".js", ".sh") or "." not in path.name:
            text = (ROOT / path).read_text(encoding="utf-8", errors="ignore")
            found.update(re.findall(r"\w+", text), _REPOSITORY.findall(text))
    return frozenset(found)


def defined(tree: ast.Module | ast.ClassDef) -> Iterator[str]:
    """The names that a module or a class defines, with those that its methods assign to `self`."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
    if isinstance(tree, ast.ClassDef):
        for child in ast.walk(tree):
            if isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name) and child.value.id == "self":
                yield child.attr


@cache
def attributes() -> dict[str, frozenset[str]]:
    """What each module, by the end of its path with dots, and each class defines."""
    found: dict[str, set[str]] = {}
    for path in project_files("*.py"):
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        parts = path.with_suffix("").parts
        for start in range(len(parts)):
            found.setdefault(".".join(parts[start:]), set()).update(defined(tree))
        for child in ast.walk(tree):
            if isinstance(child, ast.ClassDef):
                found.setdefault(child.name, set()).update(defined(child))
    return {name: frozenset(names) for name, names in found.items()}


@cache
def gateway_options() -> frozenset[str]:
    """The options of `chatterbox-gateway`."""
    tree = ast.parse((ROOT / "gateway" / "chatterbox_gateway" / "cli.py").read_text(encoding="utf-8"))
    return frozenset(
        argument.arg for node in ast.walk(tree) if isinstance(node, ast.arguments) for argument in node.args
    )


@cache
def chart_values() -> frozenset[str]:
    """The values of the Helm chart."""
    return frozenset(name for name, _ in values.leaves(values.schema()))


def exists(name: str) -> bool:
    """Whether something in backticks is there, as far as it looks like a name of ours."""
    if name in NOT_OURS or name in chart_values() or name.startswith("out/"):
        return True
    if repository := _REPOSITORY.match(name):
        return repository[0] in words()
    if _PATH.fullmatch(name):
        return any(path.match(name.removeprefix(".../")) for path in files())
    if _DOTTED.fullmatch(name) and not name.endswith(_DATA):
        owner, _, attribute = name.rpartition(".")
        return owner not in attributes() or attribute in attributes()[owner]
    if variable := _VARIABLE.match(name):
        option = variable[1].lower().removeprefix("gateway_")  # an option of the gateway is a variable, too
        return variable[0] in words() or variable[1].lower() in attributes()["Config"] or option in gateway_options()
    return not _WORD.fullmatch(name) or name in words()


def missing(text: str) -> list[str]:
    """A line for everything that a page names and that does not exist."""
    text = without_fences(text)
    found = [f"`{name}`" for name in dict.fromkeys(_CODE.findall(text)) if not exists(name)]
    for name, file in _DEFINED_IN.findall(text):
        module = file.removesuffix(".py").replace("/", ".")
        if name not in attributes().get(module, ()):
            found.append(f"`{name}` in `{file}`")
    return found


def pages() -> list[Path]:
    """The pages that are checked."""
    return [path for path in project_files("*.md") if "log" not in path.parts and path.name != "CHANGELOG.md"]


def main() -> int:
    """1 when a page names what does not exist, else 0."""
    lines = [f"{path}: {line}" for path in pages() for line in missing((ROOT / path).read_text(encoding="utf-8"))]
    for line in lines:
        print(f"names: {line}: no such thing", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
