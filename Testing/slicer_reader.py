"""Run on its own: open written files with 3D Slicer's libraries, say what they hold, and save them as Slicer does.

Usage: python slicer_reader.py FOLDER. Writes FOLDER/found.json, FOLDER/<file>.npy, and FOLDER/resaved/<file>. It is a
process of its own because Slicer's libraries bring another ITK than SimpleITK's.
"""

import json
import sys
from pathlib import Path

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy


def rows(matrix: "vtk.vtkMatrix4x4") -> list[list[float]]:
    return [[matrix.GetElement(row, column) for column in range(4)] for row in range(4)]


def open_segmentation(path: Path) -> dict:
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    found = {"read": storage.ReadData(node), "segments": []}
    segmentation = node.GetSegmentation()
    for number in range(segmentation.GetNumberOfSegments()):
        name = segmentation.GetNthSegmentID(number)
        segment = segmentation.GetSegment(name)
        image = segment.GetRepresentation("Binary labelmap")
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        tags = {}
        for key in ("TerminologyEntry", "SAUNet.Level", "SAUNet.Partial"):
            text = vtk.reference("")
            if segment.GetTag(key, text):
                tags[key] = str(text)
        found["segments"].append(
            {
                "id": name,
                "name": segment.GetName(),
                "colour": segment.GetColor(),
                "value": segment.GetLabelValue(),
                "tags": tags,
                "status": slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentStatus(segment),
                "matrix": rows(matrix),
                "extent": image.GetExtent(),
            }
        )
        labels = vtk_to_numpy(image.GetPointData().GetScalars())
        np.save(path.with_name(path.name + ".npy"), labels.reshape(image.GetDimensions()[::-1]))
    resaved = path.parent / "resaved" / path.name
    resaved.parent.mkdir(exist_ok=True)
    if found["segments"]:
        if not path.name.startswith("classes"):
            edit(segmentation)
        storage.SetFileName(str(resaved))
        found["written"] = storage.WriteData(node)
    return found


def edit(segmentation: "slicer.vtkSegmentation") -> None:
    """What a user may do: rename a segment, and move another into a layer of its own, where its label value changes."""
    names = [segmentation.GetNthSegmentID(number) for number in range(segmentation.GetNumberOfSegments())]
    segmentation.GetSegment(names[-1]).SetName("renamed by hand")
    segmentation.SeparateSegmentLabelmap(names[0])
    segmentation.SetSegmentIndex(names[0], len(names) - 1)


def open_label_map(path: Path) -> dict:
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(path))
    found = {"read": storage.ReadData(node), "spacing": node.GetSpacing(), "origin": node.GetOrigin()}
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    labels = slicer.util.arrayFromVolume(node)
    np.save(path.with_name(path.name + ".npy"), labels)
    return found | {"matrix": rows(matrix), "type": str(labels.dtype)}


def register_conversions() -> None:
    """What Slicer's segmentations module does at its start; without it, conversion parameters are dropped."""
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    factory.RegisterConverterRule(slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule())
    factory.RegisterConverterRule(slicer.vtkClosedSurfaceToBinaryLabelmapConversionRule())


def main(folder: Path) -> None:
    register_conversions()
    files = [path for path in sorted(folder.iterdir()) if path.name.endswith((".nii", ".nii.gz", ".nrrd", ".mha"))]
    found = {
        path.name: (open_segmentation if path.name.endswith(".seg.nrrd") else open_label_map)(path) for path in files
    }
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
