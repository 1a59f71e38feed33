"""What a process may use: the smaller of what the machine has and what its container allows."""

from pathlib import Path

import pytest

from penstock.machine import free_memory_bytes, usable_cores

MIB = 2**20


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    file = tmp_path / "meminfo"
    file.write_text(f"MemTotal: {8 * 1024**2} kB\nMemAvailable: {4 * 1024**2} kB\nHugePages_Total: 0\n")
    return file


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_without_limits_the_machine_counts(tmp_path: Path, meminfo: Path) -> None:
    assert free_memory_bytes(tmp_path / "none", meminfo) == 4096 * MIB
    assert usable_cores(tmp_path / "none") >= 1
    write(tmp_path / "v2", memory__max="max", memory__current="1", cpu__max="max 100000")
    assert free_memory_bytes(tmp_path / "v2", meminfo) == 4096 * MIB
    assert usable_cores(tmp_path / "v2") == usable_cores(tmp_path / "none")


def test_a_container_has_what_its_limit_leaves_and_the_page_cache(tmp_path: Path, meminfo: Path) -> None:
    stat = f"anon 5\ninactive_file {50 * MIB}\nactive_file 7"
    write(tmp_path / "v2", memory__max=str(512 * MIB), memory__current=str(200 * MIB), memory__stat=stat)
    assert free_memory_bytes(tmp_path / "v2", meminfo) == 362 * MIB
    stat = f"total_inactive_file {50 * MIB}"
    write(
        tmp_path / "v1/memory",
        memory__limit_in_bytes=str(512 * MIB),
        memory__usage_in_bytes=str(600 * MIB),
        memory__stat=stat,
    )
    assert free_memory_bytes(tmp_path / "v1", meminfo) == 0  # never negative
    write(tmp_path / "big", memory__max=str(2**40), memory__current="0")
    assert free_memory_bytes(tmp_path / "big", meminfo) == 4096 * MIB


@pytest.mark.parametrize("quota", [1, 50_000, 100_000])
def test_a_quota_of_cores_is_rounded_up_to_one(tmp_path: Path, quota: int) -> None:
    write(tmp_path / "v2", cpu__max=f"{quota} 100000")
    assert usable_cores(tmp_path / "v2") == 1
    write(tmp_path / "v1/cpu", cpu__cfs_quota_us=str(quota), cpu__cfs_period_us="100000")
    assert usable_cores(tmp_path / "v1") == 1
