# SPDX-License-Identifier: Apache-2.0
"""A prediction as a DICOM structured report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset

from monai_llmboost.arguments import check_choice
from monai_llmboost.inference.dicom.maker import (
    DISCLAIMER,
    MAKER,
    Uids,
    equipment,
    highdicom,
    parameters,
    refused_by_highdicom,
    save_atomically,
    uid_of,
)
from monai_llmboost.inference.dicom.sources import SourceImages, read_sources

# Coding scheme of class names, which no public terminology contains; a code is a digest of the name.
OWN_CODES = "99LLMBOOST"
PROCEDURES = {"CT": "CTUnspecifiedBodyRegion", "MR": "MRIUnspecifiedBodyRegion", "PT": "PETUnspecifiedBodyRegion"}
# Series number of the report, above the numbers that scanners use.
SERIES_NUMBER = 9001


def write_structured_report(
    path: str | Path,
    source: SourceImages,
    class_names: Sequence[str],
    probabilities: Sequence[float],
    predicted: str,
    algorithm: Mapping[str, str],
    warnings: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Write a prediction as a DICOM Comprehensive SR, a measurement report (TID 1500).

    The first group contains the predicted class, the algorithm and texts. One group for each class follows, with the
    class name as the finding and its probability as a measurement without unit. The report refers to all images of the
    series. It is preliminary, unverified and qualified as research.

    Args:
        path: the file to write, atomically.
        source: the images of the scan.
        class_names: names of the classes.
        probabilities: probabilities of the classes, 0 to 1.
        predicted: the predicted class.
        algorithm: ``name``, ``version``, ``weights_sha256``, ``block_fingerprint``, ``description``; the last two are
            optional.
        warnings: sentences, such as warnings of a reader.
        overwrite: replace an existing file.

    Raises:
        ValueError: the file exists; the source files are not images of one series or lack required attributes; the
            probabilities do not match the classes.
        ImportError: highdicom is not installed.
    """
    hd, codes = highdicom()
    values = [float(value) for value in probabilities]
    if len(values) != len(class_names) or not all(0 <= value <= 1 for value in values):
        raise ValueError(
            f"the probabilities {values} are not those of {len(class_names)} classes: give one from 0 to 1 for each"
        )
    check_choice("predicted class", predicted, class_names)
    sources, frames = read_sources(source.files), list(source.frames)
    uid = Uids(sources, algorithm, "report", list(class_names), values, predicted, list(warnings), frames)
    made_by = equipment(algorithm)
    with refused_by_highdicom():
        algorithm_id = hd.sr.AlgorithmIdentification(
            name=algorithm["name"],
            version=algorithm["version"],
            parameters=parameters(algorithm),
            manufacturer=MAKER,
        )
        whole = hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(uid("predicted"), "predicted class"),
            algorithm_id=algorithm_id,
            qualitative_evaluations=[hd.sr.QualitativeEvaluation(codes.SCT.Classification, _class_code(predicted))],
        )
        for text in (DISCLAIMER, algorithm.get("description"), *warnings):
            if text:
                comment = hd.sr.TextContentItem(codes.DCM.Comment, text, hd.sr.RelationshipTypeValues.CONTAINS)
                whole[0].ContentSequence.append(comment)
        groups = [
            hd.sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=hd.sr.TrackingIdentifier(uid("class", index), f"class {index}"),
                finding_type=_class_code(name),
                algorithm_id=algorithm_id,
                measurements=[hd.sr.Measurement(codes.DCM.Probability, value, codes.UCUM.NoUnits)],
            )
            for index, (name, value) in enumerate(zip(class_names, values))
        ]
        device = hd.sr.DeviceObserverIdentifyingAttributes(
            uid=uid_of("device", *algorithm.items()),
            name=algorithm["name"],
            manufacturer_name=MAKER,
            model_name=algorithm["name"],
            serial_number=algorithm["weights_sha256"],
        )
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(hd.sr.ObserverContext(codes.DCM.Device, device)),
            procedure_reported=getattr(codes.cid100, PROCEDURES.get(sources[0].Modality, "ImagingProcedure")),
            imaging_measurements=[whole, *groups],
        )
        content[0].ContentSequence.insert(-1, _image_library(sources, frames))  # before the measurements
        report = hd.sr.ComprehensiveSR(
            evidence=sources,
            content=content,
            series_number=SERIES_NUMBER,
            series_instance_uid=uid("series"),
            sop_instance_uid=uid("instance"),
            instance_number=1,
            is_complete=True,
            series_description=f"{MAKER} prediction",
            content_qualification=hd.ContentQualificationValues.RESEARCH,
            coding_schemes=[
                hd.coding_schemes.CodingSchemeIdentificationItem(OWN_CODES, name="monai-llmboost class names")
            ],
            specific_character_set="ISO_IR 192",
            **made_by,
        )
    save_atomically(report, Path(path), overwrite)


def _class_code(name: str) -> Any:
    from highdicom.sr import CodedConcept

    meaning = " ".join(name.replace("\\", "/").split())  # a backslash separates values
    meaning = meaning if len(meaning) <= 64 else f"{meaning[:61]}..."
    return CodedConcept(f"c{hashlib.sha256(name.encode()).hexdigest()[:12]}", OWN_CODES, meaning)


def _image_library(sources: Sequence[Dataset], frames: Sequence[int]) -> Any:
    """Return references to all images (TID 1600).

    highdicom's image library also copies the geometry of each image, which the template does not require. This takes
    five times as long, and fails for images without geometry at their top level, such as enhanced images.
    """
    hd, codes = highdicom()
    contains = hd.sr.RelationshipTypeValues.CONTAINS
    library = hd.sr.ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=contains)
    group = hd.sr.ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=contains)
    images = [
        hd.sr.ImageContentItem(
            codes.SCT.Source,
            source.SOPClassUID,
            source.SOPInstanceUID,
            list(frames) or None,
            relationship_type=contains,
        )
        for source in sources
    ]
    group.ContentSequence = hd.sr.ContentSequence(images)
    library.ContentSequence = hd.sr.ContentSequence([group])
    return library
