# SPDX-License-Identifier: Apache-2.0
"""Jobs in other processes: the end of each is reported, and none affects another."""

import itertools
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monai_llmboost.ray_address import check_answer
from monai_llmboost.studies import jobs, ray_jobs
from monai_llmboost.studies.jobs import REASON, Job, run_locally
from monai_llmboost.studies.ray_jobs import run_on_ray

# A child imports this file and what is named here before it begins.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def wait_for(path: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


def note(file: str, text: str = "") -> None:
    print("noted", file)
    Path(file).write_text(text)


def fail(text: str) -> None:
    raise ValueError(text)


def fail_below(text: str) -> None:
    """As MONAI does where an item of a config cannot be made."""
    try:
        raise FileNotFoundError(text)
    except FileNotFoundError as error:
        raise RuntimeError("Failed to instantiate something long") from error


def key_error() -> None:
    raise KeyError("epoch")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(status: int) -> None:
    os._exit(status)


def environment(file: str) -> None:
    import torch

    Path(file).write_text(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {torch.get_num_threads()}")


def run_for_ever(started: str) -> None:
    Path(started).write_text(str(os.getpid()))
    time.sleep(600)


def together(mine: str, other: str) -> None:
    """Ends only where the other runs at the same time."""
    Path(mine).write_text("here")
    wait_for(Path(other))


def span(file: str) -> None:
    begin = time.monotonic()
    time.sleep(0.1)
    Path(file).write_text(f"{begin} {time.monotonic()}")


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job by its action and arguments, in a folder of this test."""
    monkeypatch.setattr(jobs, "INTERVAL", 0.05)
    monkeypatch.setattr(ray_jobs, "INTERVAL", 0.05)
    return lambda name, action, *arguments: Job(name, tmp_path / "jobs" / name, action, arguments)


def ends_of(engine):
    return {name: reason for ended in engine for name, reason in (ended or {}).items()}


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(pid: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not gone(pid):
        assert time.monotonic() < end, f"{pid} still runs"
        time.sleep(0.02)


def test_each_end_is_reported_and_affects_no_other(job, tmp_path):
    blocked = job("blocked", note, "never")
    blocked.folder.parent.mkdir()
    blocked.folder.write_text("a file where the job's folder should be")
    ends = ends_of(
        run_locally(
            [
                job("first", note, str(tmp_path / "first")),
                job("raises", fail, "no such luck"),
                job("wrapped", fail_below, "what went wrong"),
                job("key", key_error),
                job("long", fail, "x" * 100_000),
                job("odd", fail, "a file \udcff of odd bytes"),
                job("killed", be_killed),
                job("leaves", leave, 7),
                blocked,
                job("last", note, str(tmp_path / "last"), "ü"),
            ],
            parallel=3,
        )
    )
    assert ends.pop("first") == ends.pop("last") == ""
    assert (tmp_path / "last").read_text() == "ü"
    assert "noted" in (tmp_path / "jobs" / "first" / "run.log").read_text()
    assert ends.pop("raises") == "no such luck"
    log = (tmp_path / "jobs" / "raises" / "run.log").read_text()
    assert "Traceback" in log and "no such luck" in log
    assert ends.pop("wrapped") == "what went wrong"
    assert ends.pop("key") == "KeyError('epoch')"
    assert ends.pop("long") == "x" * REASON
    assert "of odd bytes" in ends.pop("odd")
    assert "ended by SIGKILL" in ends["killed"] and "give fewer --jobs" in ends.pop("killed")
    assert ends.pop("leaves") == f"its process ended with status 7: see {tmp_path / 'jobs' / 'leaves' / 'run.log'}"
    assert "exists" in ends.pop("blocked")
    assert not ends


def test_a_log_is_appended_to(job, tmp_path):
    for text in ("once", "again"):
        assert ends_of(run_locally([job("same", fail, text)])) == {"same": text}
    log = (tmp_path / "jobs" / "same" / "run.log").read_text()
    assert log.index("once") < log.index("again")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported(job, tmp_path):
    full = job("full", note, "/dev/full", "x" * 100_000)
    full.folder.mkdir(parents=True)
    (full.folder / "run.log").symlink_to("/dev/full")
    assert "No space left" in ends_of(run_locally([full]))["full"]


def test_jobs_run_in_order_one_at_a_time(job, tmp_path):
    names = ["c", "a", "b"]
    ends = ends_of(run_locally([job(name, span, str(tmp_path / name)) for name in names]))
    assert list(ends) == names
    spans = [tuple(map(float, (tmp_path / name).read_text().split())) for name in names]
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_several_run_parallel(job, tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    ends = ends_of(run_locally([job("a", together, a, b), job("b", together, b, a)], parallel=5))
    assert ends == {"a": "", "b": ""}


def test_no_jobs(job):
    assert list(run_locally([])) == []


def test_each_has_a_gpu_that_this_process_may_use(job, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 6)

    def seen():
        ends = ends_of(run_locally([job(n, environment, str(tmp_path / n)) for n in ("a", "b")], parallel=2))
        assert ends == {"a": "", "b": ""}
        return sorted((tmp_path / name).read_text() for name in ("a", "b"))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert seen() == ["0 3", "1 3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-8")
    assert seen() == ["5 3", "GPU-8 3"]


def test_relative_paths_mean_the_same_there(job, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert ends_of(run_locally([job("here", note, "found")])) == {"here": ""}
    assert (tmp_path / "elsewhere" / "found").is_file()


def test_closing_ends_the_processes(job, tmp_path):
    files = [tmp_path / name for name in ("a", "b", "never")]
    engine = run_locally([job(file.name, run_for_ever, str(file)) for file in files], parallel=2)
    for ended in engine:
        assert ended is None
        if all(file.exists() and file.read_text() for file in files[:2]):
            break
    pids = [int(file.read_text()) for file in files[:2]]
    begin = time.monotonic()
    engine.close()
    assert time.monotonic() - begin < 10
    assert all(map(gone, pids))
    assert not files[2].exists()


def start_for_ever(folder: Path) -> None:
    """A study's process, as it were, that only waits."""
    jobs.PRELOADED.clear()
    for _ in run_locally([Job("one", folder, run_for_ever, (str(folder / "started"),))]):
        pass


def test_a_process_ends_when_its_parent_is_killed(tmp_path):
    starter = multiprocessing.get_context("forkserver").Process(target=start_for_ever, args=(tmp_path,))
    starter.start()
    wait_for(tmp_path / "started")
    starter.kill()  # it alone
    starter.join()
    wait_until_gone(int((tmp_path / "started").read_text()))


INTERRUPTED = """
import signal
import sys
from contextlib import closing, suppress
from pathlib import Path

import bars
from monai_llmboost.ray_address import check_answer
from monai_llmboost.studies import jobs

jobs.PRELOADED[:] = [sys.argv[1], "monai_llmboost.studies.jobs"]
signal.signal(signal.SIGINT, signal.default_int_handler)  # wherever these tests run
here = Path.cwd()
work = [jobs.Job(name, here / f"job-{name}", bars.for_ever, (str(here / name),)) for name in "ab"]
with suppress(KeyboardInterrupt), closing(jobs.run_locally(work, parallel=2)) as engine:
    for _ in engine:
        pass
"""
BARS = """
import time
from pathlib import Path

import torch  # once, and not in each job
from tqdm import tqdm

def for_ever(started):
    with tqdm(total=1):
        Path(started).write_text("here")
        time.sleep(600)
"""
SLOW = """
import time
from pathlib import Path

Path("loading").write_text("here")
time.sleep(5)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_processes_find_the_code_of_a_run_imported(tmp_path):
    code = f"""
import sys
from monai_llmboost.studies.jobs import PRELOADED
for name in PRELOADED:
    __import__(name)
before = set(sys.modules)
from monai_llmboost.bundle import BundleJob, bundle_path, job_configs
folders = {{"ckpt_dir": {str(tmp_path)!r}, "output_dir": {str(tmp_path)!r}}}
job = BundleJob.read(job_configs(bundle_path("medmnist3d_rllm_classification"), "train", "pretrained"), folders)
job.item("train#trainer", "test")
print([name for name in sys.modules.keys() - before if name.startswith(("monai_llmboost.", "monai.", "medmnist"))])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("kill", "preloaded", "begun"),
    [(os.killpg, "bars", "ab"), (os.kill, "bars", "ab"), (os.killpg, "slow", ["loading"])],
)
def test_an_interrupt_leaves_nothing_behind(tmp_path, kill, preloaded, begun):
    """Neither one that a terminal sends to all processes, nor one to the first alone, nor one before a job begins."""
    (tmp_path / "bars.py").write_text(BARS)
    (tmp_path / "slow.py").write_text(SLOW)
    study = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, preloaded],
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not all((tmp_path / name).exists() for name in begun):
        assert study.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.01)
    kill(study.pid, signal.SIGINT)
    _, errors = study.communicate()  # until the last process that could write there has ended
    assert study.returncode == 0, errors
    assert "leaked" not in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "ray://[::1]:1", "ray://127.0.0.1:none"])
