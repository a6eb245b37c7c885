"""Reads the exported network of an update, without running anything that its file may say.

`torch.export.load` is no safe reader. It unpickles members of the archive without a limit, evaluates the
sizes that the graph names as Python, executes its guards, and looks up each operation by any name in torch.
So torch is handed an archive that is written here, of checked members, and never the file itself.
"""

import ast
import hashlib
import io
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from service.errors import ServedDamagedError

_MEMBER = re.compile(
    r"models/model\.json|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
    r"|\.format_version|\.storage_alignment"
    r"|data/(weights/(weight_\d+|model_weights_config\.json)"
    r"|constants/(tensor_\d+|model_constants_config\.json)|sample_inputs/model\.pt)"
)
"""Members of an archive that torch wrote of a graph, below its one folder."""
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_GRAPH = "models/model.json"
_SAMPLE = "data/sample_inputs/model.pt"
_OPERATION = re.compile(
    r"torch\.ops\.(?!prim\.)[a-z][a-z0-9_]*(\.[a-zA-Z_]\w*){1,2}"
    r"|torch\.sym_[a-z]+|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|getitem|index"
    r"|and_|or_|not_|xor|eq|ne|lt|le|gt|ge)"
    r"|math\.[a-z][a-z0-9]*"
)
_FILE_OPERATION = re.compile(r"__|\.(save|from_file|load|import_module|load_library)(\.|$)")
_SIZE_NODES = (
    *(ast.Expression, ast.Name, ast.Constant, ast.keyword, ast.Load, ast.Call),
    *(ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.unaryop, ast.operator, ast.boolop, ast.cmpop),
)
_TENSOR_GLOBALS = re.compile(
    r"torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|collections OrderedDict|torch Size"
)
_OPCODES_THAT_CALL = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"})


def load_served(path: Path, sha256: str | None) -> Any:
    """The network of an exported graph, as a torch module on the CPU.

    Args:
        sha256: digest of the file that the update's settlement stored; None: an older release stored none.
            Then the file may be another network than the one that was judged, but it cannot run code.

    Raises:
        ServedDamagedError: the file is missing, is not that file, or holds more than tensors and a graph.
    """
    import torch  # heavy: only who asks the network pays for it

    archive = _rewritten(path, read_served(path, sha256))
    try:
        return torch.export.load(archive).module()
    except Exception as error:  # whatever torch raises on a graph that it cannot read
        first = str(error).partition("\n")[0]
        raise _damaged(path, f"torch cannot read it ({first})") from error


def read_served(path: Path, sha256: str | None) -> bytes:
    """The bytes of an exported graph, checked as `load_served` checks them; needs no torch."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error.strerror})") from error
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise _damaged(path, f"its sha256 is {found}, and {sha256} was stored with the update")
    _rewritten(path, data)
    return data


def _rewritten(path: Path, data: bytes) -> io.BytesIO:
    """The archive again, of its checked members alone, with neither pickle nor Python in it."""
    written = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(written, "w") as copy:
            for name, member in _members(path, archive):
                copy.writestr(f"archive/{name}", _checked(path, name, member))
    except zipfile.BadZipFile as error:
        raise _damaged(path, "it is no archive") from error
    written.seek(0)
    return written


def _members(path: Path, archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    """Names below the archive's folder, and bytes; each name once, none of them compressed."""
    seen: set[str] = set()
    for info in archive.infolist():
        name = info.filename.partition("/")[2]
        if not _MEMBER.fullmatch(name):
            raise _damaged(path, f"it has a member {info.filename[:80]!r}, which no exported network has")
        if name in seen or info.compress_type != zipfile.ZIP_STORED:
            raise _damaged(path, f"its member {name!r} is there twice, or is compressed")
        seen.add(name)
        yield name, archive.read(info)


def _checked(path: Path, name: str, member: bytes) -> bytes:
    if name == _SAMPLE:
        if wrong := _beyond_tensors(member):
            raise _damaged(path, f"its member {name!r} is a pickle that {wrong}")
        # An example of the input, which nobody needs: without it there is nothing to unpickle.
        return b""
    if name not in (*_CONFIGS, _GRAPH):
        return member
    try:
        document = json.loads(member)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its member {name!r} is no JSON") from error
    if not isinstance(document, dict):
        raise _damaged(path, f"its member {name!r} is no JSON object")
    if wrong := _code_in(document):
        raise _damaged(path, f"its member {name!r} {wrong}")
    if name == _GRAPH:
        document["guards_code"] = []
    # Written again, so that torch reads what was checked, whatever a parser makes of a repeated key.
    return json.dumps(document).encode()


def _code_in(document: Mapping[str, Any]) -> str | None:
    """What in a document of the archive could run code as torch reads it; None: nothing."""
    waiting: list[Any] = [document]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        if not isinstance(each, dict):
            continue
        waiting += each.values()
        if each.get("use_pickle"):
            return f"has {str(each.get('path_name'))[:80]!r} as a pickle"
        for key in ("target", "as_operator"):
            called = each.get(key)
            if isinstance(called, str) and not _is_operation(called):
                return f"calls {called[:80]!r}"
        if "expr_str" in each and not _is_size(str(each["expr_str"])):
            return f"has a size {str(each['expr_str'])[:80]!r}"
    return None


def _is_operation(name: str) -> bool:
    """Whether a graph may call this: an operation on tensors and numbers that touches no file."""
    return bool(_OPERATION.fullmatch(name)) and not _FILE_OPERATION.search(name)


def _is_size(text: str) -> bool:
    """Whether a size is arithmetic over names and numbers: sympy evaluates it as Python."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _SIZE_NODES):
            return False
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id[:1].isupper()
        ):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not node.value.isidentifier():
            return False
        if isinstance(node, ast.Name) and "__" in node.id:
            return False
    return True


def _beyond_tensors(member: bytes) -> str | None:
    """What a file of `torch.save` does beyond naming tensors; None: nothing. It is read, never run."""
    try:
        with zipfile.ZipFile(io.BytesIO(member)) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1 or len(set(names)) != len(names):
                return "is not of one part"
            if archive.getinfo(pickles[0]).compress_type != zipfile.ZIP_STORED:
                return "is compressed"
            program = archive.read(pickles[0])
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name in _OPCODES_THAT_CALL:
                return f"has the instruction {opcode.name}"
            if opcode.name == "GLOBAL" and not _TENSOR_GLOBALS.fullmatch(str(argument)):
                return f"names {str(argument)[:80]!r}"
    except (zipfile.BadZipFile, ValueError) as error:
        return f"cannot be read ({error})"
    return None


def _damaged(path: Path, why: str) -> ServedDamagedError:
    return ServedDamagedError(
        f"The network {path} is not the one that the update exported: {why}.",
        fix="Nothing of it was run. Restore the checkpoint from a backup, and find out who changed it.",
    )
