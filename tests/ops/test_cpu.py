"""Compiling the C++ kernels: what can go wrong, and two processes at once."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hipnn_pyg.ops import KernelUnavailableError, available, cpu


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source that takes no time to compile."""
    file = tmp_path_factory.mktemp("source") / "small.cpp"
    file.write_text('extern "C" int answer() { return 42; }')
    return file


@pytest.fixture(scope="module")
def good(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that the real compiler makes of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIPNN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(cpu, "SOURCE", small)
        cpu.library.cache_clear()
        file = Path(cpu.library()._name)
    cpu.library.cache_clear()
    return file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and a process that has not loaded the kernels."""
    with monkeypatch.context() as patch:
        patch.setenv("HIPNN_CACHE", str(tmp_path / "cache"))
        cpu.library.cache_clear()
        yield tmp_path / "cache"
    cpu.library.cache_clear()


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """``compiler(lines)``: a shell script is the compiler; $out is the file to make."""

    def install(lines: str) -> Path:
        script = tmp_path / "cxx"
        script.write_text(f'#!/bin/sh\nfor out; do :; done\necho run >> "{script}.log"\n{lines}\n')
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return tmp_path / "cxx.log"

    return install


def test_compiles_into_an_empty_cache(
    small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "SOURCE", small)
    assert cpu.library().answer() == 42
    (file,) = cache.iterdir()
    assert cpu.library()._name == str(file)


def test_no_compiler(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelUnavailableError, match=r"no C\+\+ compiler"):
        cpu.library()
    assert "compiler" in available.__wrapped__("cpu")
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(KernelUnavailableError, match="CXX=no-such-compiler -m64"):
        cpu.library()
    monkeypatch.setenv("CXX", 'g++ "-m64')
    with pytest.raises(KernelUnavailableError, match="cannot be read: No closing quotation"):
        cpu.library()


def test_a_compiler_with_options(
    good: Path, cache: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compiler(f'cp "{good}" "$out"; echo "$1" >> "$0.log"')
    monkeypatch.setenv("CXX", os.environ["CXX"] + " -m64")
    cpu.library()
    assert log.read_text() == "run\n-m64\n"


def test_a_compiler_that_fails(
    cache: Path, compiler: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Its words, in whatever encoding; a line in the log, as nobody may ask for the error."""
    compiler(r"printf 'unknown \377 option' >&2; exit 1")
    with pytest.raises(KernelUnavailableError, match="unknown . option"):
        cpu.library()
    assert list(cache.iterdir()) == []
    assert "there are no CPU kernels" in caplog.text


def test_a_cache_folder_that_cannot_be_made(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HIPNN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(KernelUnavailableError, match="not compiled.*file"):
        cpu.library()
    assert "there are no CPU kernels: the kernels were not compiled" in caplog.text


def test_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container whose user has no name."""

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setenv("HIPNN_CACHE", str(tmp_path))
    assert cpu.cache_folder() == tmp_path
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HIPNN_CACHE", ".")  # a library's bare name would be looked for elsewhere
    assert cpu.cache_folder() == tmp_path
    with monkeypatch.context() as patch:
        patch.setenv("HOME", "/someone")
        patch.setenv("HIPNN_CACHE", "~/kernels")  # from a file that no shell has read
        assert cpu.cache_folder() == Path("/someone/kernels")
    monkeypatch.delenv("HIPNN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(KernelUnavailableError, match="home directory. HIPNN_CACHE may name"):
        cpu.cache_folder()


def test_a_corrupt_file(
    cache: Path, compiler: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    compiler('echo "not a library" > "$out"')
    with pytest.raises(KernelUnavailableError, match=r"\.so cannot be loaded.*delete it"):
        cpu.library()
    assert caplog.text.count("there are no CPU kernels") == 1 and "delete it" in caplog.text


def test_compiled_once_and_again_for_another_processor(
    good: Path, cache: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compiler(f'cp "{good}" "$out"')
    for _ in range(2):
        cpu.library.cache_clear()
        cpu.library()
    assert log.read_text() == "run\n"
    monkeypatch.setattr(cpu, "cpu_flags", lambda: "another processor")
    cpu.library.cache_clear()
    cpu.library()
    assert log.read_text() == "run\nrun\n" and len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("word, more", [("flags", "avx512f"), ("Features", "sve")])
def test_processors_differ_by_their_instructions(
    word: str, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the number of a core or its clock rate of the moment."""

    def flags(instructions: str, number: int = 0, rate: float = 2400.0) -> str:
        text = f"processor\t: {number}\ncpu MHz\t\t: {rate}\n{word}\t: {instructions}\nbugs\t: no\n"
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", lambda path: text)
            return cpu.cpu_flags()

    assert flags("fp crc32") != flags(f"fp crc32 {more}")
    assert flags("fp crc32") == flags("fp crc32", number=7, rate=3100.0)  # control


def test_two_processes_at_once(good: Path, cache: Path, compiler: Callable[[str], Path]) -> None:
    # Half a file, then wait until the other process compiles too, then all of it.
    log = compiler(
        f'head -c 4000 "{good}" > "$out"\n'
        'until [ "$(wc -l < "$0.log")" -ge 2 ]; do sleep 0.02; done\n'
        f'cp "{good}" "$out"'
    )
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=cpu.library) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    (file,) = cache.iterdir()
    assert file.read_bytes() == good.read_bytes()
    assert log.read_text() == "run\nrun\n"


SCRATCH = """
#include "HEADER"

extern "C" int still_there(std::int64_t before, std::int64_t now) {
    using namespace hipnn;
    float *numbers = scratch<float, kSums>(before);
    std::fill(numbers, numbers + before, 1.f);
    return scratch<float, kSums>(now)[0] == 1;
}
"""


def test_memory_of_a_thread(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept, unless more is asked for (what was in it is not copied), or less than 64 MB again."""
    file, header = tmp_path / "scratch.cpp", cpu.SOURCE.with_name("threads.h")
    file.write_text(SCRATCH.replace("HEADER", str(header)))
    monkeypatch.setattr(cpu, "SOURCE", file)
    there, many = cpu.library().still_there, 20 << 20
    there.argtypes = [ctypes.c_int64] * 2
    sizes = [(100, 100), (100, 90), (90, 5000), (many, many), (many, many // 2), (many, 100)]
    assert [there(*pair) for pair in sizes] == [1, 1, 0, 1, 0, 0]


FEWER_THREADS = """
import torch
from hipnn_pyg import HIPNN

def gradients(kernel, atoms, seed):
    torch.manual_seed(seed)
    z, pos = torch.tensor([1, 6] * (atoms // 2)), 9 * torch.rand(atoms, 3, dtype=torch.float64)
    torch.manual_seed(0)
    model = HIPNN((1, 6), 8, num_sensitivities=5, kernel=kernel, validate=False).double()
    pos.requires_grad_()
    model(z, pos).sum().backward()
    return [pos.grad, *(p.grad for p in model.parameters() if p.grad is not None)]

for seed in (1, 2):  # leave other numbers in the buffers
    gradients("fused", 60, seed)
for one, other in zip(gradients("fused", 40, 3), gradients("reference", 40, 3), strict=True):
    torch.testing.assert_close(one, other)
print("equal")
"""


def test_fewer_threads_than_asked_for() -> None:
    """OpenMP may give a smaller team: what absent threads left behind is not added."""
    limits = {"OMP_NUM_THREADS": "2", "OMP_THREAD_LIMIT": "1"}
    result = subprocess.run(
        [sys.executable, "-c", FEWER_THREADS],
        env={**os.environ, **limits},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "equal", result.stderr


NO_MEMORY = """
import resource, torch
from hipnn_pyg.ops import cpu, edge_pattern, interact

torch.set_num_threads(2)

def slopes(atoms, room=None):
    i = torch.arange(atoms)
    z, V = torch.ones(atoms, 256, requires_grad=True), torch.ones(1, 256, 1)
    numbers = torch.full((atoms,), 1.5), torch.tensor([1.5]), torch.tensor([2.0])
    sent = interact(*numbers, z, V, edge_pattern(i, i, atoms), 5.0, None)
    if room is not None:
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    return torch.autograd.grad(sent.sum(), z)[0]

expected = slopes(100)
for room in (400 << 20, 2000 << 20):  # the gradient and, of each thread, as much again
    try:
        print(bool((slopes(200_000, room)[:100] == expected).all()))
    except MemoryError as error:
        print(error)
"""


def test_no_memory_is_an_error() -> None:
    """Not the end of the process; with memory the same call goes on."""
    result = subprocess.run(
        [sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, timeout=120
    )
    first, second = result.stdout.splitlines()
    assert (
        first
        == "interact_backward: no memory for the sums of its threads: take fewer atoms at once"
    )
    assert second == "True", result.stderr
