"""YAML in which nothing is said twice, and which becomes no more than it looks like."""

from collections.abc import Hashable
from typing import Any

import yaml

MAX_ALIASES = 1_000
"""Aliases (`*name`) in one text."""
MAX_NODES = 200_000
"""Keys, values and lists that a text with aliases may become."""


class _OnceLoader(yaml.SafeLoader):
    """A safe loader that refuses a mapping with a repeated key, of which the last would win in silence."""

    aliases = 0
    """Aliases that were read so far."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """See `yaml.SafeLoader`."""
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise _refused(f"it has more than {MAX_ALIASES:,} aliases", None)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """See `yaml.SafeLoader`."""
        seen = set()
        # Before keys that are merged in with <<, which are meant to be overridden.
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value[:100]!r} stands twice in one mapping", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        yaml.YAMLError: it is not YAML, says something twice, nests too deep, or has aliases that become much.
    """
    loader = _OnceLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if loader.aliases:
            # Before anything is made of it: ten lists of ten aliases each are ten thousand million values.
            _size(root, {}, set())
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        # In one line, since that is what a command prints and an answer holds.
        raise yaml.YAMLError(" ".join(str(error).split())) from None
    except RecursionError:
        raise yaml.YAMLError("it nests too deep") from None
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int], open_nodes: set[int]) -> int:
    """Nodes that a node becomes once every alias is written out.

    Raises:
        yaml.YAMLError: there are too many, or an alias stands inside of what it names.
    """
    key = id(node)
    if key in open_nodes:
        raise _refused("an alias stands inside of what it names", node.start_mark)
    if key not in known:
        open_nodes.add(key)
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        total = 1
        for part in parts:
            for each in part if isinstance(part, tuple) else (part,):
                total += _size(each, known, open_nodes)
        open_nodes.remove(key)
        if total > MAX_NODES:
            raise _refused(f"its aliases become more than {MAX_NODES:,} values", node.start_mark)
        known[key] = total
    return known[key]


def _refused(problem: str, mark: yaml.Mark | None) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)