def test_no_ray_at_the_address(job, monkeypatch, address):
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'monai-llmboost[ray]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    begin = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"no Ray cluster answers at {re.escape(address)} \(.+\):"):
        list(run_on_ray([job("any", note, "x")], 1, address))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConnectionError, match="no Ray cluster answers"):
        list(run_on_ray([job("any", note, "x")], 1))
    assert time.monotonic() - begin < 30


def test_whether_ray_answers_is_asked_only_where_there_is_a_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        check_answer(f"ray://127.0.0.1:{server.getsockname()[1]}")
        server.accept()[0].close()  # somebody called
    for known_to_ray in ("", "auto", "local"):
        check_answer(known_to_ray)


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'monai-llmboost[ray]'")
    tests = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1])))
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": tests}})
    yield ray
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)  # in whose place Ray puts its own


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("cluster")
def test_on_ray(job, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    engine = run_on_ray(
        [
            job("raises", fail, "no such luck"),
            job("dies", leave, 3),
            job("good", note, "found"),
            job("forever", run_for_ever, str(tmp_path / "started")),
        ],
        parallel=4,
    )
    ends = {}
    for ended in engine:
        ends |= ended or {}
        if len(ends) == 3 and (tmp_path / "started").exists():
            break
    engine.close()
    wait_until_gone(int((tmp_path / "started").read_text()))
    assert ends["good"] == ""
    assert (tmp_path / "elsewhere" / "found").is_file()
    assert ends["raises"] == "no such luck"
    assert "Traceback" in (tmp_path / "jobs" / "raises" / "run.log").read_text()
    assert ends["dies"].startswith("its process or machine was lost (WorkerCrashedError): see ")


def test_without_ray(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"--engine ray needs Ray.*pip install 'monai-llmboost\[ray\]'"):
        list(run_on_ray([job("any", note, "x")], 1))
