"""Which processors compute in bfloat16, by what Linux says of them."""

from pathlib import Path

import pytest

from strategies.processors import computes_bfloat16, has_gpu


@pytest.mark.parametrize(
    ("description", "computes"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("nothing of the kind", True),
    ],
)
def test_the_flags_of_a_processor_say_it(description: str, computes: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(description)
    assert computes_bfloat16(tmp_path / "cpuinfo") is computes


def test_where_nothing_is_said_nothing_is_refused(tmp_path: Path) -> None:
    assert computes_bfloat16(tmp_path / "none")


def test_a_gpu_is_known_by_its_device(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    assert not has_gpu(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert has_gpu(tmp_path)
