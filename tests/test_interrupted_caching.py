"""Nothing is lost and nothing is wrong: killed processes, full disks, several processes, damaged files."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import caching_process
from utils import cache_building
from utils.activation_cache import ActivationCache
from utils.atomic import sha256_file
from utils.cache_repair import damaged_files, verify
from utils.caching import cache_activations
from utils.errors import UserError

ROOT = Path(__file__).parents[1]
NAME = "tiny-toy-B01-block"


def checksums(folder):
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def paths(two_concepts, tiny_llama, tmp_path):
    """The arguments of `make_cache`, but for the output folder."""
    two_concepts.save(tmp_path / "text")
    return [str(tmp_path / "text"), str(tiny_llama.folder)]


@pytest.fixture
def whole(paths, tmp_path):
    """An uninterrupted run's folder."""
    caching_process.make_cache(paths, str(tmp_path / "whole"))
    return tmp_path / "whole" / NAME


def run_process(*argv, **env):
    command = [sys.executable, "-m", "tests.caching_process", *argv]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_killed_at_twenty_moments_it_still_ends_with_the_same_bytes(paths, whole, tmp_path):
    command = [sys.executable, "-m", "tests.caching_process", *paths]  # which has imported everything when it forks
    server: Any = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    out = tmp_path / "killed"

    def run(seconds=None):
        """Start a process and kill it after some seconds; return how long it ran."""
        server.stdin.write(f"{out}\n")
        server.stdin.flush()
        process = int(server.stdout.readline())
        start = time.monotonic()
        if seconds is not None:
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.kill(process, signal.SIGKILL)
        status = int(server.stdout.readline())
        assert seconds is not None or status == 0
        return time.monotonic() - start

    run()
    shutil.rmtree(out)
    duration = run()
    moments = random.Random(0)
    n_resumed = 0
    for _ in range(20):
        shutil.rmtree(out)
        run(moments.uniform(0, duration))
        n_resumed += any(out.glob(f".building-{NAME}/seals/*"))
        run()
        assert checksums(out / NAME) == checksums(whole)
        assert [path.name for path in out.iterdir()] == [NAME]
    server.stdin.close()
    assert server.wait(60) == 0
    assert n_resumed > 3  # moments at which some shards were done, and others not


def test_killed_between_its_new_name_and_tidying_up(paths, whole, tmp_path, monkeypatch):
    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_building, "tidy", killed)
    with pytest.raises(KeyboardInterrupt):
        caching_process.make_cache(paths, str(tmp_path / "out"))
    assert (tmp_path / "out" / NAME / "seals").is_dir()
    caching_process.make_cache(paths, str(tmp_path / "out"))
    assert checksums(tmp_path / "out" / NAME) == checksums(whole)


