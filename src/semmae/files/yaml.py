"""YAML: mappings of plain values, as config.yaml holds them.

A module of its own, for PyYAML takes longer to import than all that answers a mistake on the command line.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from semmae.errors import UserError, reason
from semmae.files.reading import check_bounds, read_text
from semmae.names import shown

_MOST = 2**20  # bytes: PyYAML is slow, and options are few


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file; UserError when there is none."""
    content = _read(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no options; write one `name: value` a line")
    return {str(name): value for name, value in content.items()}


def read_yaml_rows(path: Path) -> list[dict[str, Any]]:
    """The list of mappings of a YAML file; UserError when it is none, or an empty one."""
    content = _read(path)
    if not (isinstance(content, list) and content and all(isinstance(row, dict) for row in content)):
        raise UserError(f"{path}: holds no rows; write a list of them, each `- name: value` and more such lines")
    return [{str(name): value for name, value in row.items()} for row in content]


def _read(path: Path) -> Any:
    text = read_text(path, _MOST)
    try:
        content = yaml.load(text, _PlainLoader)
        check_bounds(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({reason(error)}); mend or restore it") from error
    return content


def as_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as text that `read_yaml` reads."""
    return str(yaml.safe_dump(dict(values), sort_keys=False))


class _PlainLoader(yaml.SafeLoader):
    """Without aliases, by which a small file can stand for gigabytes, and without keys given twice.

    Numbers are those of JSON: 010 is a text, not eight as in YAML 1.1, and so is 1:30, there ninety. True and false are
    written as such: on, off, yes and no are texts, as options have them (`compile: off`).
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(f"{shown(key.value)} is given twice, again in line {key.start_mark.line + 1}")
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# What stands for a number, or true and false, without quotes; PyYAML quotes other texts that it takes for one.
_PLAIN = {
    "tag:yaml.org,2002:bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"),
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"(?:[-+]?[0-9]+\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, _PLAIN.get(tag, pattern)) for tag, pattern in known]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
