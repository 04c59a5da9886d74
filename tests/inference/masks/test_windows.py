# SPDX-License-Identifier: Apache-2.0
"""Sliding windows: equal to MONAI's, in bounded memory, with what lacks memory and what cannot be."""

import errno
import itertools

import pytest
import torch
from monai.inferers import sliding_window_inference

from monai_llmboost.inference import WindowInferer
from monai_llmboost.inference.masks import planes


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    conv = torch.nn.Conv3d
    return torch.nn.Sequential(conv(2, 4, 3, padding=1), torch.nn.ReLU(), conv(4, 3, 3, padding=1)).eval()


def image(*sizes):
    torch.manual_seed(1)
    return torch.randn(1, 2, *sizes)


@pytest.mark.parametrize("sizes", [(20, 17, 30), (8, 6, 4), (5, 9, 3), (33, 6, 50)])
@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
@pytest.mark.parametrize("overlap", [0.5, 0.0])
def test_windows_are_those_of_monai(network, sizes, keep_bytes, overlap):
    inferer = WindowInferer((8, 6, 4), overlap=overlap, windows=3, keep_bytes=keep_bytes)
    with torch.no_grad():
        theirs = sliding_window_inference(image(*sizes), (8, 6, 4), 3, network, overlap, mode="gaussian").softmax(1)
    ours = inferer(image(*sizes), network)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("flips", "axes"), [(True, (2, 3, 4)), ([1], (3,))])
def test_flips_are_averaged_logits(network, flips, axes):
    def mean(windows):
        every = [some for n in range(len(axes) + 1) for some in itertools.combinations(axes, n)]
        return sum(network(windows.flip(some)).flip(some) if some else network(windows) for some in every) / len(every)

    expected = WindowInferer((8, 8, 8))(image(12, 8, 9), mean)
    assert torch.allclose(WindowInferer((8, 8, 8), flips=flips)(image(12, 8, 9), network), expected, atol=1e-6)


def test_a_large_output_is_a_file_that_goes_with_its_last_tensor(network, monkeypatch, tmp_path):
    made = []
    real = planes.tempfile.TemporaryFile
    monkeypatch.setattr(planes.tempfile, "TemporaryFile", lambda dir: made.append(real(dir=tmp_path)) or made[-1])
    calls = iter([1, 1, 1, 1, 1, 0])
    WindowInferer((8, 8, 8), keep_bytes=0)(image(9, 9, 20), network)
    with pytest.raises(ZeroDivisionError):
        WindowInferer((8, 8, 8), keep_bytes=0)(image(9, 9, 40), lambda batch: network(batch) * (1 / next(calls)))
    assert len(made) == 2 and not list(tmp_path.iterdir())


def test_fewer_windows_run_where_memory_is_short(network):
    calls = []

    def tight(batch):
        calls.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network(batch)

    ours = WindowInferer((8, 8, 8), windows=7)(image(20, 20, 20), tight)
    assert calls[:3] == [7, 3, 1] and max(calls[2:]) == 1
    assert torch.allclose(ours, WindowInferer((8, 8, 8))(image(20, 20, 20), network), atol=1e-6)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "does not fit the memory, even with one window"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "train again with a coarser spacing"),
        (OSError(errno.ENOSPC, "No space left on device"), "folder of temporary files has no room"),
    ],
)
def test_a_case_that_does_not_fit_is_refused_by_its_reason(network, error, reason):
    def broken(batch):
        if (batch == 99).any():
            raise error
        return network(batch)

    both = torch.cat([image(9, 9, 9), torch.full((1, 2, 9, 9, 9), 99.0)])
    inferer = WindowInferer((8, 8, 8), keep_going=True)
    output = inferer(both, broken)
    assert list(inferer.unfit) == [1] and reason in inferer.unfit[1]
    assert output.isnan().flatten(1).any(1).tolist() == [False, True]
    assert inferer(both[1:], broken).isnan().all(), "the number of classes is unknown"
    assert not (inferer(both[:1], broken).isnan().any() or inferer.unfit)
    with pytest.raises(type(error)):
        WindowInferer((8, 8, 8))(both, broken)


@pytest.mark.parametrize(("device", "advice"), [("cpu", "use a machine"), ("meta", "use --device cpu, a machine")])
def test_the_cpu_is_advised_only_on_another_device(monkeypatch, device, advice):
    def broken(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(WindowInferer, "_case", broken)
    inferer = WindowInferer((8, 8, 8), keep_going=True)
    inferer(torch.zeros(1, 1, 9, 9, 9, device=device), broken)
    assert advice in inferer.unfit[0]


def test_other_errors_pass(network):
    with pytest.raises(RuntimeError, match="expected input"):
        WindowInferer((8, 8, 8), keep_going=True)(image(9, 9, 9)[:, :1], network)


def test_what_cannot_be(network):
    with pytest.raises(ValueError, match=r"the overlap 1.0 must be from 0 to below 1"):
        WindowInferer(8, overlap=1.0)
    with pytest.raises(ValueError, match=r"flips must be True, False or some of the axes 0, 1, 2, not \[3\]"):
        WindowInferer(8, flips=[3])
    with pytest.raises(ValueError, match=r"the network makes \(1, 2, 4, 4, 4\) of windows .* of the same size"):
        WindowInferer(8)(image(8, 8, 8), torch.nn.AvgPool3d(2))
