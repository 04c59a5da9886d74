# SPDX-License-Identifier: Apache-2.0
"""Reading of scans before a network: this package, plain MONAI or SimpleITK, and the least that any reader must do.

Synthetic scans with noise, int16, are written to a temporary folder and read once per round and side:

- three ``.nii.gz`` files, up to the input of the network, 28 voxels along each axis: by this package, with the
  transforms of its bundle (each voxel is checked); by plain MONAI (``LoadImaged`` with NibabelReader,
  ``Orientationd``, ``Resized``); and the ``limit``: unpack by isal, convert to float32, interpolate;
- ``large CT, DICOM``, up to the same input: by this package, and by SimpleITK and interpolation;
- ``DICOM series``, up to the volume: by this package (each header is checked), and by SimpleITK.

The sides take turns in processes that have imported everything; a first round is not counted. Seconds are CPU seconds
of all threads, memory is the peak resident memory beyond that before reading. ``--before`` measures another checkout
in the same rounds; nothing is written unless both checkouts read the same voxels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZE = 28
OURS = "monai-llmboost"
LARGE_SERIES = "large CT, DICOM"


def make_scans(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Path]:
    """Write scans of these shapes, and return the path of each by its name."""
    import nibabel
    import numpy as np

    rng = np.random.default_rng(0)
    paths = {}
    for name, shape in shapes.items():
        image = _make_image(shape, rng)
        paths[name] = folder / f"{len(paths)}.nii.gz"
        if "DICOM" in name:
            paths[name] = _write_series(folder / f"{len(paths)}", image)
        else:
            nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), paths[name])
    return paths


def _write_series(folder: Path, image: Any) -> Path:
    import numpy as np
    import SimpleITK as sitk

    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, plane in enumerate(np.moveaxis(image, 2, 0)):
        slice_image = sitk.GetImageFromArray(np.ascontiguousarray(plane.T))
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.3.{k + 1}",
            "0008|0060": "CT",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.4",
            "0020|0013": f"{k + 1}",
            "0020|0032": f"0\\0\\{k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            slice_image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{k:04d}.dcm"))
        writer.Execute(slice_image)
    return folder


def _make_image(shape: tuple[int, ...], rng: Any) -> Any:
    """Return a smooth image from 0 to about 255, with noise of a few units, which packs like a scan."""
    import numpy as np

    waves = [np.sin(np.linspace(0, 9, size, dtype=np.float32)) for size in shape]
    smooth = 100 + 80 * waves[0][:, None, None] * waves[1][:, None] * waves[2]
    return np.clip(smooth + rng.normal(0, 6, shape).astype(np.float32), 0, 255).astype(np.int16)


def make_sides(path: Path, scan: str) -> dict[str, Callable[[Path], Any]]:
    """Return the ways to read a scan: functions from its path to an array."""
    import SimpleITK as sitk
    import torch
    from isal import igzip
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Resized

    from monai_llmboost.data import LoadScansd, ScanReader

    def read_by_sitk(folder: Path) -> Any:
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
        return sitk.GetArrayFromImage(sitk.ReadImage(files, sitk.sitkFloat32))

    def interpolate(volume: Any) -> Any:
        return torch.nn.functional.interpolate(volume[None, None], [SIZE] * 3, mode="trilinear").numpy()

    def read_at_limit(path: Path) -> Any:
        import nibabel

        with igzip.open(path) as file:
            content = bytearray(file.read())
        header = nibabel.Nifti1Header(bytes(content[:348]))
        voxels = torch.frombuffer(content, dtype=torch.int16, offset=int(header["vox_offset"]))
        return interpolate(voxels.view(header.get_data_shape()[::-1]).float())

    if path.is_dir() and scan != LARGE_SERIES:
        load = LoadScansd("image", ScanReader())
        return {OURS: lambda path: load({"image": str(path)})["image"].numpy(), "SimpleITK": read_by_sitk}
    ours = _get_transforms()
    sides = {OURS: lambda path: ours({"image": str(path)})["image"].numpy()}
    if path.is_dir():
        return sides | {"SimpleITK": lambda path: interpolate(torch.from_numpy(read_by_sitk(path)))}
    reduce = [Orientationd("image", axcodes="RAS", labels=None), Resized("image", [SIZE] * 3, mode="trilinear")]
    plain = Compose([LoadImaged("image", reader="NibabelReader"), EnsureChannelFirstd("image"), *reduce])
    return sides | {"plain MONAI": lambda path: plain({"image": str(path)})["image"].numpy(), "limit": read_at_limit}


def _get_transforms() -> Any:
    """Return the transforms of the bundle in the measured checkout."""
    from monai.bundle import ConfigParser

    import monai_llmboost

    parser = ConfigParser()
    bundles = Path(monai_llmboost.__file__).parents[1] / "bundles"
    parser.read_config(bundles / "medmnist3d_rllm_classification" / "configs" / "inference.json")
    parser.update({"size": SIZE, "intensity_range": [0, 255]})
    return parser.get_parsed_content("preprocessing")


def serve() -> None:
    """Answer each line of the input, a path and a side, with the measurement of one reading."""
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        scan, path, side = json.loads(line)
        read = make_sides(Path(path), scan)[side]
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        memory, wall, start = _read_status_mb("VmRSS"), time.perf_counter(), time.process_time()
        array = read(Path(path))
        times = {"CPU": time.process_time() - start, "wall": time.perf_counter() - wall}
        peak = _read_status_mb("VmHWM") - memory
        answer = {**times, "peak": peak, "digest": hashlib.sha256(array.tobytes()).hexdigest()}
        print(json.dumps(answer), file=sys.__stdout__, flush=True)
        del array


def _read_status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1e3 for line in lines if line.startswith(key))


def start(checkout: Path) -> subprocess.Popen[str]:
    """Start a process that measures with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--serve"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(process: subprocess.Popen[str], scan: str, path: Path, side: str) -> dict[str, Any]:
    """Measure one reading in a process."""
    assert process.stdin is not None and process.stdout is not None
    print(json.dumps([scan, str(path), side]), file=process.stdin, flush=True)
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def measure_rows(
    paths: dict[str, Path], shapes: dict[str, tuple[int, ...]], checkouts: dict[str, Path], rounds: int
) -> list[dict[str, Any]]:
    """Measure all sides in turn, and return a row for each scan and side.

    Raises:
        ValueError: the checkouts read different voxels.
    """
    processes = {name: start(checkout) for name, checkout in checkouts.items()}
    after = next(iter(processes.values()))
    rows = []
    try:
        for scan, path in paths.items():
            others = ["SimpleITK"] if path.is_dir() else ["limit", "plain MONAI"]
            sides = {name: (process, OURS) for name, process in processes.items()}
            sides |= {side: (after, side) for side in others}
            found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for _ in range(rounds + 1):
                for name, (process, side) in sides.items():
                    found[name].append(ask(process, scan, path, side))
            if len({answer["digest"] for name in processes for answer in found[name]}) > 1:
                raise ValueError(f"{scan}: the checkouts read different voxels")
            base = found[others[0]][1:]
            for name, answers in found.items():
                counted = answers[1:]
                row = {"scan": scan, "side": name, "compared with": others[0]}
                for key in ("CPU", "wall"):
                    row[f"{key} ms"] = 1e3 * statistics.median(one[key] for one in counted)
                    row[f"{key} ratio"] = statistics.median(one[key] / two[key] for one, two in zip(counted, base))
                volume = 4e-6 * math.prod(shapes[scan])
                peak = statistics.median(one["peak"] for one in counted)
                rows.append({**row, "volume MB": volume, "peak MB": peak, "peak / volume": peak / volume})
    finally:
        for process in processes.values():
            process.communicate()
    return rows


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--large", type=int, nargs=3, default=(512, 512, 600), help="voxels of the large CT")
    parser.add_argument("--slices", type=int, default=200, help="slices of the DICOM series, 512 x 512")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the results are medians")
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--out", type=Path, help="default: results/reading-cpu.json next to this file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    if options.rounds < 1:
        parser.error("--rounds must be from 1")
    import torch
    from report import RESULTS, save, show

    from monai_llmboost.studies.cost.measure import device_name

    checkouts = {OURS: Path(__file__).parents[1]}
    if options.before:
        checkouts[f"{OURS}, before"] = options.before
    shapes = {
        "128^3 .nii.gz": (128, 128, 128),
        "256x256x100 .nii.gz": (256, 256, 100),
        "large CT .nii.gz": tuple(options.large),
        LARGE_SERIES: tuple(options.large),
        "DICOM series": (512, 512, options.slices),
    }
    with tempfile.TemporaryDirectory(prefix="reading-") as temporary:
        rows = measure_rows(make_scans(Path(temporary), shapes), shapes, checkouts, options.rounds)
    out = options.out or RESULTS / "reading-cpu.json"
    settings = {"large": list(options.large), "slices": options.slices, "rounds": options.rounds, "size": SIZE}
    save(out, "scans on disk to the input of a network", device_name(torch.device("cpu")), settings, rows)
    show(out)


if __name__ == "__main__":
    main()