def test_a_disk_that_fills_up(paths, whole, tmp_path):
    """A real tmpfs of 2 MB, in a mount namespace of its own, that something else fills after three shards."""
    out = tmp_path / "disk"
    out.mkdir()
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets no user mount a tmpfs")
    run_it = f"{sys.executable} -m tests.caching_process {paths[0]} {paths[1]} {out}"
    script = f"""
        mount -t tmpfs -o size=2m tmpfs {out} || exit 77
        {run_it} 3; echo "code $?"; find {out} -name '.tmp-*'
        rm {out}/ballast; {run_it} || exit 1
        cp -r {out}/{NAME} {tmp_path}/copy
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this system lets no user mount a tmpfs")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "code 2\n"
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert "Traceback" not in done.stderr
    assert "going on with the unfinished" in done.stderr
    assert checksums(tmp_path / "copy") == checksums(whole)


def test_a_failed_write_leaves_whole_shards_only(paths, whole, tmp_path, monkeypatch):
    calls = []
    original = cache_building.write_shard

    def fail_at_fifth(path, rows, features):
        calls.append(path)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(path, rows, features)

    monkeypatch.setattr(cache_building, "write_shard", fail_at_fifth)
    with pytest.raises(OSError, match="No space left"):
        caching_process.make_cache(paths, str(tmp_path / "out"))
    assert not (tmp_path / "out" / NAME).exists()
    with pytest.raises(UserError, match="still being written"):
        ActivationCache(tmp_path / "out" / NAME)
    caching_process.make_cache(paths, str(tmp_path / "out"))
    n_shards = sum(len(entry["shards"]) for entry in ActivationCache(whole).manifest["splits"].values())
    assert len(calls) == n_shards + 1  # the four finished ones were not made again
    assert checksums(tmp_path / "out" / NAME) == checksums(whole)


def test_shards_of_unknown_settings_are_never_taken_over(paths, whole, tmp_path):
    """As a crash leaves them that has removed half of a cache which can never be finished."""
    out = tmp_path / "out"
    shutil.copytree(whole, out / f".building-{NAME}")
    (out / f".building-{NAME}" / "seals").mkdir()
    shard = next((out / f".building-{NAME}" / "train").glob("*.arrow"))
    shard.write_bytes(b"of other settings")
    seal = out / f".building-{NAME}" / "seals" / f"train-{shard.name}.json"
    seal.write_text(json.dumps({"rows": 1, "sha256": sha256_file(shard), "counts": {}}))
    caching_process.make_cache(paths, str(out))
    assert checksums(out / NAME) == checksums(whole)
    assert [path.name for path in out.iterdir()] == [NAME]


def test_a_disk_that_is_too_small_is_refused_before_the_work(two_concepts, tiny_llama, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("utils.cache_estimate.shutil.disk_usage", lambda _: usage._replace(free=50_000))
    with pytest.raises(UserError, match=r"the disk lacks .* kB for this cache of .* kB"):
        cache_activations(two_concepts, tiny_llama, 1, "block", tmp_path / "small")
    assert not list((tmp_path / "small").iterdir())


def test_two_processes_share_the_work(paths, whole, tmp_path):
    """As torchrun starts them: the rows of one process, and a shard is made by one of them only."""
    out = str(tmp_path / "shared")
    processes = [run_process(*paths, out, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)) for rank in (0, 1)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert checksums(Path(out) / NAME) == checksums(whole)


def test_one_of_two_processes_makes_half_of_the_shards(paths, tmp_path, monkeypatch, whole):
    """The second process alone: its own shards, then it waits for the first."""
    out = tmp_path / "half"
    process = run_process(*paths, str(out), RANK="1", WORLD_SIZE="2")
    time.sleep(1)
    process.kill()  # it waits for the first process to begin
    process.communicate()
    assert not list(out.glob(".building-*"))
    monkeypatch.setenv("WORLD_SIZE", "2")

    def nap(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_building.time, "sleep", nap)
    with pytest.raises(KeyboardInterrupt):  # the first one has done its share and waits for the second
        caching_process.make_cache(paths, str(out))
    seals = len(list(out.glob(f".building-{NAME}/seals/*")))
    n_shards = sum(len(entry["shards"]) for entry in ActivationCache(whole).manifest["splits"].values())
    assert seals == (n_shards + 1) // 2
    monkeypatch.setenv("WORLD_SIZE", "1")  # any number of processes may go on
    caching_process.make_cache(paths, str(out))
    assert checksums(out / NAME) == checksums(whole)


@pytest.fixture
def damaged(whole):
    """The cache with one shard flipped, one cut, one missing, and a small file missing."""
    shards = [whole / "train" / shard["file"] for shard in ActivationCache(whole).manifest["splits"]["train"]["shards"]]
    flipped = bytearray(shards[0].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    shards[0].write_bytes(flipped)
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    shards[2].unlink()
    (whole / "test/state.json").unlink()
    return whole


def test_damage_is_named_and_mended_alone(paths, damaged, tmp_path):
    caching_process.make_cache(paths, str(tmp_path / "again"))
    names = [f"train/data-0000{n}" for n in range(3)]
    found = damaged_files(damaged)
    assert [name[:16] for name in found] == [*names, "test/state.json"]
    with pytest.raises(UserError, match=r"4 damaged \(train/data-00000.*checksum.*data-00002.*missing.*--repair"):
        verify(damaged)
    healthy = {path: path.stat().st_mtime_ns for path in damaged.rglob("*.arrow")}
    caching_process.make_cache(paths, str(damaged.parent), repair_damage=True)
    assert verify(damaged) == len(list(damaged.rglob("*.arrow")))
    again = tmp_path / "again" / NAME
    assert checksums(damaged) == checksums(again)
    untouched = [path for path in healthy if not any(str(path.relative_to(damaged)).startswith(n) for n in names)]
    assert untouched
    assert all(path.stat().st_mtime_ns == healthy[path] for path in untouched)
