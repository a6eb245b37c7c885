"""YAML in which nothing is said twice."""

from collections.abc import Hashable
from typing import Any

import yaml


class _OnceLoader(yaml.SafeLoader):
    """A safe loader that refuses a mapping with a repeated key, of which the last would win in silence."""

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
        yaml.YAMLError: it is not YAML, or says something twice.
    """
    # The loader is a safe one.
    return yaml.load(text, Loader=_OnceLoader)
