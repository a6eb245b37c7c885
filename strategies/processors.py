"""Whether the processor of this machine computes in bfloat16, or only imitates it."""

from pathlib import Path

_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Names of the flags that processors of Intel, AMD and Arm have where they multiply in bfloat16."""
_DESCRIPTION = Path("/proc/cpuinfo")

SLOW = (
    "bfloat16 is many times slower than float32 on this processor, which has no instructions for it "
    "(avx512_bf16, amx_bf16 or bf16)"
)


def computes_bfloat16(description: Path = _DESCRIPTION) -> bool:
    """Whether the processor has instructions for bfloat16; True also where the system does not say."""
    try:
        lines = description.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return True
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not _INSTRUCTIONS.isdisjoint(value.split())
    return True


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether a GPU of NVIDIA's is there, as far as the system's files say; needs no torch."""
    return any(devices.glob("nvidia[0-9]*"))
